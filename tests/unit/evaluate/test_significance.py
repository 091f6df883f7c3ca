import math
import time
import tracemalloc

import numpy as np
import pytest

from luthier.evaluate.significance import (
    Difference,
    Pair,
    Ratio,
    compare,
    mcnemar,
    paired_bootstrap,
    with_intervals,
)


def difference(base, tuned, groups, weights=None, transform=None, **options):
    weights = np.ones(len(groups)) if weights is None else weights
    [result] = paired_bootstrap(
        [Pair(Ratio(base, weights), Ratio(tuned, weights), transform)], groups, **options
    )
    return result


def test_a_metric_is_the_sum_over_rows_not_the_mean_of_rows():
    result = difference([10.0, 3.0], [2.0, 2.0], ["a", "b"], weights=[10.0, 1.0])
    assert (result.base, result.tuned) == (pytest.approx(13 / 11), pytest.approx(4 / 11))
    assert result.difference == pytest.approx(-9 / 11)
    # Two groups: the resamples are aa, ab and bb, and only they.
    assert result.interval == (pytest.approx(-1.0), pytest.approx(-0.8))


def test_groups_are_drawn_whole():
    # 500 copies of the same two rows: as rows they look certain, as two groups they are not.
    base, tuned, groups = [0.0, 1.0] * 500, [1.0, 1.0] * 500, ["a", "b"] * 500
    assert difference(base, tuned, groups).interval == (0.0, 1.0)
    low, high = difference(base, tuned, [str(i) for i in range(1000)]).interval
    assert 0.45 < low < 0.5 < high < 0.55


def test_perplexity_is_compared_after_exp():
    losses, weights, groups = [2.0, 6.0, 1.0], [1.0, 2.0, 1.0], ["a", "b", "c"]
    tuned = [1.0, 4.0, 1.5]
    result = difference(losses, tuned, groups, weights, transform=np.exp)
    assert result.difference == pytest.approx(math.exp(6.5 / 4) - math.exp(9 / 4))
    bottom = min(math.exp(t / w) - math.exp(b / w) for b, t, w in zip(losses, tuned, weights, strict=True))
    assert bottom - 1e-9 <= result.interval[0] < result.interval[1]


def test_degenerate_inputs_have_honest_answers():
    assert difference([], [], []) == Difference(None, None, None, None)
    assert difference([1.0, 2.0], [0.0, 1.0], ["a", "a"]) == Difference(1.5, 0.5, -1.0, None)
    assert difference([1.0] * 3, [0.0] * 3, ["a", "b", "c"]) == Difference(1.0, 0.0, -1.0, (-1.0, -1.0))
    assert difference([1.0, 1.0], [1.0, 1.0], ["a", "b"], weights=[0.0, 0.0]) == Difference(
        None, None, None, None
    )
    assert difference([1.0, 1.0], [math.nan, 1.0], ["a", "b"]) == Difference(1.0, None, None, None)
    assert difference([1e5, 1.0], [1.0, 1.0], ["a", "b"], transform=np.exp).base is None
    # A group without a byte of target says nothing by itself, and spoils nothing.
    assert difference([1.0, 1.0], [0.5, 0.0], ["a", "b"], weights=[1.0, 0.0]).interval == (-1.5, -0.5)


def test_a_single_model_has_the_interval_of_its_difference_to_nothing():
    groups, ratio = list("aabbcdef"), Ratio([3, 0, 1, 2, 5, 0, 1, 1], [4, 1, 2, 2, 5, 1, 3, 1])
    found = with_intervals({"share": ratio, "mean": Ratio.mean([1.0] * 8)}, groups, num_resamples=500, seed=3)
    zero = Pair(Ratio([0] * 8, ratio.denominators), ratio)
    [one] = paired_bootstrap([zero], groups, num_resamples=500, seed=3)
    assert found == {
        "share": {"value": 13 / 19, "interval": one.interval},
        "mean": {"value": 1.0, "interval": (1.0, 1.0)},
    }
    assert one.interval is not None and 0 < one.interval[0] < 13 / 19 < one.interval[1] < 1


def test_one_broken_metric_leaves_the_others_alone():
    good = Pair(Ratio.mean([0.0, 1.0, 0.0]), Ratio.mean([1.0, 1.0, 0.0]))
    bad = Pair(Ratio.mean([math.inf, 1.0, 0.0]), Ratio.mean([1.0, 1.0, 0.0]))
    alone, [_, beside] = (
        paired_bootstrap([good], ["a", "b", "c"]),
        paired_bootstrap([bad, good], ["a", "b", "c"]),
    )
    assert beside == alone[0]


def test_the_seed_decides():
    rows = np.random.default_rng(0).normal(size=(2, 50))
    groups = [str(i) for i in range(50)]
    assert difference(*rows, groups, seed=3) == difference(*rows, groups, seed=3)
    assert difference(*rows, groups, seed=3) != difference(*rows, groups, seed=4)


def test_rows_of_different_numbers_are_refused():
    with pytest.raises(ValueError, match="rows"):
        difference([1.0], [1.0], ["a", "b"])


def test_many_groups_take_little_time_and_memory():
    groups = [str(i) for i in range(20_000)]
    base, tuned = np.random.default_rng(0).normal(size=(2, len(groups)))
    tracemalloc.start()
    began = time.perf_counter()
    difference(base, tuned, groups, num_resamples=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6  # all draws at once would be 160 MB, and as much again for their counts
    assert time.perf_counter() - began < 20


def prediction(group, base, tuned):
    def side(nats, correct, exact):
        return {
            "loss_nats": nats,
            "weighted_nats": nats / 2,
            "weight": 2.0,
            "num_tokens": 4,
            "num_correct": correct,
            "scores": {"exact_match": exact, "edit_similarity": (1 + exact) / 2},
        }

    return {"group": group, "target_bytes": 8, "base": side(*base), "tuned": side(*tuned)}


def test_scores_of_predictions():
    predictions = [
        prediction("a", (8.0, 1, 0.0), (4.0, 2, 1.0)),
        prediction("a", (8.0, 1, 0.0), (8.0, 1, 0.0)),
        prediction("b", (4.0, 3, 1.0), (4.0, 4, 1.0)),
    ]
    scores = compare(predictions, 1000, seed=0)
    assert (scores["num_rows"], scores["num_groups"]) == (3, 2)
    metrics = scores["metrics"]
    assert list(metrics) == [
        "loss",
        "perplexity",
        "bits_per_byte",
        "token_accuracy",
        "exact_match",
        "edit_similarity",
    ]
    assert metrics["loss"] == {
        "base": pytest.approx(10 / 6),
        "tuned": pytest.approx(8 / 6),
        "difference": pytest.approx(-2 / 6),
        "interval": (pytest.approx(-0.5), 0.0),
        "better": "lower",
        "unit": "nats",
    }
    assert metrics["perplexity"]["tuned"] == pytest.approx(math.exp(8 / 6))
    assert metrics["bits_per_byte"]["base"] == pytest.approx(20 / math.log(2) / 24)
    assert metrics["token_accuracy"]["difference"] == pytest.approx(2 / 12)
    assert metrics["exact_match"]["better"] == "higher"
    assert scores["mcnemar"] == {"exact_match": {"only_base": 0, "only_tuned": 1, "p_value": 1.0}}


def test_scores_by_stratum_by_group_and_of_a_rule_without_a_model():
    predictions = [
        prediction("a", (8.0, 1, 0.0), (4.0, 2, 1.0)),
        prediction("a", (8.0, 1, 0.0), (8.0, 1, 0.0)),
        prediction("b", (4.0, 3, 1.0), (4.0, 4, 1.0)),
    ]
    for row, kind, copied in zip(predictions, ("x", "y", "x"), (1.0, 0.0, 0.0), strict=True):
        row["meta"] = {"strata": {"kind": kind}}
        row["baseline"] = {"output": "", "scores": {"exact_match": copied, "edit_similarity": 0.5}}
    scores = compare(predictions, 1000, seed=0)
    macro = scores["macro"]["exact_match"]  # group a: 0 -> 1/2, group b: 1 -> 1
    assert (macro["base"], macro["tuned"]) == (pytest.approx(0.5), pytest.approx(0.75))
    assert macro["interval"] == (0.0, pytest.approx(0.5))
    assert scores["baseline"] == {"exact_match": pytest.approx(1 / 3), "edit_similarity": 0.5}
    strata = scores["strata"]["kind"]
    assert {value: part["num_rows"] for value, part in strata.items()} == {"x": 2, "y": 1}
    assert (
        strata["x"]["metrics"]["exact_match"]["tuned"] == 1.0
        and strata["x"]["baseline"]["exact_match"] == 0.5
    )
    assert strata["y"]["metrics"]["exact_match"]["interval"] is None


def test_scores_without_generation_and_without_rows():
    row = prediction("a", (8.0, 1, 0.0), (4.0, 2, 1.0))
    for side in ("base", "tuned"):
        del row[side]["scores"]
    assert compare([row], 100, 0)["mcnemar"] == {}
    assert compare([], 100, 0)["metrics"]["loss"]["base"] is None


def test_mcnemar_counts_only_the_rows_that_differ():
    assert mcnemar([True, True, False, False], [True, False, True, False]) == (1, 1, 1.0)
    assert mcnemar([], []) == (0, 0, 1.0)
    assert mcnemar([True] * 5, [True] * 5) == (0, 0, 1.0)
    only_base, only_tuned, p_value = mcnemar([False] * 6, [True] * 6)
    assert (only_base, only_tuned, p_value) == (0, 6, 2 * 0.5**6)
