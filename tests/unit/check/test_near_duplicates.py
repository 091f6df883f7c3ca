import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fixtures.given_rows import GivenRows, row

from luthier import registry
from luthier.check.context import Skip
from luthier.records import Finding, Row


def module() -> Any:
    registry.lookup("check", "near-duplicates", "test")
    return sys.modules["luthier.check.checks.near_duplicates"]


def check(context: GivenRows) -> list[Finding]:
    return list(module().near_duplicates(context))


def random_rows(draw: np.random.Generator, count: int, length: int = 80) -> list[list[int]]:
    return [draw.integers(0, 30_000, length).tolist() for _ in range(count)]


def changed(draw: np.random.Generator, ids: list[int], num_changes: int) -> list[int]:
    ids = list(ids)
    for place in draw.choice(len(ids), num_changes, replace=False):
        ids[place] = int(draw.integers(0, 30_000))
    return ids


def grams(ids: list[int]) -> set[tuple[int, ...]]:
    return {tuple(ids[i : i + 5]) for i in range(len(ids) - 4)}


def jaccard(a: list[int], b: list[int]) -> float:
    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def pairs(context: GivenRows) -> dict[int, int]:
    m = module()
    return dict(m._similar_pairs(m._sample(context, m._forms(context.rows["train"]))))


def test_near_copies_are_those_that_comparing_all_pairs_finds(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows: list[list[int]] = []
    for base in random_rows(draw, 60):
        rows += [base, *(changed(draw, base, n) for n in (1, 2, 6, 0))]
    rows = [rows[i] for i in draw.permutation(len(rows))]
    expected = {
        j
        for j in range(len(rows))
        if any(rows[i] != rows[j] and jaccard(rows[i], rows[j]) >= 0.8 for i in range(j))
    }
    found = pairs(GivenRows(tmp_path, train=[row(i, ids) for i, ids in enumerate(rows)]))
    assert len(expected) > 80
    assert len(set(found) ^ expected) <= 2  # one in a thousand pairs is missed, and a row tries four at most
    assert all(jaccard(rows[i], rows[j]) >= 0.8 and rows[i] != rows[j] for j, i in found.items())


def test_what_all_rows_share_makes_no_copies(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    system = draw.integers(0, 30_000, 300).tolist()
    rows = [system + ids for ids in random_rows(draw, 60, 20)]
    assert jaccard(rows[0], rows[1]) > 0.8
    context = GivenRows(tmp_path, train=[row(i, ids) for i, ids in enumerate(rows)])
    assert check(context) == []
    systems = random_rows(draw, 5, 300)  # each of them in a fifth of the rows
    rows = [systems[i % 5] + ids for i, ids in enumerate(random_rows(draw, 100, 20))]
    (tmp_path / "few").mkdir()
    assert check(GivenRows(tmp_path / "few", train=[row(i, ids) for i, ids in enumerate(rows)])) == []


def test_rows_with_other_answers_are_no_copies(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    prompts = random_rows(draw, 40, 100)

    def rows(same: bool) -> list[Row]:
        return [
            row(
                i,
                [*prompts[i // 2], 7, i * (not same)],
                target=f"answer {'' if same else i * 7919}",
                prompt=100,
            )
            for i in range(80)
        ]

    assert check(GivenRows(tmp_path, train=rows(same=False))) == []
    (tmp_path / "same").mkdir()
    copies = [row(i, [*changed(draw, prompts[i // 2], i % 2), 7], target="answer") for i in range(80)]
    (found,) = check(GivenRows(tmp_path / "same", train=copies))
    assert found.severity == "warning" and found.measured == 0.5
    assert "1 (like 0)" in found.where


def test_copies_across_splits_are_told_of_each_split(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    train = random_rows(draw, 60)
    rows = [row(f"t{i}", ids) for i, ids in enumerate(train)]
    near = [row(f"e{i}", changed(draw, ids, 1), target=rows[i].target) for i, ids in enumerate(train[:5])]
    exact = [row(f"x{i}", ids, target=rows[i].target) for i, ids in enumerate(train[10:20])]
    other = [row(f"o{i}", ids) for i, ids in enumerate(random_rows(draw, 20))]
    (found,) = check(GivenRows(tmp_path, train=rows, eval=near + exact + other))
    assert found.severity == "warning"
    assert found.what.startswith(
        "5 of 35 rows (14.29%) of the eval split"
    )  # exact copies are another check's
    (tmp_path / "two").mkdir()
    (found,) = check(GivenRows(tmp_path / "two", train=rows, eval=near[:2] + other))
    assert found.severity == "note"


def test_a_sample_finds_copies_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(4)
    rows: list[list[int]] = []
    for base in random_rows(draw, 1500):
        rows += [base, changed(draw, base, 1)]
    context = GivenRows(tmp_path, train=[row(i, ids, target="same") for i, ids in enumerate(rows)])
    monkeypatch.setattr(module(), "MOST_ROWS", 600)
    (found,) = check(context)
    assert "a sample of one in 5 of 3,000 rows" in context.seen[0]
    assert 0.38 < found.measured < 0.52  # half of the rows are copies; the pair is together nine times in ten
    looked = int(found.what.split(" of ")[1].split()[0].replace(",", ""))
    assert 450 < looked < 750


def test_short_rows_are_not_compared(tmp_path: Path) -> None:
    with pytest.raises(Skip, match="fewer than two rows have 10 5-grams"):
        check(GivenRows(tmp_path, train=[row(i, [1, 2, 3, 4, 5, 6, 7, i]) for i in range(40)]))
