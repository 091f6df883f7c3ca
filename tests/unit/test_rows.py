import pickle
from pathlib import Path

import numpy as np
import pytest

from luthier.errors import UserError
from luthier.records import Row
from luthier.rows import BATCH_ROWS, SCHEMA, Rows, RowWriter, read_batches, to_batch


def rows(count: int) -> list[Row]:
    draw = np.random.default_rng(0)
    made = []
    for number in range(count):
        length = int(draw.integers(1, 9))
        weights = draw.choice([0.0, 0.5, 1.0], length).astype(np.float32)
        made.append(
            Row(
                id=f"r{number}", group=f"g{number // 3}", input_ids=draw.integers(0, 50_000, length).tolist(),
                loss_weights=weights, span_ids=[0] * length, span_names=["a", "ünïcode"], num_prompt_tokens=length // 2,
                target="t\n" * (number % 3), target_bytes=number, lossy=number % 2 == 1,
                trimmed={"a": number} if number % 2 else {}, meta={"line": number, "names": ["x"]},
            )
        )  # fmt: skip
    return made


def write(path: Path, made: list[Row], chunk: int) -> Path:
    with RowWriter(path) as writer:
        for start in range(0, len(made), chunk):
            writer.write(to_batch(made[start : start + chunk]))
        assert writer.num_rows == len(made)
    return path


def same(one: Row, other: Row) -> bool:
    return all(
        np.array_equal(getattr(one, f.name), getattr(other, f.name))
        if f.name in ("input_ids", "loss_weights", "span_ids")
        else getattr(one, f.name) == getattr(other, f.name)
        for f in SCHEMA
    )


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    made = rows(2345)
    read = Rows(write(tmp_path / "x.arrow", made, 700))
    assert len(read) == len(made) and all(map(same, read, made))
    assert same(read[-1], made[-1]) and [row.id for row in read[998:1002]] == [
        "r998",
        "r999",
        "r1000",
        "r1001",
    ]
    assert read.lengths().tolist() == [len(row.input_ids) for row in made]
    assert read.num_trained().tolist() == [int(np.count_nonzero(row.loss_weights)) for row in made]
    assert read.column("target").to_pylist() == [row.target for row in made]
    with pytest.raises(IndexError):
        read.row(2345)
    assert [batch.num_rows for batch in read_batches(tmp_path / "x.arrow", ["id"])] == [
        BATCH_ROWS,
        BATCH_ROWS,
        345,
    ]


def test_the_bytes_do_not_depend_on_how_rows_were_handed_over(tmp_path: Path) -> None:
    made = rows(2100)
    files = [write(tmp_path / f"{chunk}", made, chunk).read_bytes() for chunk in (1, 7, 1000, 2100)]
    assert len(set(files)) == 1


def test_tokens_are_views_into_the_file_that_cannot_be_written(tmp_path: Path) -> None:
    row = Rows(write(tmp_path / "x.arrow", rows(3), 3))[1]
    assert isinstance(row.input_ids, np.ndarray)
    assert (
        row.input_ids.dtype == np.int32
        and not row.input_ids.flags.owndata
        and not row.input_ids.flags.writeable
    )


def test_no_rows_and_another_process(tmp_path: Path) -> None:
    empty = Rows(write(tmp_path / "empty.arrow", [], 1))
    assert (
        len(empty) == 0 and len(empty.lengths()) == 0 and len(empty.num_trained()) == 0 and list(empty) == []
    )
    copy = pickle.loads(pickle.dumps(Rows(write(tmp_path / "x.arrow", rows(3), 3))))
    assert [row.id for row in copy] == ["r0", "r1", "r2"]


@pytest.mark.parametrize("content", [None, b"", b"nonsense" * 100, "cut"])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "x.arrow"
    if content == "cut":
        path.write_bytes(write(path, rows(50), 50).read_bytes()[:-40])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.arrow"):
        Rows(path)
