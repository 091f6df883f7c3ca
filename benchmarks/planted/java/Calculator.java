import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;

/** Arithmetic written as text: whole numbers, + - * / and brackets. */
public class Calculator {
    public static List<String> tokens(String text) {
        List<String> result = new ArrayList<>();
        int place = 0;
        while (place < text.length()) {
            char sign = text.charAt(place);
            if (Character.isDigit(sign)) {
                int end = place;
                while (end < text.length() && Character.isDigit(text.charAt(end))) {
                    end++;
                }
                result.add(text.substring(place, end));
                place = end;
            } else {
                if (sign != ' ') {
                    result.add(String.valueOf(sign));
                }
                place++;
            }
        }
        return result;
    }

    public static int priority(String operator) {
        if (operator.equals("*") || operator.equals("/")) {
            return 2;
        }
        return operator.equals("+") || operator.equals("-") ? 1 : 0;
    }

    public static long apply(String operator, long a, long b) {
        switch (operator) {
            case "+": return a + b;
            case "-": return a - b;
            case "*": return a * b;
            case "/": return a / b;
            default: throw new IllegalArgumentException(operator);
        }
    }

    public static long evaluate(String text) {
        Deque<Long> values = new ArrayDeque<>();
        Deque<String> operators = new ArrayDeque<>();
        for (String token : tokens(text)) {
            if (Character.isDigit(token.charAt(0))) {
                values.push(Long.parseLong(token));
            } else if (token.equals("(")) {
                operators.push(token);
            } else if (token.equals(")")) {
                while (!operators.peek().equals("(")) {
                    reduce(values, operators);
                }
                operators.pop();
            } else {
                while (!operators.isEmpty() && priority(operators.peek()) >= priority(token)) {
                    reduce(values, operators);
                }
                operators.push(token);
            }
        }
        while (!operators.isEmpty()) {
            reduce(values, operators);
        }
        return values.pop();
    }

    private static void reduce(Deque<Long> values, Deque<String> operators) {
        long b = values.pop();
        long a = values.pop();
        values.push(apply(operators.pop(), a, b));
    }

    public static boolean balanced(String text) {
        int depth = 0;
        for (char sign : text.toCharArray()) {
            if (sign == '(') {
                depth++;
            }
            if (sign == ')') {
                depth--;
            }
            if (depth < 0) {
                return false;
            }
        }
        return depth == 0;
    }
}
