import static org.junit.Assert.*;

import java.util.Arrays;
import java.util.List;
import org.junit.Test;

public class IntervalsTest {
    private static final List<int[]> SOME =
        Arrays.asList(new int[] {5, 8}, new int[] {1, 3}, new int[] {2, 4}, new int[] {8, 9}, new int[] {12, 20});

    @Test public void overlapping() {
        assertTrue(Intervals.overlap(new int[] {1, 3}, new int[] {2, 4}));
        assertFalse(Intervals.overlap(new int[] {1, 3}, new int[] {3, 4}));
        assertFalse(Intervals.overlap(new int[] {3, 4}, new int[] {1, 3}));
    }

    @Test public void lengths() {
        assertEquals(2, Intervals.length(new int[] {1, 3}));
        assertEquals(0, Intervals.length(new int[] {3, 1}));
    }

    @Test public void merging() {
        List<int[]> found = Intervals.merged(SOME);
        assertEquals(3, found.size());
        assertArrayEquals(new int[] {1, 4}, found.get(0));
        assertArrayEquals(new int[] {5, 9}, found.get(1));
        assertArrayEquals(new int[] {12, 20}, found.get(2));
        found = Intervals.merged(Arrays.asList(new int[] {1, 9}, new int[] {2, 3}));
        assertArrayEquals(new int[] {1, 9}, found.get(0));
    }

    @Test public void covering() {
        assertEquals(15, Intervals.covered(SOME));
    }

    @Test public void atOnce() {
        assertEquals(2, Intervals.mostAtOnce(SOME));
        assertEquals(1, Intervals.mostAtOnce(Arrays.asList(new int[] {1, 2}, new int[] {2, 3})));
        assertEquals(0, Intervals.mostAtOnce(Arrays.asList()));
    }

    @Test public void gaps() {
        assertArrayEquals(new int[] {4, 5}, Intervals.gap(SOME, 1));
        assertArrayEquals(new int[] {9, 12}, Intervals.gap(SOME, 3));
        assertNull(Intervals.gap(SOME, 4));
    }
}
