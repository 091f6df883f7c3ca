"""Intervals and p-values against computations that are not ours."""

import numpy as np
import pytest
from scipy import stats

from luthier.evaluate.significance import Pair, Ratio, mcnemar, paired_bootstrap


def test_interval_is_that_of_scipy_when_each_row_is_a_group():
    generator = np.random.default_rng(7)
    base = generator.gamma(2.0, size=80)
    tuned = base * generator.uniform(0.5, 1.1, size=80)
    weights = generator.integers(1, 9, size=80).astype(float)
    [ours] = paired_bootstrap(
        [Pair(Ratio(base, weights), Ratio(tuned, weights))],
        [f"{i:03}" for i in range(80)],
        num_resamples=4000,
    )

    def statistic(base, tuned, weights, axis=-1):
        return (tuned.sum(axis) - base.sum(axis)) / weights.sum(axis)

    theirs = stats.bootstrap(
        (base, tuned, weights),
        statistic,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(0),  # the same stream of draws: equal, not only close
    ).confidence_interval
    assert ours.interval == (pytest.approx(theirs.low, rel=1e-9), pytest.approx(theirs.high, rel=1e-9))


def test_intervals_of_clustered_rows_hold_the_truth_as_often_as_they_say():
    # 40 groups of 5 rows that share a large group effect; the true difference is 1.
    generator = np.random.default_rng(1)
    groups = [str(i // 5) for i in range(200)]
    hits = {"groups": 0, "rows": 0}
    for _ in range(200):
        base = generator.normal(size=200)
        tuned = base + 1 + np.repeat(generator.normal(size=40), 5) + 0.1 * generator.normal(size=200)
        pair = Pair(Ratio.mean(base), Ratio.mean(tuned))
        for unit, names in (("groups", groups), ("rows", [str(i) for i in range(200)])):
            low, high = paired_bootstrap([pair], names, num_resamples=300)[0].interval
            hits[unit] += low <= 1 <= high
    assert 0.88 <= hits["groups"] / 200 <= 0.99
    assert hits["rows"] / 200 < 0.75  # what clustering is for


def test_mcnemar_on_a_published_table():
    # Fagerland, Lydersen and Laake 2013, table 1 (Bentur et al. 2009): 1 and 7 discordant pairs of 21; exact
    # conditional p-value 0.070 in their table 2.
    base = [True] + [False] * 7 + [True] + [False] * 12
    tuned = [False] + [True] * 7 + [True] + [False] * 12
    only_base, only_tuned, p_value = mcnemar(base, tuned)
    assert (only_base, only_tuned) == (1, 7)
    assert p_value == pytest.approx(0.070, abs=5e-4)
