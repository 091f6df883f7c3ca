import static org.junit.Assert.*;

import org.junit.Test;

public class DatesTest {
    @Test public void leapYears() {
        assertTrue(Dates.isLeap(2000));
        assertTrue(Dates.isLeap(2024));
        assertFalse(Dates.isLeap(1900));
        assertFalse(Dates.isLeap(2023));
    }

    @Test public void months() {
        int[] lengths = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
        for (int month = 1; month <= 12; month++) {
            assertEquals(lengths[month - 1], Dates.daysIn(2023, month));
        }
        assertEquals(29, Dates.daysIn(2024, 2));
    }

    @Test public void daysOfYears() {
        assertEquals(1, Dates.dayOfYear(2023, 1, 1));
        assertEquals(365, Dates.dayOfYear(2023, 12, 31));
        assertEquals(366, Dates.dayOfYear(2024, 12, 31));
    }

    @Test public void weekdays() {
        assertEquals(1, Dates.weekday(2024, 1, 1));
        assertEquals(0, Dates.weekday(2023, 12, 31));
        assertEquals(6, Dates.weekday(2000, 1, 1));
    }

    @Test public void following() {
        assertArrayEquals(new int[] {2023, 3, 1}, Dates.next(2023, 2, 28));
        assertArrayEquals(new int[] {2024, 1, 1}, Dates.next(2023, 12, 31));
        assertArrayEquals(new int[] {2024, 2, 29}, Dates.next(2024, 2, 28));
    }

    @Test public void validity() {
        assertTrue(Dates.isValid(2024, 2, 29));
        assertFalse(Dates.isValid(2023, 2, 29));
        assertFalse(Dates.isValid(2023, 13, 1));
        assertFalse(Dates.isValid(2023, 0, 1));
        assertFalse(Dates.isValid(2023, 5, 0));
        assertTrue(Dates.isValid(2023, 12, 31));
        assertTrue(Dates.isValid(2023, 1, 1));
    }
}
