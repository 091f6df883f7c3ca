"""Exact and near copies among records: found by hashes on disk, verified, and left out or kept together.

Memory is flat but for some 60 bytes a record; signatures and 5-grams lie in files of a working folder.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rensa import RMinHash

from luthier.encoding.minhash import band_keys, bands, candidates, signatures

_NGRAM = 5
_WORD = re.compile(r"\w+")
_FACTORS = (
    np.array(  # odd constants: multiplying by them permutes 64-bit numbers, so the order of words counts
        [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F],
        np.uint64,
    )
)


@dataclass(frozen=True)
class Copies:
    """What became of each record, shape (num_records,).

    Attributes:
        exact_of: Index of the record that this one is dropped as an exact copy of; -1 for the others.
        near_of: The same for near copies.
        clusters: Number of the cluster of near copies; a record without any has a number of its own.
        num_near: Records that are near copies of another, kept or not.
        num_clusters: Clusters of two records or more.
    """

    exact_of: np.ndarray
    near_of: np.ndarray
    clusters: np.ndarray
    num_near: int
    num_clusters: int


def normalise(text: str) -> str:
    """The text with newlines of one style and without trailing white space, of lines and of the whole."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).rstrip()


def shingles(texts: Sequence[str]) -> list[np.ndarray]:
    """The set of word 5-grams of each text as sorted hashes, uint64; empty for texts of fewer than 5 words."""
    words = [_WORD.findall(text) for text in texts]
    hashes = np.array(RMinHash.hash_token_sets([[word for text in words for word in text]])[0], np.uint64)
    if len(hashes) < _NGRAM:
        return [np.empty(0, np.uint64) for _ in texts]
    grams = np.zeros(len(hashes) - _NGRAM + 1, np.uint64)
    for place, factor in enumerate(_FACTORS):
        mixed = (hashes[place : place + len(grams)] + np.uint64(place)) * factor
        grams = grams * _FACTORS[0] + (mixed ^ (mixed >> np.uint64(29)))
    starts = np.cumsum([0, *map(len, words)])
    return [
        np.unique(grams[start : max(start, end - _NGRAM + 1)])
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]


class Deduplicator:
    """Takes texts in order, batch by batch, and says in the end which are copies.

    Args:
        folder: An empty folder for working files, which the caller removes.
        near: Whether near copies are kept once, kept in one split, or not looked for.
        threshold: Jaccard similarity of the sets of word 5-grams from which two texts are near copies.
    """

    def __init__(self, folder: Path, near: Literal["drop", "keep-together", "off"], threshold: float) -> None:
        self._folder, self._near, self._threshold = folder, near, threshold
        self._exact = (array("Q"), array("Q"))
        self._gram_ends = array("Q", [0])
        self._num_bands, self._band_rows = bands(threshold)
        self._open = ExitStack()
        if near != "off":
            names = ["grams", *(f"band-{i}" for i in range(self._num_bands))]
            self._grams, *self._files = (
                self._open.enter_context(open(folder / name, "wb"))  # noqa: SIM115  # closed by __exit__
                for name in names
            )

    def __enter__(self) -> Deduplicator:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, texts: Sequence[str]) -> None:
        """Takes the next texts."""
        plain = [normalise(text) for text in texts]
        for text in plain:
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
            for place, half in enumerate(self._exact):
                half.append(int.from_bytes(digest[8 * place : 8 * place + 8], "big"))
        if self._near == "off" or not texts:
            return
        sets = shingles(plain)
        ends = np.cumsum([0, *map(len, sets)]).astype(np.uint64)
        flat = np.concatenate(sets)
        flat.tofile(self._grams)
        self._gram_ends.extend((ends[1:] + np.uint64(self._gram_ends[-1])).tolist())
        keys = band_keys(signatures(flat, ends), self._num_bands, self._band_rows)
        for key, file in zip(keys, self._files, strict=True):
            key.tofile(file)

    def find(self, rank: np.ndarray, progress: Callable[[int, int], None] | None = None) -> Copies:
        """Which of the texts are copies, and of which.

        Of a cluster of copies the first is kept. Records of a higher rank come before those of a lower one and, as a
        source of its own fills their split, are all kept: they only push out the lower ones.

        Args:
            rank: Of each record, shape (num_records,): 0 for those that are split by shares.
            progress: Called with the bands done and all of them.
        """
        identity = np.arange(len(self._exact[0]))
        exact = _label(np.array(self._exact[0], np.uint64), np.array(self._exact[1], np.uint64))
        exact_of = _push_out(exact, rank, keep_all=False)
        if self._near == "off":
            return Copies(exact_of, np.full(len(identity), -1), identity, 0, 0)
        self._open.close()
        clusters = self._clusters(exact_of < 0, progress)
        _, sizes = np.unique(clusters, return_counts=True)
        near_of = _push_out(clusters, rank, keep_all=self._near == "keep-together")
        near_of[exact_of >= 0] = -1
        return Copies(exact_of, near_of, clusters, int((sizes - 1).sum()), int((sizes > 1).sum()))

    def _clusters(self, alive: np.ndarray, progress: Callable[[int, int], None] | None) -> np.ndarray:
        """The first member of each record's cluster of near copies, shape (num_records,)."""
        parent = np.arange(len(alive))

        def root(index: int) -> int:
            while parent[index] != index:
                parent[index] = index = parent[parent[index]]
            return index

        ends = np.array(self._gram_ends, np.int64)
        alive = alive & (np.diff(ends) > 0)
        if not alive.any():
            return parent
        grams = np.memmap(self._folder / "grams", np.uint64, "r")
        rejected = np.empty(0, np.int64)
        for number in range(self._num_bands):
            found = candidates(np.fromfile(self._folder / f"band-{number}", np.uint64), alive)
            found = np.setdiff1d(found, rejected, assume_unique=True)
            failed = []
            for code in found.tolist():
                first, second = divmod(code, len(alive))
                one, other = root(first), root(second)
                if one == other:
                    continue
                a, b = grams[ends[first] : ends[first + 1]], grams[ends[second] : ends[second + 1]]
                if _similar(a, b, self._threshold):
                    parent[max(one, other)] = min(one, other)  # the root of a cluster is its first member
                else:
                    failed.append(code)
            rejected = np.union1d(rejected, np.array(failed, np.int64))
            if progress:
                progress(number + 1, self._num_bands)
        return np.array([root(index) for index in range(len(parent))])


def _similar(a: np.ndarray, b: np.ndarray, threshold: float) -> bool:
    if min(len(a), len(b)) < threshold * max(len(a), len(b)):
        return False  # the union is at least as large as the larger set
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return bool(shared >= threshold * (len(a) + len(b) - shared))


def _label(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The index of the first record with the same 128-bit hash, shape (num_records,)."""
    order = np.lexsort((low, high))  # stable, so that equal ones stay in their order
    new = np.concatenate([[True], (np.diff(high[order]) != 0) | (np.diff(low[order]) != 0)])[: len(order)]
    labels = np.empty(len(order), np.int64)
    labels[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    return labels


def _push_out(labels: np.ndarray, rank: np.ndarray, *, keep_all: bool) -> np.ndarray:
    """The record that each one gives way to, or -1: to the first of the highest rank among those of its label."""
    order = np.lexsort((np.arange(len(labels)), -rank.astype(np.int64), labels))
    new = np.concatenate([[True], np.diff(labels[order]) != 0])[: len(order)]
    best = np.empty(len(labels), np.int64)
    best[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    stays = rank == rank[best]
    if not keep_all:
        stays &= (rank > 0) | (best == np.arange(len(labels)))
    return np.where(stays, -1, best)
