/** Dates of the Gregorian calendar. */
public class Dates {
    public static boolean isLeap(int year) {
        if (year % 400 == 0) {
            return true;
        }
        return year % 4 == 0 && year % 100 != 0;
    }

    public static int daysIn(int year, int month) {
        if (month == 2) {
            return isLeap(year) ? 29 : 28;
        }
        if (month == 4 || month == 6 || month == 9 || month == 11) {
            return 30;
        }
        return 31;
    }

    public static int dayOfYear(int year, int month, int day) {
        int total = day;
        for (int before = 1; before < month; before++) {
            total += daysIn(year, before);
        }
        return total;
    }

    public static int weekday(int year, int month, int day) {
        int years = year - 1;
        int days = years * 365 + years / 4 - years / 100 + years / 400;
        days += dayOfYear(year, month, day);
        return days % 7;
    }

    public static int[] next(int year, int month, int day) {
        day++;
        if (day > daysIn(year, month)) {
            day = 1;
            month++;
        }
        if (month > 12) {
            month = 1;
            year++;
        }
        return new int[] {year, month, day};
    }

    public static boolean isValid(int year, int month, int day) {
        if (month < 1 || month > 12) {
            return false;
        }
        return day >= 1 && day <= daysIn(year, month);
    }
}
