import static org.junit.Assert.*;

import org.junit.Test;

public class FractionsTest {
    @Test public void commonDivisors() {
        assertEquals(6, Fractions.gcd(12, 18));
        assertEquals(7, Fractions.gcd(-7, 0));
        assertEquals(1, Fractions.gcd(9, -4));
    }

    @Test public void lowestTerms() {
        assertArrayEquals(new long[] {2, 3}, Fractions.reduced(4, 6));
        assertArrayEquals(new long[] {-1, 2}, Fractions.reduced(3, -6));
        assertArrayEquals(new long[] {0, 1}, Fractions.reduced(0, 5));
        assertArrayEquals(new long[] {1, 2}, Fractions.reduced(2, 4));
    }

    @Test(expected = ArithmeticException.class) public void noDenominator() {
        Fractions.reduced(1, 0);
    }

    @Test public void sums() {
        assertArrayEquals(new long[] {5, 6}, Fractions.add(new long[] {1, 2}, new long[] {1, 3}));
        assertArrayEquals(new long[] {0, 1}, Fractions.add(new long[] {1, 4}, new long[] {-1, 4}));
    }

    @Test public void products() {
        assertArrayEquals(new long[] {1, 3}, Fractions.multiply(new long[] {2, 3}, new long[] {1, 2}));
    }

    @Test public void order() {
        assertEquals(-1, Fractions.compare(new long[] {1, 3}, new long[] {1, 2}));
        assertEquals(1, Fractions.compare(new long[] {2, 3}, new long[] {1, 2}));
        assertEquals(0, Fractions.compare(new long[] {1, 2}, new long[] {2, 4}));
    }

    @Test public void text() {
        assertArrayEquals(new long[] {3, 4}, Fractions.parse(" 6 / 8 "));
        assertArrayEquals(new long[] {5, 1}, Fractions.parse("5"));
        assertArrayEquals(new long[] {1, 2}, Fractions.parse("1/2"));
    }
}
