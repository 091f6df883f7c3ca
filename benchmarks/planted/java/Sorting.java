/** Sorting and searching of arrays of whole numbers. */
public class Sorting {
    public static void insertionSort(int[] values) {
        for (int i = 1; i < values.length; i++) {
            int value = values[i];
            int place = i - 1;
            while (place >= 0 && values[place] > value) {
                values[place + 1] = values[place];
                place--;
            }
            values[place + 1] = value;
        }
    }

    public static int[] mergedSorted(int[] a, int[] b) {
        int[] result = new int[a.length + b.length];
        int i = 0;
        int j = 0;
        for (int k = 0; k < result.length; k++) {
            if (j >= b.length || (i < a.length && a[i] <= b[j])) {
                result[k] = a[i];
                i++;
            } else {
                result[k] = b[j];
                j++;
            }
        }
        return result;
    }

    public static int binarySearch(int[] values, int wanted) {
        int low = 0;
        int high = values.length - 1;
        while (low <= high) {
            int middle = (low + high) / 2;
            if (values[middle] == wanted) {
                return middle;
            }
            if (values[middle] < wanted) {
                low = middle + 1;
            } else {
                high = middle - 1;
            }
        }
        return -1;
    }

    public static int countSmaller(int[] values, int limit) {
        int count = 0;
        for (int value : values) {
            if (value < limit) {
                count++;
            }
        }
        return count;
    }

    public static int secondLargest(int[] values) {
        int first = Integer.MIN_VALUE;
        int second = Integer.MIN_VALUE;
        for (int value : values) {
            if (value > first) {
                second = first;
                first = value;
            } else if (value > second && value != first) {
                second = value;
            }
        }
        return second;
    }

    public static boolean isSorted(int[] values) {
        for (int i = 1; i < values.length; i++) {
            if (values[i - 1] > values[i]) {
                return false;
            }
        }
        return true;
    }
}
