/** Small things done with text. */
public class Texts {
    public static boolean isPalindrome(String text) {
        int left = 0;
        int right = text.length() - 1;
        while (left < right) {
            if (!Character.isLetterOrDigit(text.charAt(left))) {
                left++;
            } else if (!Character.isLetterOrDigit(text.charAt(right))) {
                right--;
            } else {
                if (Character.toLowerCase(text.charAt(left)) != Character.toLowerCase(text.charAt(right))) {
                    return false;
                }
                left++;
                right--;
            }
        }
        return true;
    }

    public static int editDistance(String a, String b) {
        int[] row = new int[b.length() + 1];
        for (int j = 0; j <= b.length(); j++) {
            row[j] = j;
        }
        for (int i = 1; i <= a.length(); i++) {
            int corner = row[0];
            row[0] = i;
            for (int j = 1; j <= b.length(); j++) {
                int cost = a.charAt(i - 1) == b.charAt(j - 1) ? 0 : 1;
                int best = Math.min(corner + cost, Math.min(row[j], row[j - 1]) + 1);
                corner = row[j];
                row[j] = best;
            }
        }
        return row[b.length()];
    }

    public static String roman(int number) {
        int[] values = {1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1};
        String[] signs = {"M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"};
        StringBuilder result = new StringBuilder();
        for (int i = 0; i < values.length; i++) {
            while (number >= values[i]) {
                result.append(signs[i]);
                number -= values[i];
            }
        }
        return result.toString();
    }

    public static String runLengths(String text) {
        StringBuilder result = new StringBuilder();
        int start = 0;
        for (int i = 1; i <= text.length(); i++) {
            if (i == text.length() || text.charAt(i) != text.charAt(start)) {
                result.append(text.charAt(start));
                if (i - start > 1) {
                    result.append(i - start);
                }
                start = i;
            }
        }
        return result.toString();
    }

    public static int countWords(String text) {
        int count = 0;
        boolean inside = false;
        for (char letter : text.toCharArray()) {
            if (Character.isWhitespace(letter)) {
                inside = false;
            } else if (!inside) {
                inside = true;
                count++;
            }
        }
        return count;
    }

    public static String wrapped(String text, int width) {
        StringBuilder result = new StringBuilder();
        int used = 0;
        for (String word : text.split(" ")) {
            if (used > 0 && used + 1 + word.length() > width) {
                result.append('\n');
                used = 0;
            }
            if (used > 0) {
                result.append(' ');
                used++;
            }
            result.append(word);
            used += word.length();
        }
        return result.toString();
    }
}
