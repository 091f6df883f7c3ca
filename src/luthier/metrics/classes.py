"""What a classifier's answers are worth. N rows, C classes; probabilities and labels are numpy arrays.

Figures equal scikit-learn's. Classes of which there is neither a row nor an answer count in no mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NUM_BINS = 15


def class_counts(labels: Ints, said: Ints, num_classes: int) -> Floats:
    """Right answers, rows and answers of each class, shape (3, C); of parts of the data they add up.

    Args:
        labels: Right class of each row, shape (N,).
        said: Class that was given, shape (N,).
        num_classes: C.
    """
    parts = (labels[labels == said], labels, said)
    return np.array([np.bincount(part, minlength=num_classes) for part in parts], np.float64)


def precision_recall_f1(hits: Floats, rows: Floats, answers: Floats) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of each class from its counts, shape (..., C) each; 0 where a ratio is undefined."""
    return _ratio(hits, answers), _ratio(hits, rows), _ratio(2 * hits, rows + answers)


def macro_f1(hits: Floats, rows: Floats, answers: Floats) -> float:
    """Mean F1 of the classes that have rows, whatever else is answered; NaN without rows.

    Classes without a row are left out, so that two models are measured over the same classes: scikit-learn's
    ``f1_score(average="macro", labels=numpy.unique(labels))``.
    """
    return float(macro_f1_of(hits, rows, answers))


def macro_f1_of(hits: Floats, rows: Floats, answers: Floats) -> Floats:
    """``macro_f1`` over the last axis."""
    f1 = precision_recall_f1(hits, rows, answers)[2]
    return _ratio((f1 * (rows > 0)).sum(-1), (rows > 0).sum(-1).astype(np.float64), empty=np.nan)


def weighted_f1(hits: Floats, rows: Floats, answers: Floats) -> float:
    """Mean F1 of the classes, each as often as it has rows; NaN without rows."""
    total = float(rows.sum())
    return float((precision_recall_f1(hits, rows, answers)[2] * rows).sum()) / total if total else np.nan


def micro_f1(hits: Floats, rows: Floats, answers: Floats) -> float:
    """F1 of all answers together: the accuracy where each row has one class and one answer; NaN without rows and answers."""
    total = float(rows.sum() + answers.sum())
    return 2 * float(hits.sum()) / total if total else np.nan


def top_k_accuracy(scores: Floats, labels: Ints, k: int) -> float:
    """Share of rows whose class is among the ``k`` best; of equal scores the higher class number counts as better.

    Args:
        scores: Shape (N, C).
        labels: Shape (N,).
        k: 1..C.
    """
    best = np.argsort(scores, axis=1, kind="stable")[:, ::-1][:, :k]
    return float((best == labels[:, None]).any(axis=1).mean())


def matthews(confusion: Floats | Ints) -> float:
    """Correlation of answers and classes, -1 to 1; 0 where one of them never changes.

    Args:
        confusion: Rows by class and answer, shape (C, C).

    Source: Gorodkin 2004, Computational Biology and Chemistry 28, eq. 8.
    """
    table = np.asarray(confusion)  # of thousands of classes too large for a copy
    total, right = float(table.sum()), float(np.trace(table))
    rows, answers = table.sum(1).astype(np.float64), table.sum(0).astype(np.float64)
    spread = (total**2 - answers @ answers) * (total**2 - rows @ rows)
    return float((right * total - rows @ answers) / np.sqrt(spread)) if spread > 0 else 0.0


def confusion_matrix(labels: Ints, said: Ints, num_classes: int) -> Ints:
    """Rows by class and answer, shape (C, C), 8 bytes each."""
    return np.bincount(labels * num_classes + said, minlength=num_classes**2).reshape(
        num_classes, num_classes
    )


def log_probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """Logarithms of the classes' probabilities, shape (N, C)."""
    found: Floats = log_softmax(np.asarray(logits, np.float64) / temperature, axis=-1)
    return found


def log_loss(log_probs: Floats, labels: Ints) -> float:
    """Mean negative log-probability of the right class, in nats."""
    return float(-log_probs[np.arange(len(labels)), labels].mean())


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers of similar confidence.

    Attributes:
        low, high: The confidences that fall into it: above ``low``, up to ``high``.
        count: Answers.
        confidence: Their mean confidence.
        accuracy: Share of them that are right.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def calibration(confidence: Floats, right: NDArray[np.bool_], num_bins: int = NUM_BINS) -> list[Bin]:
    """Answers in bins of equal width by confidence; empty ones left out.

    Args:
        confidence: Probability of each answer, shape (N,).
        right: Whether it is right, shape (N,).
        num_bins: Of the interval from 0 to 1.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    bins = []
    for place in np.unique(places):
        of = places == place
        low, high = float(edges[place]), float(edges[place + 1])
        bins.append(Bin(low, high, int(of.sum()), float(confidence[of].mean()), float(right[of].mean())))
    return bins


def expected_calibration_error(bins: list[Bin]) -> float:
    """Mean distance of confidence and accuracy over all answers, in [0, 1]; NaN without answers.

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.
    """
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / total if total else float("nan")


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """The number by which logits are divided for the least log loss, between 1/20 and 20; it changes no answer.

    Args:
        logits: Of held-out rows, shape (N, C).
        labels: Shape (N,).

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """

    def loss(log_temperature: float) -> float:
        return log_loss(log_probabilities(logits, float(np.exp(log_temperature))), labels)

    found = minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def fit_thresholds(logits: Floats, labels: Ints) -> Floats:
    """The probability of each class from which it is given, with the best F1 on held-out rows, shape (C,); 0.5 where no row has it.

    Args:
        logits: Shape (N, C).
        labels: 0 or 1, shape (N, C).
    """
    probabilities = expit(np.asarray(logits, np.float64))
    found = np.full(labels.shape[1], 0.5)
    for c in range(labels.shape[1]):
        total = labels[:, c].sum()
        if not total:
            continue
        order = np.argsort(-probabilities[:, c], kind="stable")
        sorted_p = probabilities[order, c]
        hits = np.cumsum(labels[order, c])
        ends = np.flatnonzero(np.append(sorted_p[1:] != sorted_p[:-1], True))  # equal ones are given together
        f1 = 2 * hits[ends] / (total + ends + 1)
        best = ends[int(np.argmax(f1))]
        below = sorted_p[best + 1] if best + 1 < len(sorted_p) else 0.0
        found[c] = (sorted_p[best] + below) / 2
    return found


def _ratio(numerator: Floats, denominator: Floats, empty: float = 0.0) -> Floats:
    some = denominator != 0
    found: Floats = np.where(some, numerator / np.where(some, denominator, 1), empty)
    return found
