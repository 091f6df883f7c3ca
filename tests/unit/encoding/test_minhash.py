"""Bands and buckets by hand."""

import numpy as np
import pytest

from luthier.encoding.minhash import NUM_HASHES, band_keys, bands, candidates, signatures


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(1.0, (1, 128)), (0.95, (10, 12)), (0.8, (25, 5)), (0.5, (64, 2)), (0.01, (128, 1))],
)
def test_the_longest_bands_that_find_a_pair(threshold: float, expected: tuple[int, int]) -> None:
    number, rows = bands(threshold)
    assert (number, rows) == expected and number * rows <= NUM_HASHES
    found = [n for n in range(2, NUM_HASHES + 1) if 1 - (1 - threshold**n) ** (NUM_HASHES // n) >= 0.999]
    assert rows == max(found, default=1)


def test_signatures_agree_as_sets_do() -> None:
    members = np.arange(1000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hashes = np.concatenate([members, members[500:], members[:500], members[:1]])
    found = signatures(hashes, np.array([0, 1000, 1500, 2000, 2001], np.uint64))
    assert found.shape == (4, NUM_HASHES) and found.dtype == np.uint64
    assert 0.35 < (found[0] == found[1]).mean() < 0.65 and (found[1] == found[2]).mean() < 0.05


def test_keys_are_equal_where_all_hashes_of_the_band_are() -> None:
    matrix = np.random.default_rng(0).integers(0, 2**63, (3, NUM_HASHES)).astype(np.uint64)
    matrix[1] = matrix[0]
    matrix[1, 5] ^= np.uint64(1)
    keys = list(band_keys(matrix, 3, 4))
    assert len(keys) == 3 and all(key.dtype == np.uint64 for key in keys)
    assert [bool(key[0] == key[1]) for key in keys] == [True, False, True]
    assert all(key[0] != key[2] for key in keys)
    same = np.ones((2, NUM_HASHES), np.uint64)
    assert len({int(key[0]) for key in band_keys(same, 4, 2)}) == 4, (
        "bands of the same hashes have keys of their own"
    )
    swapped = np.array([[1, 2], [2, 1]], np.uint64)
    (key,) = band_keys(swapped, 1, 2)
    assert key[0] != key[1]


def pairs(keys: list[int], alive: list[bool] | None = None) -> list[tuple[int, int]]:
    codes = candidates(np.array(keys), np.array(alive if alive is not None else [True] * len(keys), bool))
    return [(int(code) // len(keys), int(code) % len(keys)) for code in codes]


def test_sets_of_one_bucket_are_paired() -> None:
    assert pairs([7, 3, 7, 3, 7]) == [(0, 2), (0, 4), (1, 3), (2, 4)]
    assert pairs([7, 3, 7, 3, 7], [True, True, False, True, True]) == [(0, 4), (1, 3)]
    assert pairs([1, 2, 3]) == [] and pairs([1, 1], [False, False]) == []


def test_large_buckets_are_paired_with_their_first_and_with_the_one_before() -> None:
    first = {(i, j) for i in range(8) for j in range(i + 1, 12)}
    found = first | {(8, 9), (9, 10), (10, 11)}
    assert pairs([5] * 12) == sorted(found)
    assert pairs([1, 1, *[5] * 12]) == sorted({(0, 1)} | {(i + 2, j + 2) for i, j in found})
