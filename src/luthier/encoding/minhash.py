"""MinHash: which of many sets are likely to be similar, without comparing all pairs. Preparing and checking share it.

Source: Broder 1997, "On the resemblance and containment of documents" (MinHash); Leskovec, Rajaraman, Ullman 2020,
"Mining of Massive Datasets", section 3.4 (banding).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rensa import RMinHash

NUM_HASHES = 128
_SEED = 1
_RECALL = 0.999
_FIRST_MEMBERS = 8
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it permutes 64-bit numbers


def bands(threshold: float) -> tuple[int, int]:
    """The number of bands and the hashes in each: the longest bands that still find a pair at the threshold.

    A pair of similarity s shares at least one of b bands of r hashes with probability 1 - (1 - s^r)^b, here at
    least 0.999 at the threshold.
    """
    for rows in range(NUM_HASHES, 1, -1):
        number = NUM_HASHES // rows
        if 1 - (1 - threshold**rows) ** number >= _RECALL:
            return number, rows
    return NUM_HASHES, 1


def signatures(hashes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The signature of each set, uint64, shape (num_sets, 128); two agree in as large a share as the sets are similar.

    Args:
        hashes: Of the members of all sets one after the other, uint64, shape (num_members,).
        ends: Where each set ends in them, the first one being 0, uint64, shape (num_sets + 1,).
    """
    rows = RMinHash.digest_matrix_from_flat_token_hashes(hashes, ends, NUM_HASHES, _SEED).to_rows()
    return np.array(rows, np.uint64).reshape(len(ends) - 1, NUM_HASHES)


def band_keys(matrix: np.ndarray, num_bands: int, band_rows: int) -> Iterator[np.ndarray]:
    """A key of each set for each band, uint64, shape (num_sets,): equal where all hashes of the band are.

    Args:
        matrix: Signatures, shape (num_sets, 128).
        num_bands: What ``bands`` says first.
        band_rows: And second.
    """
    for number in range(num_bands):
        key = np.full(len(matrix), number, np.uint64)
        for column in range(number * band_rows, (number + 1) * band_rows):
            key = (key ^ matrix[:, column]) * _FACTOR
            key ^= key >> np.uint64(32)
        yield key


def candidates(keys: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Pairs of sets with the same key, as first * num_sets + second, sorted and unique; first is the smaller index.

    All pairs of a large bucket would be quadratic, so each member is paired with the first members of its bucket and
    with the one before it; another band may find what that misses.

    Args:
        keys: Of each set in one band, shape (num_sets,).
        alive: Which sets to look at, bool, shape (num_sets,).
    """
    indices = np.flatnonzero(alive)
    order = indices[np.argsort(keys[indices], kind="stable")]
    starts_bucket = np.concatenate([[True], np.diff(keys[order]) != 0])[: len(order)]
    places = np.arange(len(order))
    start = np.maximum.accumulate(np.where(starts_bucket, places, 0))
    codes = [np.empty(0, np.int64)]
    for member in range(_FIRST_MEMBERS):
        later = places - start > member
        codes.append(order[start[later] + member] * len(keys) + order[later])
    inner = places - start > _FIRST_MEMBERS
    codes.append(order[places[inner] - 1] * len(keys) + order[inner])
    return np.unique(np.concatenate(codes))
