"""The baseline of classification: logistic regression over hashed n-grams of tokens, on the same rows as the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import expit, log_expit, log_softmax, softmax

from luthier.records import Row

Floats = NDArray[np.float32]

LONGEST = 3
NUM_BUCKETS = 1 << 22
# Those that the most training rows have; what a single one has says nothing about others.
MOST_FEATURES = 1 << 17
MOST_WEIGHTS = 1 << 28  # of all classes: four arrays of them are 4 GiB
LEAST_ROWS = 2
# More rows than this add little to so plain a model, and hours to its training.
MOST_ROWS = 100_000
_BATCH_ROWS = 256
_MOST_EPOCHS = 40
_PATIENCE = 2
_RATE = 1.0
# Odd numbers that spread token ids over 64 bits, one for each place in an n-gram.
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)

DESCRIPTION = f"logistic regression over hashed 1- to {LONGEST}-grams of tokens"


def features(rows: Iterable[Row]) -> csr_array:
    """The n-grams of each row's prompt: 1 + ln(count), each row of length 1; shape (num_rows, NUM_BUCKETS)."""
    starts, columns, values = [0], [np.empty(0, np.int32)], [np.empty(0, np.float32)]
    for row in rows:
        ids = np.asarray(row.input_ids[: row.num_prompt_tokens])
        found, counts = np.unique(_hashes(ids), return_counts=True)
        weights = 1 + np.log(counts)
        columns.append(found.astype(np.int32))
        values.append((weights / np.sqrt((weights**2).sum())).astype(np.float32))
        starts.append(starts[-1] + len(found))
    parts = (np.concatenate(values), np.concatenate(columns), np.array(starts))
    return csr_array(parts, shape=(len(starts) - 1, NUM_BUCKETS))


def _hashes(ids: NDArray[np.int32]) -> NDArray[np.int64]:
    wide = ids.astype(np.uint64) + np.uint64(1)
    found = []
    for length in range(1, min(LONGEST, len(ids)) + 1):
        total = np.full(len(ids) - length + 1, np.uint64(length))
        for place in range(length):
            total = (total ^ (wide[place : len(ids) - length + 1 + place] * _MIX[place])) * _MIX[0]
        found.append((total >> np.uint64(42)).astype(np.int64))  # 22 bits
    return np.concatenate(found)


class NGrams:
    """A fitted baseline.

    Attributes:
        num_rows: Rows that it was trained on.
        epochs: Passes over them; chosen by the loss on the eval rows.
    """

    def __init__(self, num_classes: int, *, several: bool) -> None:
        self._several = several
        self._kept_F = np.empty(0, np.int64)
        self._weights_FC = np.empty((0, num_classes), np.float32)
        self._bias_C = np.zeros(num_classes, np.float32)
        self.num_rows = self.epochs = 0

    def fit(
        self,
        rows: Sequence[Row],
        labels: NDArray[np.int64],
        eval_rows: Sequence[Row],
        eval_labels: NDArray[np.int64],
        seed: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> NGrams:
        """Trains by AdaGrad until the loss on the eval rows, or without any on the rows themselves, no longer falls.

        Args:
            rows: Training rows.
            labels: Shape (num_rows,), or with several (num_rows, C).
            eval_rows: Held-out rows; may be none.
            eval_labels: Theirs.
            seed: Of the order of rows.
            progress: Called with passes done and passes at most.

        Source: Duchi, Hazan and Singer 2011, Journal of Machine Learning Research 12.
        """
        order = np.random.default_rng(seed).permutation(len(rows))[:MOST_ROWS]
        whole, targets = features(rows[int(i)] for i in np.sort(order)), labels[np.sort(order)]
        having = np.bincount(whole.indices, minlength=NUM_BUCKETS)
        room = min(MOST_FEATURES, MOST_WEIGHTS // len(self._bias_C))
        most = np.argsort(-having, kind="stable")[:room]
        self._kept_F = np.sort(most[having[most] >= min(LEAST_ROWS, len(order))])
        self._weights_FC = np.zeros((len(self._kept_F), len(self._bias_C)), np.float32)
        train = self._select(whole)
        held, held_targets = (
            (self._select(features(eval_rows)), eval_labels) if len(eval_rows) else (train, targets)
        )
        self.num_rows = len(order)
        squares_FC, squares_C = np.full_like(self._weights_FC, 1e-3), np.full_like(self._bias_C, 1e-3)
        best, kept, without_better = np.inf, (self._weights_FC.copy(), self._bias_C.copy()), 0
        for epoch in range(1, _MOST_EPOCHS + 1):
            generator = np.random.default_rng([seed, epoch])
            # Of few rows smaller batches, so that there are steps enough.
            size = int(np.clip(train.shape[0] // 50, 16, _BATCH_ROWS))
            for batch in _batches(generator.permutation(train.shape[0]), size):
                part = train[batch]
                used, local = np.unique(part.indices, return_inverse=True)
                small = csr_array((part.data, local, part.indptr), shape=(len(batch), len(used)))
                error_BC = self._error(small @ self._weights_FC[used] + self._bias_C, targets[batch])
                gradient_UC = small.T @ error_BC
                squares_FC[used] += gradient_UC**2
                self._weights_FC[used] -= _RATE * gradient_UC / np.sqrt(squares_FC[used])
                gradient_C = error_BC.sum(0)
                squares_C += gradient_C**2
                self._bias_C -= _RATE * gradient_C / np.sqrt(squares_C)
            progress(epoch, _MOST_EPOCHS)
            loss = self._loss(self._logits(held), held_targets)
            if loss < best:
                best, kept, without_better = loss, (self._weights_FC.copy(), self._bias_C.copy()), 0
                self.epochs = epoch
            else:
                without_better += 1
            if without_better == _PATIENCE:
                break
        self._weights_FC, self._bias_C = kept
        return self

    def logits(self, rows: Sequence[Row]) -> Floats:
        """What it says of rows, shape (num_rows, C)."""
        parts = [
            self._logits(self._select(features(rows[int(i)] for i in batch)))
            for batch in _batches(np.arange(len(rows)))
        ]
        return np.concatenate([np.empty((0, len(self._bias_C)), np.float32), *parts])

    def _select(self, found: csr_array) -> csr_array:
        """The columns that are kept."""
        place_of = np.full(NUM_BUCKETS, -1, np.int32)
        place_of[self._kept_F] = np.arange(len(self._kept_F))
        places = place_of[found.indices]
        ends = np.concatenate([[0], np.cumsum(places >= 0)])[found.indptr]
        parts = (found.data[places >= 0], places[places >= 0], ends)
        return csr_array(parts, shape=(found.shape[0], len(self._kept_F)))

    def _logits(self, found: csr_array) -> Floats:
        logits: Floats = found @ self._weights_FC + self._bias_C
        return logits

    def _error(self, logits_BC: Floats, targets: NDArray[np.int64]) -> Floats:
        """Gradient of the mean loss by the logits."""
        if self._several:
            error = expit(logits_BC) - targets
        else:
            error = softmax(logits_BC, axis=1)
            error[np.arange(len(targets)), targets] -= 1
        return np.asarray(error / len(targets), np.float32)

    def _loss(self, logits_BC: Floats, targets: NDArray[np.int64]) -> float:
        if self._several:
            return float(-(targets * log_expit(logits_BC) + (1 - targets) * log_expit(-logits_BC)).mean())
        return float(-log_softmax(logits_BC, axis=1)[np.arange(len(targets)), targets].mean())


def _batches(order: NDArray[np.int64], size: int = _BATCH_ROWS) -> Iterator[NDArray[np.int64]]:
    return (order[start : start + size] for start in range(0, len(order), size))
