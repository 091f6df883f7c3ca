"""How sure a difference between two models on the same rows is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack
from scipy.stats import binomtest

from luthier.metrics.classes import macro_f1_of

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
_TAIL = (1 - 0.95) / 2  # share of resamples on each side of an interval
# Draws held in memory at once, 8 bytes each, and as many counts.
_DRAWS_AT_ONCE = 1_000_000
_LOWER_IS_BETTER = {
    "loss": ("lower", "nats"),
    "perplexity": ("lower", ""),
    "bits_per_byte": ("lower", "bits"),
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """A metric of one model as rows give it: the sum of numerators over the sum of denominators.

    Loss is nats over weights, bits per byte is bits over bytes, token accuracy is right tokens over tokens.

    Attributes:
        numerators: Shape (row,).
        denominators: Shape (row,), at least 0; ones for a plain mean.
    """

    numerators: Sequence[float] | Floats
    denominators: Sequence[float] | Floats

    @classmethod
    def mean(cls, scores: Sequence[float]) -> Ratio:
        """The ratio that is the plain mean of one score a row."""
        return cls(scores, np.ones(len(scores)))


@dataclass(frozen=True, slots=True)
class Pair:
    """A metric of both models on the same rows in the same order.

    Attributes:
        base, tuned: The two.
        transform: Applied to each ratio before the difference, for example ``numpy.exp`` to go from loss to
            perplexity. Monotone, works on arrays.
    """

    base: Ratio
    tuned: Ratio
    transform: Callable[[Floats], Floats] | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of both models and of their difference.

    Attributes:
        base, tuned: The metric over all rows; None where it is not a finite number or nothing was measured.
        difference: ``tuned - base``, or None as above.
        interval: Lower and upper end of the difference's bootstrap interval; None where the data cannot tell
            (fewer than two groups).
    """

    base: float | None
    tuned: float | None
    difference: float | None
    interval: tuple[float, float] | None


def compare(
    predictions: Sequence[Mapping[str, Any]], num_resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Every metric of base and tuned model with the interval of its difference, in the form of ``scores.json``.

    Losses and token accuracy are ratios of sums over all rows, generated scores are means over rows. Bits per byte
    counts each trained token once, whatever its weight, the stop token included.

    Args:
        predictions: The objects of ``predictions.jsonl``.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        ``num_rows``, ``num_groups``, ``metrics`` and, where rows were generated, ``mcnemar``, ``macro`` (the generated scores
        as means over groups of their means) and ``baseline`` (their means for a rule without a model, if the task has one).
        Of classes: ``mcnemar``, and metrics with ``macro_f1`` over the classes and without what is counted by token.
        Where rows name ``strata`` in their ``meta``: ``strata``, name -> value -> the same of the rows that have it.
    """
    result = _compare(predictions, num_resamples, seed)
    strata: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for prediction in predictions:
        for name, value in prediction.get("meta", {}).get("strata", {}).items():
            strata.setdefault(name, {}).setdefault(str(value), []).append(prediction)
    if strata:
        result["strata"] = {
            name: {value: _compare(rows, num_resamples, seed) for value, rows in sorted(values.items())}
            for name, values in strata.items()
        }
    return result


def _compare(predictions: Sequence[Mapping[str, Any]], num_resamples: int, seed: int) -> dict[str, Any]:
    """As ``compare``, without strata."""

    def ratio(which: str, numerator: str, denominator: str, scale: float = 1.0) -> Ratio:
        of = [{**p[which], "target_bytes": p.get("target_bytes")} for p in predictions]
        return Ratio([row[numerator] / scale for row in of], [row[denominator] for row in of])

    def pair(*columns: Any, transform: Callable[[Floats], Floats] | None = None) -> Pair:
        return Pair(ratio("base", *columns), ratio("tuned", *columns), transform)

    of_classes = bool(predictions) and "labels" in predictions[0]
    if of_classes:
        pairs = {"loss": pair("loss_nats", "num_tokens")}
    else:
        pairs = {
            "loss": pair("weighted_nats", "weight"),
            "perplexity": pair("weighted_nats", "weight", transform=np.exp),
            "bits_per_byte": pair("loss_nats", "target_bytes", math.log(2)),
            "token_accuracy": pair("num_correct", "num_tokens"),
        }
    scores = {
        name: [[p[which]["scores"][name] for p in predictions] for which in ("base", "tuned")]
        for name in (predictions[0]["base"].get("scores", {}) if predictions else {})
    }
    pairs |= {name: Pair(Ratio.mean(base), Ratio.mean(tuned)) for name, (base, tuned) in scores.items()}
    groups = [p["group"] for p in predictions]
    sizes = Counter(groups)
    shares = [1 / sizes[group] for group in groups]
    macro = {
        name: Pair(
            Ratio([score * share for score, share in zip(base, shares, strict=True)], shares),
            Ratio([score * share for score, share in zip(tuned, shares, strict=True)], shares),
        )
        for name, (base, tuned) in (scores.items() if not of_classes else ())
    }
    differences = paired_bootstrap(
        [*pairs.values(), *macro.values()], groups, num_resamples=num_resamples, seed=seed
    )
    result: dict[str, Any] = {"num_rows": len(predictions), "num_groups": len(set(groups)), "metrics": {}}
    if of_classes:
        labels, base, tuned = hot(
            [[p["labels"], p["base"]["labels"], p["tuned"]["labels"]] for p in predictions]
        )
        f1 = paired_macro_f1(labels, base, tuned, groups, num_resamples=num_resamples, seed=seed)
        result["metrics"]["macro_f1"] = describe("macro_f1", f1)
    for name, difference in zip(pairs, differences, strict=False):
        result["metrics"][name] = describe(name, difference)
    if macro:
        result["macro"] = {
            name: asdict(difference)
            for name, difference in zip(macro, differences[len(pairs) :], strict=True)
        }
    rules = [p["baseline"]["scores"] for p in predictions if "baseline" in p]
    if rules:
        result["baseline"] = {name: fmean(rule[name] for rule in rules) for name in rules[0]}
    result["mcnemar"] = {}
    for name, columns in scores.items():
        if any(score not in (0, 1) for column in columns for score in column):
            continue
        base, tuned = ([score == 1 for score in column] for column in columns)
        only_base, only_tuned, p_value = mcnemar(base, tuned)
        result["mcnemar"][name] = {
            "only_base": only_base,
            "only_tuned": only_tuned,
            "p_value": p_value,
        }
    return result


def hot(names: Sequence[Sequence[Sequence[str]]]) -> list[csr_array]:
    """For each of several sides which classes it gives each row, sparse, shape (N, C) each.

    Args:
        names: Of each row what each side says of it.
    """
    index = {name: place for place, name in enumerate(sorted({n for row in names for of in row for n in of}))}
    sides = []
    for given in zip(*names, strict=True):
        ends = np.cumsum([0, *map(len, given)])
        places = np.array([index[name] for of in given for name in of], np.int64)
        sides.append(csr_array((np.ones(len(places), bool), places, ends), shape=(len(names), len(index))))
    return sides


def describe(name: str, difference: Difference) -> dict[str, Any]:
    """A metric as ``scores.json`` has it: with its unit, and whether more or less is better."""
    better, unit = _LOWER_IS_BETTER.get(name, ("higher", "share"))
    return {**asdict(difference), "better": better, "unit": unit}


def paired_bootstrap(
    pairs: Sequence[Pair],
    groups: Sequence[str],
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> list[Difference]:
    """The differences ``tuned - base`` of metrics with 95% percentile bootstrap intervals, clustered by group.

    Rows of one file or project rise and fall together, so whole groups are drawn with replacement; rows alone
    would make the interval too narrow. Both models and all metrics get the same draws. A resample's metric is its
    own sum of numerators over its own sum of denominators, so long rows count as they do in the metric itself.

    Args:
        pairs: The metrics.
        groups: Group of each row, shape (row,).
        num_resamples: Resamples, at least 1.
        seed: Same seed, same intervals.

    Returns:
        One a pair. Degenerate input is not dressed up: one group has no interval (nothing shows how groups vary), no
        rows have no figures, and groups that are all alike have an interval of no width. Resamples whose
        denominators sum to 0 are left out.

    Raises:
        ValueError: Numbers of rows differ.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 8 and 13; groups as units: Davison
        and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8, strategy 1.
    """
    columns = [
        column
        for pair in pairs
        for ratio in (pair.base, pair.tuned)
        for column in (ratio.numerators, ratio.denominators)
    ]
    if any(len(column) != len(groups) for column in columns):
        raise ValueError(f"{len(groups)} rows, but columns of {sorted({len(column) for column in columns})}")
    index, num_groups = _numbered(groups)
    # One row a group is all that a resample of groups needs, however many rows there are.
    sums_GC = np.zeros((num_groups, len(columns)))
    for place, column in enumerate(columns):
        sums_GC[:, place] = np.bincount(index, weights=np.asarray(column, np.float64), minlength=num_groups)
    totals_C = sums_GC.sum(axis=0)
    resampled_RC = _resampled_sums(sums_GC, num_resamples, seed) if num_groups > 1 else None
    differences = []
    for i, pair in enumerate(pairs):
        own = slice(4 * i, 4 * i + 4)
        base, tuned = _values(totals_C[own], pair.transform)
        interval = None
        if resampled_RC is not None and np.isfinite(tuned - base):
            bases, tuneds = _values(resampled_RC[:, own], pair.transform)
            interval = _interval(tuneds - bases)
        differences.append(Difference(_finite(base), _finite(tuned), _finite(tuned - base), interval))
    return differences


def with_intervals(
    ratios: Mapping[str, Ratio], groups: Sequence[str], *, num_resamples: int = 10_000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Each metric of a single model as ``value``, with its bootstrap ``interval``: against a model that always has 0.

    Args:
        ratios: The metrics, by name.
        groups: As in ``paired_bootstrap``.
        num_resamples: As there.
        seed: As there.
    """
    pairs = [Pair(Ratio.mean([0.0] * len(groups)), ratio) for ratio in ratios.values()]
    found = paired_bootstrap(pairs, groups, num_resamples=num_resamples, seed=seed)
    return {
        name: {"value": one.tuned, "interval": one.interval} for name, one in zip(ratios, found, strict=True)
    }


def paired_macro_f1(
    labels: Bools | csr_array,
    base: Bools | csr_array,
    tuned: Bools | csr_array,
    groups: Sequence[str],
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Macro F1 of two classifiers over the classes that have rows, and their difference with its bootstrap interval.

    Resamples as ``paired_bootstrap``: whole groups, the same draws for both. Each has its own counts of right answers, rows
    and answers by class; a class that none of its rows has is left out of its mean.

    Args:
        labels: Which classes each row has, shape (N, C); sparse where C is large, as ``hot`` makes them.
        base: Which ones one classifier gives, same shape.
        tuned: Those of the other.
        groups: Group of each row.
        num_resamples: As in ``paired_bootstrap``.
        seed: As there.
    """
    num_classes = labels.shape[1]
    index, num_groups = _numbered(groups)
    # Of each group: rows, answers and right answers by class. Nearly all are zero, so they are never written out.
    rows_NC, base_NC, tuned_NC = (csr_array(side).astype(np.float64) for side in (labels, base, tuned))
    right_NC = [of.multiply(rows_NC) for of in (base_NC, tuned_NC)]
    columns_NC = hstack([rows_NC, base_NC, right_NC[0], tuned_NC, right_NC[1]], format="csr")
    member_GN = csr_array(
        (np.ones(len(groups)), (index, np.arange(len(groups)))), shape=(num_groups, len(groups))
    )
    sums_GC = csr_array(member_GN @ columns_NC)

    def values(sums_RC: Floats) -> tuple[Floats, Floats]:
        rows, of_base, right_base, of_tuned, right_tuned = np.split(sums_RC, 5, axis=-1)
        return macro_f1_of(right_base, rows, of_base), macro_f1_of(right_tuned, rows, of_tuned)

    assert sums_GC.shape == (num_groups, 5 * num_classes)
    value_base, value_tuned = values(np.asarray(sums_GC.sum(axis=0)))
    interval = None
    if num_groups > 1:
        differences = []
        for counts_BG in _draws(num_groups, num_resamples, seed):
            for part in np.array_split(counts_BG, -(-counts_BG.size // (64 * num_groups))):
                bases, tuneds = values((sums_GC.T @ part.T).T)
                differences.append(tuneds - bases)
        interval = _interval(np.concatenate(differences))
    difference = value_tuned - value_base
    return Difference(_finite(value_base), _finite(value_tuned), _finite(difference), interval)


def _numbered(groups: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """The number of each row's group, and how many there are."""
    # Sorted, so that the order of rows changes nothing; not numpy.unique, whose strings lose trailing NULs.
    names = {name: place for place, name in enumerate(sorted(set(groups)))}
    return np.array([names[group] for group in groups], dtype=np.int64), len(names)


def _resampled_sums(sums_GC: Floats, num_resamples: int, seed: int) -> Floats:
    """Column sums of each resample, shape (num_resamples, columns)."""
    with np.errstate(invalid="ignore"):  # an infinite loss makes its own column NaN, and only that
        return np.concatenate([counts @ sums_GC for counts in _draws(len(sums_GC), num_resamples, seed)])


def _draws(num_groups: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each group is drawn in each resample, shape (block, group), in blocks so that memory stays flat."""
    generator = np.random.default_rng(seed)
    block = max(1, _DRAWS_AT_ONCE // num_groups)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        draws_BG = generator.integers(0, num_groups, size=(size, num_groups))
        draws_BG += np.arange(size)[:, None] * num_groups
        yield np.bincount(draws_BG.ravel(), minlength=size * num_groups).reshape(size, num_groups)


def _values(sums: Floats, transform: Callable[[Floats], Floats] | None) -> tuple[Floats, Floats]:
    """The metric of base and of tuned from their four sums, shape (..., 4)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        base, tuned = sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]
        if transform is not None:
            base, tuned = transform(base), transform(tuned)
        return np.where(np.isfinite(base), base, np.nan), np.where(np.isfinite(tuned), tuned, np.nan)


def _interval(differences: Floats) -> tuple[float, float] | None:
    measured = differences[np.isfinite(differences)]
    if not len(measured):
        return None
    low, high = np.quantile(measured, [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def _finite(value: Floats) -> float | None:
    return float(value) if np.isfinite(value) else None


def mcnemar(base: Sequence[bool], tuned: Sequence[bool]) -> tuple[int, int, float]:
    """Rows that only the base model gets right, only the tuned one, and the exact two-sided p-value.

    Under the null hypothesis a row on which exactly one model is right is as likely to be the one's as the other's.
    Rows are taken as independent; where several come from one file, read the clustered interval of
    ``paired_bootstrap`` first.

    Args:
        base: Whether the base model is right, shape (row,).
        tuned: Whether the tuned model is right, same rows.

    Returns:
        ``(only_base, only_tuned, p_value)``; the p-value is 1 when the models never differ.

    Source: McNemar 1947, Psychometrika 12; exact binomial form: Fagerland, Lydersen and Laake 2013, BMC Medical
        Research Methodology 13:91, eq. 2.
    """
    pairs = list(zip(base, tuned, strict=True))
    only_base = sum(bool(b) and not t for b, t in pairs)
    only_tuned = sum(bool(t) and not b for b, t in pairs)
    if only_base + only_tuned == 0:
        return 0, 0, 1.0
    return only_base, only_tuned, float(binomtest(only_base, only_base + only_tuned, 0.5).pvalue)
