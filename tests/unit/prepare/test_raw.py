import datetime
import decimal
import json
import uuid
from pathlib import Path

import numpy as np
import pytest

from luthier.encoding.raw_records import own_name, plain_fields
from luthier.errors import UserError
from luthier.prepare.raw import RawWriter, column, reading
from luthier.records import Record
from luthier.rows import read_batches


def test_values_of_columnar_files_become_json() -> None:
    name = uuid.UUID(int=1)
    values = {
        "day": datetime.date(2024, 5, 1), "price": decimal.Decimal("1.10"), "id": name, "vector": np.array([1, 2]),
        "number": np.float32(0.5), "text": "grün\n", "nothing": None,
    }  # fmt: skip
    assert json.loads(plain_fields(Record("a", values, "a"))) == {  # type: ignore[arg-type]
        "day": "2024-05-01", "price": "1.10", "id": str(name), "vector": [1, 2], "number": 0.5, "text": "grün\n",
        "nothing": None,
    }  # fmt: skip


def test_a_value_that_is_no_text_names_its_record() -> None:
    with pytest.raises(UserError, match="a field holds bytes") as caught:
        plain_fields(Record("rows.parquet:3", {"image": b"..."}, "g"))
    assert caught.value.where == "record rows.parquet:3"


def test_only_a_group_of_ones_own_follows_the_name() -> None:
    assert own_name(Record("a", {}, "a"), None) == Record("a", {}, "a")
    assert own_name(Record("a", {}, "a"), "test") == Record("test:a", {}, "test:a")
    assert own_name(Record("a", {}, "project"), "eval") == Record("eval:a", {}, "project")


def test_chunks_are_bounded_in_records_and_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "raw.arrow"
    with RawWriter(path) as raw:
        for number in range(510):
            if raw.add(Record(f"small{number}", {}, "g"), "{}", str(number)):
                assert raw.flush() == [str(n) for n in range(500)]
        for number in range(5):
            if raw.add(Record(f"large{number}", {}, "g"), "x" * 3_000_000, ""):
                raw.flush()
        raw.flush()
        assert raw.flush() == []
    assert [batch.num_rows for batch in read_batches(path)] == [500, 13, 2]
    assert list(column([path, path], "id"))[508:516] == [
        "small508",
        "small509",
        *(f"large{n}" for n in range(5)),
        "small0",
    ]


def test_an_unreadable_file_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="cannot read: No such file") as caught,
        reading("recipe key data.source"),
    ):
        (tmp_path / "absent").read_text()
    assert caught.value.where == str(tmp_path / "absent")
