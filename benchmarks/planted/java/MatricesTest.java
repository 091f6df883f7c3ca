import static org.junit.Assert.*;

import org.junit.Test;

public class MatricesTest {
    private static final int[][] A = {{1, 2}, {3, 4}, {5, 6}};
    private static final int[][] FIBONACCI = {{1, 1}, {1, 0}};

    @Test public void products() {
        assertArrayEquals(new int[][] {{5, 11, 17}, {11, 25, 39}, {17, 39, 61}}, Matrices.product(A, Matrices.transposed(A)));
    }

    @Test public void transposing() {
        assertArrayEquals(new int[][] {{1, 3, 5}, {2, 4, 6}}, Matrices.transposed(A));
    }

    @Test public void traces() {
        assertEquals(5, Matrices.trace(new int[][] {{1, 2}, {3, 4}}));
    }

    @Test(timeout = 2000) public void powers() {
        assertEquals(55, Matrices.power(FIBONACCI, 10)[0][1]);
        assertArrayEquals(new int[][] {{1, 0}, {0, 1}}, Matrices.power(FIBONACCI, 0));
        assertEquals(13, Matrices.power(FIBONACCI, 7)[0][1]);
    }

    @Test public void symmetry() {
        assertTrue(Matrices.isSymmetric(new int[][] {{1, 2}, {2, 3}}));
        assertFalse(Matrices.isSymmetric(new int[][] {{1, 2}, {4, 3}}));
        assertFalse(Matrices.isSymmetric(new int[][] {{1, 0, 2}, {0, 1, 0}, {3, 0, 1}}));
    }

    @Test public void cells() {
        boolean[][] cells = {{true, true, false}, {false, true, true}, {true, false, false}};
        assertEquals(2, Matrices.neighbours(cells, 0, 0));
        assertEquals(4, Matrices.neighbours(cells, 1, 1));
        assertEquals(1, Matrices.neighbours(cells, 2, 2) - 1);
    }
}
