"""What names alone give away: a classifier that sees nothing of code but its identifiers, judged on groups it has not seen.

N functions, F features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit, log_expit

from luthier.encoding.anonymous import identifiers
from luthier.encoding.lexer import Language
from luthier.records import Record
from luthier.sources.vulnerable import FIXED, VULNERABLE, Vulnerable

Floats = NDArray[np.float64]

CHANCE = 0.5
NUM_FOLDS = 5
_MOST_FIXES = 4000
_FEWEST_GROUPS = 10
_PENALTY = 1.0
_NUM_RESAMPLES = 2000
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True, slots=True)
class Probe:
    """How well names alone tell vulnerable functions from fixed ones.

    Attributes:
        accuracy: Mean of the shares of vulnerable and of fixed functions that are told right; chance is 0.5.
        interval: 95%, over groups.
        num_functions: Told apart.
        num_groups: That they are of.
    """

    accuracy: float
    interval: tuple[float, float]
    num_functions: int
    num_groups: int

    @property
    def is_chance(self) -> bool:
        """Whether the interval holds chance."""
        return self.interval[0] <= CHANCE <= self.interval[1]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.accuracy:.1%} ({low:.1%} to {high:.1%})"


def probe(source: Vulnerable, seed: int = 0) -> Probe | None:
    """The probe of a source's fixes, as they are and cleaned or not as the source says; None for too few groups.

    Args:
        source: Of fixes or functions.
        seed: Of the folds and of the resamples.
    """
    texts, labels, groups = functions_of(source)
    if len(set(groups)) < _FEWEST_GROUPS:
        return None
    return judged([identifiers(*text) for text in texts], labels, groups, seed)


def functions_of(source: Vulnerable) -> tuple[list[tuple[str, Language]], list[bool], list[str]]:
    """Both functions of each fix, of 4,000 fixes at most: with their language, whether they are vulnerable, and their group."""
    texts: list[tuple[str, Language]] = []
    labels, groups = [], []
    for item in source.records():
        if not isinstance(item, Record):
            continue
        language = cast(Language, item.fields["language"])
        sides = (
            {"before": VULNERABLE, "after": FIXED}
            if source.rows == "fixes"
            else {"text": item.fields["label"]}
        )
        for column, label in sides.items():
            texts.append((item.fields[column], language))
            labels.append(label == VULNERABLE)
            groups.append(item.group)
        if len(texts) >= 2 * _MOST_FIXES:
            break
    return texts, labels, groups


def judged(
    names: Sequence[Sequence[str]], labels: Sequence[bool], groups: Sequence[str], seed: int = 0
) -> Probe:
    """A logistic regression over which names, and which words in names, a function has; judged by cross-validation over groups.

    Args:
        names: Of each function.
        labels: Whether it is vulnerable; shape (N,).
        groups: What never stands on both sides of a fold; shape (N,).
        seed: Of the folds and of the resamples.
    """
    features_NF = _features(names)
    labels_N = np.array(labels, bool)
    order = {group: place for place, group in enumerate(sorted(set(groups)))}
    groups_N = np.array([order[group] for group in groups])
    fold_of = np.random.default_rng(seed).permutation(len(order)) % NUM_FOLDS
    folds_N = fold_of[groups_N]
    right_N = np.zeros(len(labels_N))
    for fold in range(NUM_FOLDS):
        train, held = folds_N != fold, folds_N == fold
        if held.any():
            logits = _fitted(features_NF[train], labels_N[train], features_NF[held])
            right_N[held] = np.where(logits == 0, 0.5, (logits > 0) == labels_N[held])
    # Of each group: right ones and all, vulnerable and fixed.
    columns = [right_N * labels_N, labels_N, right_N * ~labels_N, ~labels_N]
    sums_GC = np.stack([np.bincount(groups_N, weights=c, minlength=len(order)) for c in columns], axis=1)
    counts_RG = np.random.default_rng(seed).multinomial(
        len(order), np.full(len(order), 1 / len(order)), size=_NUM_RESAMPLES
    )
    low, high = np.nanquantile(_accuracy(counts_RG.astype(np.float64) @ sums_GC), [0.025, 0.975])
    whole = float(_accuracy(sums_GC.sum(axis=0)))
    return Probe(whole, (float(low), float(high)), len(labels_N), len(order))


def _features(names: Sequence[Sequence[str]]) -> csr_array:
    """Which names, and which words of names, each function has, and not how many; shape (N, F)."""
    columns: dict[str, int] = {}
    starts, places = [0], []
    for of_one in names:
        found = {f"name {name}" for name in of_one}
        found |= {f"word {word.lower()}" for name in of_one for word in _WORD.findall(name)}
        places += sorted(columns.setdefault(feature, len(columns)) for feature in found)
        starts.append(len(places))
    return csr_array((np.ones(len(places)), places, starts), shape=(len(names), max(1, len(columns))))


def _fitted(train_NF: csr_array, labels_N: NDArray[np.bool_], held_NF: csr_array) -> Floats:
    """Logits of held-out functions, shape (N,); the two labels weigh the same, whatever their counts."""
    signs_N = np.where(labels_N, 1.0, -1.0)
    weights_N = np.where(labels_N, 0.5 / max(1, labels_N.sum()), 0.5 / max(1, (~labels_N).sum()))
    penalty = _PENALTY / len(labels_N)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        weights_F, bias = parameters[:-1], parameters[-1]
        margins_N = signs_N * (train_NF @ weights_F + bias)
        value = -(weights_N * log_expit(margins_N)).sum() + penalty / 2 * (weights_F**2).sum()
        slopes_N = -weights_N * signs_N * expit(-margins_N)
        return float(value), np.append(train_NF.T @ slopes_N + penalty * weights_F, slopes_N.sum())

    found: Any = minimize(
        loss, np.zeros(train_NF.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 300}
    )
    return np.asarray(held_NF @ found.x[:-1] + found.x[-1])


def _accuracy(sums: Floats) -> Floats:
    """The mean of both shares from their sums, shape (..., 4)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((sums[..., 0] / sums[..., 1] + sums[..., 2] / sums[..., 3]) / 2)
