import static org.junit.Assert.*;

import org.junit.Test;

public class LruCacheTest {
    @Test public void forgetsTheOldest() {
        LruCache cache = new LruCache(2);
        cache.put("a", 1);
        cache.put("b", 2);
        cache.put("c", 3);
        assertNull(cache.get("a"));
        assertEquals(Integer.valueOf(2), cache.get("b"));
        assertEquals(2, cache.size());
    }

    @Test public void useCounts() {
        LruCache cache = new LruCache(2);
        cache.put("a", 1);
        cache.put("b", 2);
        assertEquals(Integer.valueOf(1), cache.get("a"));
        cache.put("c", 3);
        assertNull(cache.get("b"));
        assertEquals(Integer.valueOf(1), cache.get("a"));
    }

    @Test public void newValues() {
        LruCache cache = new LruCache(2);
        cache.put("a", 1);
        cache.put("b", 2);
        cache.put("a", 5);
        cache.put("c", 3);
        assertEquals(Integer.valueOf(5), cache.get("a"));
        assertNull(cache.get("b"));
        assertEquals(2, cache.size());
    }

    @Test public void rates() {
        LruCache cache = new LruCache(1);
        assertEquals(0, cache.hitRate(), 0);
        cache.put("a", 1);
        cache.get("a");
        cache.get("x");
        cache.get("a");
        cache.get("a");
        assertEquals(0.75, cache.hitRate(), 0);
    }

    @Test(expected = IllegalArgumentException.class) public void noRoom() {
        new LruCache(0);
    }

    @Test public void room() {
        assertEquals(0, new LruCache(1).size());
    }
}
