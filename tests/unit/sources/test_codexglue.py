import json
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.sources.codexglue import CodeXGlue


def test_token_level_files_give_a_record_a_line(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("<s> a = b <EOL> c </s>\n<s> </s>\nno tokens\n<s> d\u2028e </s>\n", encoding="utf-8")
    first, empty, other, last = CodeXGlue(path=str(path)).records()
    assert first == Record("train.txt:1", {"tokens": "<s> a = b <EOL> c </s>"}, "train.txt:1")
    assert isinstance(empty, Dropped) and empty.reason == "empty" and not empty.budgeted
    assert isinstance(other, Dropped) and other.reason == "not-token-level" and other.budgeted
    assert last.id == "train.txt:4"


def test_line_level_rows(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    rows = [{"id": 3, "input": "<s> a", "gt": "b ;"}, {"id": 4, "input": "<s> c", "gt": "d"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = list(CodeXGlue(path=str(path)).records())
    assert [r.fields for r in records] == rows and records[0].id == "test.json:1"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.json").write_text(path.read_text() + "[]\n")
    found = list(CodeXGlue(path=str(tmp_path / "*/test.json")).records())
    assert [item.id for item in found] == [f"{name}/test.json:{i}" for name in "ab" for i in (1, 2, 3)]
    assert [item.group for item in found if isinstance(item, Record)] == [
        item.id for item in found if isinstance(item, Record)
    ]


@pytest.mark.parametrize("gt", ["", " ", None])
def test_an_empty_gt_is_an_error_that_names_the_other_files(tmp_path: Path, gt: str | None) -> None:
    path = tmp_path / "test.json"
    rows = [{"id": 3, "input": "<s> a", "gt": "b ;"}, {"id": 9, "input": "<s> c", "gt": gt}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="gt of row 9 is empty") as raised:
        list(CodeXGlue(path=str(path)).records())
    assert "test.json:2" in raised.value.where
    assert all(name in raised.value.fix for name in ("train.txt", "dev.txt", "test.txt"))


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("import os\n")
    with pytest.raises(UserError, match="no line of it"):
        list(CodeXGlue(path=str(tmp_path / "a.txt")).records())
    (tmp_path / "a.bin").write_bytes(b"<s> a </s>\n\xff\n")
    with pytest.raises(UserError, match=r"cannot be read.*utf-8"):
        list(CodeXGlue(path=str(tmp_path / "a.bin")).records())
