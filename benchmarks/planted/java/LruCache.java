import java.util.ArrayList;
import java.util.List;

/** A cache that forgets what was used longest ago. */
public class LruCache {
    private final int capacity;
    private final List<String> keys = new ArrayList<>();
    private final List<Integer> values = new ArrayList<>();
    private int hits;
    private int misses;

    public LruCache(int capacity) {
        if (capacity < 1) {
            throw new IllegalArgumentException("a capacity of " + capacity);
        }
        this.capacity = capacity;
    }

    public Integer get(String key) {
        int place = keys.indexOf(key);
        if (place < 0) {
            misses++;
            return null;
        }
        hits++;
        Integer value = values.get(place);
        moveToEnd(place);
        return value;
    }

    public void put(String key, int value) {
        int place = keys.indexOf(key);
        if (place >= 0) {
            values.set(place, value);
            moveToEnd(place);
            return;
        }
        if (keys.size() == capacity) {
            keys.remove(0);
            values.remove(0);
        }
        keys.add(key);
        values.add(value);
    }

    private void moveToEnd(int place) {
        String key = keys.remove(place);
        Integer value = values.remove(place);
        keys.add(key);
        values.add(value);
    }

    public int size() {
        return keys.size();
    }

    public double hitRate() {
        int total = hits + misses;
        if (total == 0) {
            return 0;
        }
        return (double) hits / total;
    }
}
