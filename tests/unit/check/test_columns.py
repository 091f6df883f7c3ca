from pathlib import Path

import numpy as np
import pytest
from tests.fixtures.given_rows import GivenRows, row

from luthier.check.columns import Offenders, count, marked, ngram_hashes, num_alike, values_at, whole_ngrams


@pytest.mark.parametrize("length", [1, 2, 5, 13, 16])
def test_hashes_are_equal_exactly_where_the_runs_are(length: int) -> None:
    ids = (
        np.random.default_rng(length).integers(0, 2, 600).astype(np.int32)
    )  # so few kinds that runs come again
    runs = [tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)]
    hashes = ngram_hashes(ids, length).tolist()
    assert len(hashes) == len(runs)
    assert len(set(hashes)) == len(set(runs)) == len(set(zip(hashes, runs, strict=True)))


def test_hashes_do_not_depend_on_where_a_run_stands() -> None:
    ids = np.random.default_rng(0).integers(0, 50_000, 100_000).astype(np.int32)  # over several chunks
    hashes = ngram_hashes(ids, 13)
    for start in (0, 5, (1 << 15) - 7, 1 << 15, 99_987):
        assert ngram_hashes(ids[start : start + 13], 13)[0] == hashes[start]
    assert len(np.unique(hashes)) == len(hashes) == 100_000 - 12


@pytest.mark.parametrize("count", [0, 1, 12])
def test_too_few_ids_have_no_runs(count: int) -> None:
    assert len(ngram_hashes(np.arange(count, dtype=np.int32), 13)) == 0


def test_runs_over_the_end_of_a_row_are_not_whole() -> None:
    draw = np.random.default_rng(1)
    for _ in range(20):
        lengths = draw.integers(0, 9, 12)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        owners = np.repeat(np.arange(12), lengths)
        expected = [len(set(owners[i : i + 4])) == 1 for i in range(max(0, len(owners) - 3))]
        assert whole_ngrams(offsets, 4).tolist() == expected


def test_values_come_in_the_order_of_the_indices(tmp_path: Path) -> None:
    context = GivenRows(tmp_path, train=[row(i, [1, 2, i]) for i in range(2500)])
    indices = np.array([2400, 3, 999, 1000, 3, 0])
    assert values_at(context.rows["train"], "id", indices) == [str(i) for i in indices]
    assert values_at(context.rows["train"], "id", np.array([], np.int64)) == []


def test_marked_rows_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    context = GivenRows(tmp_path, train=[row(i, [1, 2, i]) for i in range(2500)])
    bad = np.zeros(2500, dtype=bool)
    assert str(marked(context, {"train": bad})) == "0 of 2,500 rows (0.00%)"
    bad[[1, 5, 6, 7, 1100, 2499]] = True
    found = marked(context, {"train": bad})
    assert isinstance(found, Offenders) and (found.count, found.num_rows) == (6, 2500)
    assert found.where == "data/train.arrow: 1, 5, 6, 7, 1100"
    # Their number should be 0, or their share is allowed up to a limit.
    number, share = (found.finding("a-check", "note", "what", "fix", most) for most in (None, 0.1))
    assert (number.measured, number.expected) == (6, 0)
    assert (share.measured, share.expected) == (0.0024, "at most 0.1")


def test_marks_are_counted_row_by_row() -> None:
    marks = np.array([1, 1, 0, 1, 0, 0, 1], dtype=bool)
    offsets = np.array([0, 0, 3, 3, 6, 7])
    assert count(marks, offsets[:-1], offsets[1:]).tolist() == [0, 2, 0, 1, 1]
    assert count(marks[:0], np.zeros(2, int), np.zeros(2, int)).tolist() == [0, 0]


def test_sequences_are_alike_up_to_where_they_part() -> None:
    pairs = [("abc", "abd"), ([1, 2], [1, 2, 3]), ("", "a"), ([5], [6])]
    assert [num_alike(one, other) for one, other in pairs] == [2, 2, 0, 0]
