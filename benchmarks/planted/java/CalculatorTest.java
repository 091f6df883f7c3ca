import static org.junit.Assert.*;

import java.util.Arrays;
import org.junit.Test;

public class CalculatorTest {
    @Test(timeout = 2000) public void tokens() {
        assertEquals(Arrays.asList("12", "+", "(", "3", "*", "45", ")"), Calculator.tokens("12 +(3*45)"));
        assertEquals(Arrays.asList(), Calculator.tokens(" "));
    }

    @Test public void priorities() {
        assertEquals(2, Calculator.priority("*"));
        assertEquals(2, Calculator.priority("/"));
        assertEquals(1, Calculator.priority("+"));
        assertEquals(1, Calculator.priority("-"));
        assertEquals(0, Calculator.priority("("));
    }

    @Test public void operators() {
        assertEquals(9, Calculator.apply("+", 7, 2));
        assertEquals(5, Calculator.apply("-", 7, 2));
        assertEquals(14, Calculator.apply("*", 7, 2));
        assertEquals(3, Calculator.apply("/", 7, 2));
    }

    @Test(timeout = 2000) public void values() {
        assertEquals(7, Calculator.evaluate("1 + 2 * 3"));
        assertEquals(9, Calculator.evaluate("(1 + 2) * 3"));
        assertEquals(2, Calculator.evaluate("8 - 4 - 2"));
        assertEquals(3, Calculator.evaluate("2 * (7 - 4) / 2"));
    }

    @Test public void brackets() {
        assertTrue(Calculator.balanced("(a(b)c)"));
        assertFalse(Calculator.balanced(")("));
        assertFalse(Calculator.balanced("(()"));
    }
}
