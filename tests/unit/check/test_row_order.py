import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from tests.fixtures.given_rows import GivenRows, row

from luthier import registry
from luthier.check.context import Skip
from luthier.records import Finding


def check(context: GivenRows) -> list[Finding]:
    return list(registry.lookup("check", "row-order", "test")(context))


def module() -> Any:
    registry.lookup("check", "row-order", "test")
    import sys

    return sys.modules["luthier.check.checks.row_order"]


@pytest.mark.parametrize("counts", [(3, 4), (2, 2, 3), (1, 2, 4), (1, 1, 5), (2, 2, 2)])
def test_mean_and_spread_are_those_over_all_orders(counts: tuple[int, ...]) -> None:
    values = [kind for kind, count in enumerate(counts) for _ in range(count)]
    runs = [1 + sum(a != b for a, b in itertools.pairwise(order)) for order in itertools.permutations(values)]
    found = module()._runs(np.array(values))
    assert found.count == len(counts) and found.longest == max(counts)
    assert found.expected == pytest.approx(np.mean(runs))
    assert found.deviation == pytest.approx(np.std(runs))


def test_two_kinds_give_the_formula_of_wald_and_wolfowitz() -> None:
    n1, n2 = 37, 81
    values = np.array([0] * n1 + [1] * n2)
    found = module()._runs(values)
    mean = 2 * n1 * n2 / (n1 + n2) + 1
    assert found.expected == pytest.approx(mean)
    assert found.deviation**2 == pytest.approx((mean - 1) * (mean - 2) / (n1 + n2 - 1))


@pytest.mark.parametrize("values", [[5] * 40, list(range(40))])
def test_no_order_can_be_told_where_all_are_alike_or_differ(values: list[int]) -> None:
    assert module()._runs(np.array(values)).deviation == 0


@pytest.mark.parametrize("num_kinds", [2, 5, 40])
def test_shuffled_rows_are_never_called_sorted(tmp_path: Path, num_kinds: int) -> None:
    for seed in range(10):
        draw = np.random.default_rng(seed)
        rows = [
            row(i, draw.integers(0, 99, 12).tolist(), target=str(draw.integers(num_kinds)))
            for i in range(120)
        ]
        (tmp_path / str(seed)).mkdir()
        assert check(GivenRows(tmp_path / str(seed), train=rows)) == []


def test_groups_in_blocks(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [row(i, draw.integers(0, 99, 12).tolist(), group=f"file {i // 10}") for i in range(120)]
    (found,) = check(GivenRows(tmp_path, train=rows))
    assert found.severity == "note" and found.measured == 12
    assert "equal groups of 120 training rows stand together in 12 runs" in found.what


def test_texts_of_two_sources(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [row(i, draw.integers(100 * (i // 60), 100 * (i // 60) + 90, 20).tolist()) for i in range(120)]
    (found,) = check(GivenRows(tmp_path, train=rows))
    assert "order of their sources or topics" in found.what and found.measured > 0.8
    mixed = [rows[i] for i in draw.permutation(len(rows))]
    (tmp_path / "mixed").mkdir()
    assert check(GivenRows(tmp_path / "mixed", train=mixed)) == []


def test_few_rows_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(Skip, match="fewer than 30"):
        check(GivenRows(tmp_path, train=[row(i, [1, 2, 3], target=str(i // 10)) for i in range(29)]))


def test_lengths_in_order(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(5, 90, 400)
    assert module()._variation(np.sort(lengths)) == pytest.approx(8, rel=0.02)
    assert max(module()._variation(draw.permutation(lengths)) for _ in range(200)) <= 1
    for sample in (lengths, np.sort(lengths), np.concatenate([lengths[:200], 50 + lengths[200:]])):
        correlation = abs(spearmanr(np.arange(400), sample).statistic)
        assert module()._sorted(sample) == (correlation > 0.9)
    assert module()._variation(np.full(400, 7)) == module()._variation(lengths[:9]) == 0
    rows = [row(i, draw.integers(0, 99, n).tolist()) for i, n in enumerate(np.sort(lengths))]
    (found,) = check(GivenRows(tmp_path, train=rows))
    assert found.severity == "note" and "in the order of their lengths" in found.what
