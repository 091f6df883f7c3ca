import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fixtures.given_rows import GivenRows, row

from luthier import registry
from luthier.check.context import Skip
from luthier.records import Finding


def module() -> Any:
    registry.lookup("check", "ngram-overlap", "test")
    return sys.modules["luthier.check.checks.ngram_overlap"]


def check(context: GivenRows) -> list[Finding]:
    return list(module().ngram_overlap(context))


def by_hand(train: list[list[int]], ids: list[int], limit: int) -> float:
    """Share of a row's own tokens in 13-grams of at most ``limit`` training rows, by sets of tuples."""
    known = Counter(
        gram for other in train for gram in {tuple(other[i : i + 13]) for i in range(len(other) - 12)}
    )
    form, met = set(), set()
    for i in range(len(ids) - 12):
        count = known[tuple(ids[i : i + 13])]
        (form if count > limit else met if count else set()).update(range(i, i + 13))
    own = set(range(len(ids))) - form
    return len(met & own) / len(own) if len(own) >= 13 else 0.0


def test_shares_are_those_of_a_plain_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    system = draw.integers(0, 9000, 40).tolist()
    train = [
        (system if i % 3 else []) + draw.integers(0, 9000, int(draw.integers(5, 90))).tolist()
        for i in range(2400)
    ]
    evaluated = []
    for i in range(60):
        one, other = train[int(draw.integers(2400))], train[int(draw.integers(2400))]
        cut = int(draw.integers(0, 60))
        own = draw.integers(0, 9000, int(draw.integers(0, 40))).tolist()
        evaluated.append((system if i % 2 else []) + one[cut : cut + 50] + own + other[:30])
    seen: dict[str, np.ndarray] = {}
    whole = module()._Wanted.covered

    def covered(self: Any, *arguments: Any) -> np.ndarray:
        self.form = [np.zeros_like(part) for part in self.form]  # what these rows share is another test's
        found: np.ndarray = whole(self, *arguments)
        seen.update(zip(self.ids, found.tolist(), strict=True))
        return found

    monkeypatch.setattr(module()._Wanted, "covered", covered)
    # Tables are made anew while the system prompt is counted, too.
    monkeypatch.setattr(module(), "_MANY", 50)
    context = GivenRows(
        tmp_path,
        train=[row(i, ids) for i, ids in enumerate(train)],
        eval=[row(i, ids) for i, ids in enumerate(evaluated)],
    )
    check(context)
    expected = {str(i): by_hand(train, ids, 10) for i, ids in enumerate(evaluated) if ids not in train}
    assert {k: round(float(v), 6) for k, v in seen.items()} == {k: round(v, 6) for k, v in expected.items()}
    assert sum(share > 0.8 for share in expected.values()) > 3 and sum(s == 0 for s in expected.values()) < 20


def test_passage_under_another_heading(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    head, tail = draw.integers(0, 9000, 30).tolist(), draw.integers(0, 9000, 30).tolist()
    passages = [draw.integers(0, 9000, 60).tolist() for _ in range(20)]
    train = [row(i, [7, 8, 9, *p, i]) for i, p in enumerate(passages)]
    evaluated = [row(i, [*head, *p, *tail]) for i, p in enumerate(passages[:10])]
    (found,) = check(GivenRows(tmp_path, train=train, eval=evaluated))
    assert found.severity == "warning" and found.measured == 1.0


def test_rows_that_share_form_or_a_phrase_are_left_alone(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    system, phrase = draw.integers(0, 9000, 200).tolist(), draw.integers(0, 9000, 25).tolist()
    texts = [
        [*system, *draw.integers(0, 9000, 30).tolist(), *phrase[: 25 * (i % 10 == 0)]] for i in range(90)
    ]
    rows = [row(i, ids) for i, ids in enumerate(texts)]
    assert check(GivenRows(tmp_path, train=rows[:60], eval=rows[60:])) == []


def test_rows_that_equal_training_rows_are_another_checks(tmp_path: Path) -> None:
    rows = [row(i, np.random.default_rng(i).integers(0, 9000, 50).tolist()) for i in range(60)]
    context = GivenRows(tmp_path, train=rows, test=rows[:30])
    assert check(context) == []
    with pytest.raises(Skip, match="only one split"):
        check(GivenRows(tmp_path, train=rows))


def test_large_splits_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module(), "MOST_ROWS", 50)
    rows = [row(i, np.random.default_rng(i).integers(0, 9000, 40).tolist()) for i in range(1300)]
    inside = [row(f"e{i}", [1, *rows[i].input_ids.tolist()]) for i in range(1300)]
    context = GivenRows(tmp_path, train=rows, eval=inside)
    (found,) = check(context)
    assert found.what.startswith("50 of 50 rows")
    assert context.seen == ["50 eval rows against all 1,300 training rows"]
