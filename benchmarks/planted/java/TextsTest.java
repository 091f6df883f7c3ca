import static org.junit.Assert.*;

import org.junit.Test;

public class TextsTest {
    @Test(timeout = 2000) public void palindromes() {
        assertTrue(Texts.isPalindrome("A man, a plan, a canal: Panama"));
        assertTrue(Texts.isPalindrome(""));
        assertFalse(Texts.isPalindrome("ab"));
        assertFalse(Texts.isPalindrome("race a car"));
        assertTrue(Texts.isPalindrome(".,a!"));
    }

    @Test public void distances() {
        assertEquals(3, Texts.editDistance("kitten", "sitting"));
        assertEquals(4, Texts.editDistance("", "abcd"));
        assertEquals(2, Texts.editDistance("ab", ""));
        assertEquals(0, Texts.editDistance("same", "same"));
    }

    @Test(timeout = 2000) public void romans() {
        assertEquals("MCMXCIV", Texts.roman(1994));
        assertEquals("IV", Texts.roman(4));
        assertEquals("XLVIII", Texts.roman(48));
        assertEquals("", Texts.roman(0));
    }

    @Test public void runs() {
        assertEquals("a3b2c", Texts.runLengths("aaabbc"));
        assertEquals("", Texts.runLengths(""));
        assertEquals("abc", Texts.runLengths("abc"));
    }

    @Test public void words() {
        assertEquals(3, Texts.countWords(" one two  three "));
        assertEquals(0, Texts.countWords("  "));
    }

    @Test public void wrapping() {
        assertEquals("aa bb\ncc", Texts.wrapped("aa bb cc", 5));
        assertEquals("aa\nbb", Texts.wrapped("aa bb", 4));
        assertEquals("long\na", Texts.wrapped("long a", 2));
    }
}
