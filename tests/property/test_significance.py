"""What holds for every comparison of two models."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.evaluate.significance import Pair, Ratio, mcnemar, paired_bootstrap

FIGURE = st.floats(0, 50)
ROWS = st.lists(
    st.tuples(FIGURE, FIGURE, st.integers(1, 20), st.sampled_from("abcdef")), min_size=1, max_size=30
)


@given(ROWS)
@settings(max_examples=50)
def test_swapping_the_models_turns_signs_and_ends_round(rows):
    base, tuned, weights, groups = zip(*rows, strict=True)
    one, other = Ratio(base, weights), Ratio(tuned, weights)
    [there] = paired_bootstrap([Pair(one, other)], groups, num_resamples=200)
    [back] = paired_bootstrap([Pair(other, one)], groups, num_resamples=200)
    assert back.difference == -there.difference
    assert (back.base, back.tuned) == (there.tuned, there.base)
    if there.interval is None:
        assert back.interval is None and len(set(groups)) == 1
    else:
        assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]))


@given(ROWS)
@settings(max_examples=50)
def test_interval_lies_between_the_best_and_the_worst_group(rows):
    base, tuned, weights, groups = map(np.array, zip(*rows, strict=True))
    [result] = paired_bootstrap(
        [Pair(Ratio(base, weights), Ratio(tuned, weights))], list(groups), num_resamples=200
    )
    if result.interval is not None:
        ratios = [
            (tuned[groups == g].sum() - base[groups == g].sum()) / weights[groups == g].sum()
            for g in set(groups)
        ]
        low, high = result.interval
        assert min(ratios) - 1e-9 <= low <= high <= max(ratios) + 1e-9


@given(ROWS, st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_the_order_of_rows_changes_nothing(rows, random):
    def result(rows):
        base, tuned, weights, groups = zip(*rows, strict=True)
        return paired_bootstrap(
            [Pair(Ratio(base, weights), Ratio(tuned, weights))], groups, num_resamples=100
        )[0]

    shuffled = random.sample(rows, len(rows))
    there, back = result(rows), result(shuffled)
    assert back.difference == pytest.approx(there.difference, abs=1e-9)
    assert (back.interval is None) == (there.interval is None)
    if there.interval:
        assert back.interval == pytest.approx(there.interval, abs=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=200))
def test_mcnemar_swaps_with_the_models(pairs):
    base, tuned = [b for b, _ in pairs], [t for _, t in pairs]
    only_base, only_tuned, p_value = mcnemar(base, tuned)
    assert mcnemar(tuned, base) == (only_tuned, only_base, p_value)
    assert 0 <= p_value <= 1
    assert sum(base) - sum(tuned) == only_base - only_tuned
