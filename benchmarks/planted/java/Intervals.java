import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** Half-open intervals {start, end} of whole numbers. */
public class Intervals {
    public static boolean overlap(int[] a, int[] b) {
        return a[0] < b[1] && b[0] < a[1];
    }

    public static int length(int[] interval) {
        if (interval[1] < interval[0]) {
            return 0;
        }
        return interval[1] - interval[0];
    }

    public static List<int[]> merged(List<int[]> intervals) {
        List<int[]> sorted = new ArrayList<>(intervals);
        Collections.sort(sorted, (a, b) -> Integer.compare(a[0], b[0]));
        List<int[]> result = new ArrayList<>();
        for (int[] next : sorted) {
            int last = result.size() - 1;
            if (last >= 0 && next[0] <= result.get(last)[1]) {
                int end = Math.max(result.get(last)[1], next[1]);
                result.set(last, new int[] {result.get(last)[0], end});
            } else {
                result.add(new int[] {next[0], next[1]});
            }
        }
        return result;
    }

    public static int covered(List<int[]> intervals) {
        int total = 0;
        for (int[] interval : merged(intervals)) {
            total += length(interval);
        }
        return total;
    }

    public static int mostAtOnce(List<int[]> intervals) {
        int most = 0;
        for (int[] one : intervals) {
            int count = 0;
            for (int[] other : intervals) {
                if (other[0] <= one[0] && one[0] < other[1]) {
                    count++;
                }
            }
            if (count > most) {
                most = count;
            }
        }
        return most;
    }

    public static int[] gap(List<int[]> intervals, int size) {
        List<int[]> all = merged(intervals);
        for (int i = 1; i < all.size(); i++) {
            int start = all.get(i - 1)[1];
            int end = all.get(i)[0];
            if (end - start >= size) {
                return new int[] {start, start + size};
            }
        }
        return null;
    }
}
