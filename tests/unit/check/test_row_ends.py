"""Ends of rows by arrays are those that a look at each row finds; where rows are cut shows."""

from pathlib import Path

import numpy as np
import pytest
from tests.fixtures.tiny_model import make_tokenizer
from tests.unit.check.given import Given

from luthier.check.columns import marked
from luthier.check.row_ends import cut_lengths, is_stream, pile, row_ends

EOS = 2


def items(draw: np.random.Generator, count: int) -> list[dict[str, list[int]]]:
    made = []
    for _ in range(count):
        length = int(draw.integers(0, 12))
        ids = draw.choice([EOS, 5, 6, 7], length).tolist()
        labels = [i if draw.random() < 0.6 else -100 for i in ids]
        made.append({"input_ids": ids, "labels": labels})
    return made


def test_ends_are_those_of_each_row(tmp_path: Path) -> None:
    given = items(np.random.default_rng(0), 300)
    context = Given(tmp_path, given, make_tokenizer())
    found = row_ends(context)["train"]
    for place, item in enumerate(given):
        ids = item["input_ids"]
        trained = [i for i, label in enumerate(item["labels"]) if label != -100 and i]
        last = trained[-1] if trained else None
        assert found.lengths[place] == len(ids)
        assert found.trained[place] == bool(trained)
        assert found.stopped[place] == (last is not None and ids[last] == EOS)
        assert found.last_id[place] == (-1 if last is None else ids[last])
        assert found.next_id[place] == (-1 if last is None or last + 1 == len(ids) else ids[last + 1])
        assert found.has_stop[place] == (EOS in ids)
        assert found.trained_stop[place] == any(ids[i] == EOS for i in trained)
        assert found.first_id[place] == (ids[0] if ids else -1)
        rest = [i for i in range(1, len(ids)) if ids[i] != EOS]
        assert found.whole[place] == (bool(trained) and all(i in trained for i in rest))
    bad = marked(context, {"train": found.stopped})
    assert bad.count == found.stopped.sum() and bad.num_rows == 300


def test_rows_without_a_token(tmp_path: Path) -> None:
    found = row_ends(Given(tmp_path, [{"input_ids": [], "labels": []}] * 3, make_tokenizer()))["train"]
    assert found.lengths.tolist() == [0, 0, 0] and not found.trained.any()


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        (np.arange(100).repeat(3), None),  # evenly spread
        (np.minimum(np.random.default_rng(0).lognormal(4, 0.6, 3000), 128).astype(int), 128),
        (np.random.default_rng(0).lognormal(4, 0.6, 3000).astype(int), None),
        (np.random.default_rng(0).integers(5, 30, 600), None),
        (np.array([3, 4, 9, 9, 9]), None),  # four rows are chance
        (np.full(20, 64), 64),
        (np.empty(0, np.int64), None),
    ],
)
def test_rows_pile_up_where_they_are_cut(lengths: np.ndarray, expected: int | None) -> None:
    assert pile(np.asarray(lengths)) == expected


def texts(
    draw: np.random.Generator, count: int, cut: int | None, *, stop: bool = True
) -> list[dict[str, list[int]]]:
    made = []
    for _ in range(count):
        prompt = draw.integers(5, 300, int(draw.integers(5, 20))).tolist()
        answer = draw.integers(5, 300, int(draw.integers(5, 40))).tolist() + [EOS] * stop
        ids, labels = prompt + answer, [-100] * len(prompt) + answer
        made.append({"input_ids": ids[:cut], "labels": labels[:cut]})
    return made


@pytest.mark.parametrize(
    ("cut", "stop", "expected"),
    [
        (40, True, {"train": 40}),
        (None, True, {}),
        (None, False, {}),  # no row has an end: they are not cut, they never had one
        (15, True, {"train": 15}),  # nearly all are cut
    ],
)
def test_where_rows_are_cut(tmp_path: Path, cut: int | None, stop: bool, expected: dict[str, int]) -> None:
    draw = np.random.default_rng(1)
    context = Given(tmp_path, texts(draw, 300, cut, stop=stop), make_tokenizer())
    ends = row_ends(context)
    assert cut_lengths(ends) == expected
    assert not is_stream(ends)


@pytest.mark.parametrize("masked", [False, True])
def test_blocks_of_a_stream_are_not_cut_rows(tmp_path: Path, masked: bool) -> None:
    draw = np.random.default_rng(2)
    rows = texts(draw, 400, None)
    ids = [i for row in rows for i in row["input_ids"]]
    labels = [i for row in rows for i in row["labels" if masked else "input_ids"]]
    blocks = [
        {"input_ids": ids[at : at + 100], "labels": labels[at : at + 100]} for at in range(0, len(ids), 100)
    ]
    ends = row_ends(Given(tmp_path, blocks, make_tokenizer()))
    assert is_stream(ends) and cut_lengths(ends) == {}
    # Rows that begin alike and are all cut at one length are no stream.
    cut = [{k: [1, 9, *v[:98]] for k, v in block.items()} for block in blocks]
    assert not is_stream(row_ends(Given(tmp_path, cut, make_tokenizer())))
