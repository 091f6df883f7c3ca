import static org.junit.Assert.*;

import org.junit.Test;

public class SortingTest {
    @Test(timeout = 2000) public void insertion() {
        int[] values = {4, 1, 3, 3, -2, 9, 0};
        Sorting.insertionSort(values);
        assertArrayEquals(new int[] {-2, 0, 1, 3, 3, 4, 9}, values);
        Sorting.insertionSort(new int[0]);
    }

    @Test(timeout = 2000) public void merging() {
        assertArrayEquals(new int[] {1, 2, 2, 3, 5}, Sorting.mergedSorted(new int[] {1, 2, 5}, new int[] {2, 3}));
        assertArrayEquals(new int[] {1, 4}, Sorting.mergedSorted(new int[] {}, new int[] {1, 4}));
        assertArrayEquals(new int[] {1, 4}, Sorting.mergedSorted(new int[] {1, 4}, new int[] {}));
    }

    @Test(timeout = 2000) public void searching() {
        int[] values = {1, 3, 5, 7, 9, 11};
        for (int i = 0; i < values.length; i++) {
            assertEquals(i, Sorting.binarySearch(values, values[i]));
            assertEquals(-1, Sorting.binarySearch(values, values[i] + 1));
        }
        assertEquals(-1, Sorting.binarySearch(new int[0], 1));
    }

    @Test public void counting() {
        assertEquals(2, Sorting.countSmaller(new int[] {1, 5, 3, 5}, 5));
        assertEquals(0, Sorting.countSmaller(new int[] {1}, 1));
    }

    @Test public void second() {
        assertEquals(3, Sorting.secondLargest(new int[] {5, 3, 5, 1}));
        assertEquals(3, Sorting.secondLargest(new int[] {1, 3, 5}));
        assertEquals(4, Sorting.secondLargest(new int[] {5, 1, 4, 2}));
    }

    @Test public void sorted() {
        assertTrue(Sorting.isSorted(new int[] {1, 1, 2}));
        assertFalse(Sorting.isSorted(new int[] {2, 1, 3}));
        assertFalse(Sorting.isSorted(new int[] {1, 3, 2}));
    }
}
