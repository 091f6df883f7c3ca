import random
import re
from pathlib import Path

import numpy as np
import pytest

from luthier.encoding.minhash import bands
from luthier.prepare.deduplicate import Copies, Deduplicator, normalise, shingles


def copies(
    folder: Path,
    texts: list[str],
    *,
    near: str = "drop",
    threshold: float = 0.8,
    rank: list[int] | None = None,
) -> Copies:
    folder.mkdir(exist_ok=True)
    with Deduplicator(folder, near, threshold) as found:  # type: ignore[arg-type]
        for start in range(0, len(texts), 70):  # several batches, the last one smaller
            found.add(texts[start : start + 70])
        return found.find(np.array(rank or [0] * len(texts)))


def prose(draw: random.Random, num_words: int = 120) -> list[str]:
    return [f"word{draw.randrange(2000)}" for _ in range(num_words)]


def changed(draw: random.Random, words: list[str], num_changes: int) -> list[str]:
    words = list(words)
    for place in draw.sample(range(len(words)), num_changes):
        words[place] = f"other{draw.randrange(10**9)}"
    return words


def grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text)
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_normalised_texts_differ_in_more_than_newlines_and_trailing_white_space() -> None:
    assert normalise("  a \r\nb\t\rc\n\n") == "  a\nb\nc"
    assert normalise("a b") != normalise("a  b")


def test_the_first_exact_copy_is_kept(tmp_path: Path) -> None:
    found = copies(tmp_path, ["a\n", "b", "a", "a \r\n", "", "b", ""], near="off")
    assert found.exact_of.tolist() == [-1, -1, 0, 0, -1, 1, 4]


def test_5_gram_sets_are_the_ones_of_the_words() -> None:
    draw = random.Random(5)
    texts = ["a b c d", "", "x y z u v", "a a a a a a a a", *(" ".join(prose(draw, n)) for n in (5, 6, 50))]
    assert [len(s) for s in shingles(texts)] == [len(grams(text)) for text in texts]
    one, other = shingles(["a b c d e", "e d c b a"])
    assert set(one) != set(other)  # the order of words counts


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_clusters_are_those_of_all_pairs_compared(tmp_path: Path, threshold: float) -> None:
    draw = random.Random(7)
    texts: list[str] = []
    for _ in range(60):
        base = prose(draw, draw.choice([20, 120, 400]))
        texts += [" ".join(changed(draw, base, n)) for n in (0, 0, 1, 2, 4)]
    draw.shuffle(texts)
    found = copies(tmp_path, texts, threshold=threshold)

    kept = [i for i in range(len(texts)) if texts[i] not in texts[:i]]
    label = list(range(len(texts)))
    sets = [grams(text) for text in texts]
    for place, i in enumerate(kept):
        for j in kept[place + 1 :]:
            if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j]):
                old, new = sorted((label[i], label[j]), reverse=True)
                label = [new if x == old else x for x in label]
    assert sum(label[i] != i for i in kept) > 20 and found.exact_of.tolist().count(-1) == len(kept)
    assert found.clusters.tolist() == label
    assert found.near_of.tolist() == [-1 if label[i] == i else label[i] for i in range(len(texts))]
    assert found.num_near == sum(label[i] != i for i in kept)


def test_kept_together_drops_only_exact_copies(tmp_path: Path) -> None:
    draw = random.Random(1)
    base = prose(draw)
    texts = [
        " ".join(base),
        "something else altogether, of six words",
        " ".join(changed(draw, base, 1)),
        " ".join(base),
    ]
    found = copies(tmp_path, texts, near="keep-together")
    assert found.clusters.tolist() == [0, 1, 0, 3]
    assert found.exact_of.tolist() == [-1, -1, -1, 0] and (found.near_of == -1).all()


@pytest.mark.parametrize("near", ["drop", "keep-together"])
def test_a_test_record_pushes_out_its_copies_and_is_never_pushed_out(tmp_path: Path, near: str) -> None:
    draw = random.Random(2)
    base, second = prose(draw), prose(draw)
    near_copy = " ".join(changed(draw, base, 1))
    texts = [
        " ".join(base),
        " ".join(second),
        near_copy,
        " ".join(second),
        near_copy + " tail",
        " ".join(second),
    ]
    found = copies(tmp_path, texts, near=near, rank=[0, 0, 1, 1, 2, 1])
    assert found.exact_of.tolist() == [-1, 3, -1, -1, -1, -1]  # both copies within the eval source stay
    assert found.near_of.tolist() == [4, -1, 4, -1, -1, -1]


def test_short_texts_are_only_compared_exactly(tmp_path: Path) -> None:
    found = copies(
        tmp_path, ["one two three four", "one two three, four", "one two three four five", "+ - *"]
    )
    assert (found.exact_of == -1).all() and (found.near_of == -1).all()


def test_a_bucket_of_thousands_is_not_compared_pair_by_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(3)
    base = prose(draw, 400)
    texts = [" ".join(changed(draw, base, 1)) for _ in range(3000)]
    calls = []
    real = np.intersect1d
    monkeypatch.setattr(np, "intersect1d", lambda *a, **k: calls.append(1) or real(*a, **k))
    found = copies(tmp_path, texts)
    assert (found.clusters == 0).all() and found.num_near == 2999
    assert len(calls) < 10 * len(texts)


def test_unlike_texts_that_share_a_header_are_left_alone(tmp_path: Path) -> None:
    draw = random.Random(4)
    header = prose(draw, 60)
    texts = [" ".join(header + prose(draw, 60)) for _ in range(300)]
    found = copies(tmp_path, texts)
    assert found.num_clusters == 0 and (found.near_of == -1).all()


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_a_pair_at_the_threshold(threshold: float) -> None:
    number, rows = bands(threshold)
    assert number * rows <= 128
    assert 1 - (1 - threshold**rows) ** number >= 0.999
