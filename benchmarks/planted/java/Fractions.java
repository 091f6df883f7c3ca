/** Fractions of whole numbers, as pairs {numerator, denominator} in lowest terms. */
public class Fractions {
    public static long gcd(long a, long b) {
        a = Math.abs(a);
        b = Math.abs(b);
        while (b != 0) {
            long rest = a % b;
            a = b;
            b = rest;
        }
        return a;
    }

    public static long[] reduced(long numerator, long denominator) {
        if (denominator == 0) {
            throw new ArithmeticException("the denominator is 0");
        }
        if (denominator < 0) {
            numerator = -numerator;
            denominator = -denominator;
        }
        long common = gcd(numerator, denominator);
        if (common > 1) {
            numerator = numerator / common;
            denominator = denominator / common;
        }
        return new long[] {numerator, denominator};
    }

    public static long[] add(long[] a, long[] b) {
        long numerator = a[0] * b[1] + b[0] * a[1];
        return reduced(numerator, a[1] * b[1]);
    }

    public static long[] multiply(long[] a, long[] b) {
        long numerator = a[0] * b[0];
        long denominator = a[1] * b[1];
        return reduced(numerator, denominator);
    }

    public static int compare(long[] a, long[] b) {
        long left = a[0] * b[1];
        long right = b[0] * a[1];
        if (left < right) {
            return -1;
        }
        return left > right ? 1 : 0;
    }

    public static long[] parse(String text) {
        int slash = text.indexOf('/');
        if (slash < 0) {
            return new long[] {Long.parseLong(text.trim()), 1};
        }
        long numerator = Long.parseLong(text.substring(0, slash).trim());
        long denominator = Long.parseLong(text.substring(slash + 1).trim());
        return reduced(numerator, denominator);
    }
}
