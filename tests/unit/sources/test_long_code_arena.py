"""Long Code Arena's own schema, in files that the test writes."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.errors import UserError
from luthier.sources.long_code_arena import LongCodeArena

ROW = {
    "repo": "owner__name",
    "commit_hash": "0123456789abcdef",
    "completion_file": {"filename": "pkg/new.py", "content": "import os\nx = helper()\ny = 2\n"},
    "completion_lines": {
        "commited": [1],
        "inproject": [],
        "infile": [],
        "common": [],
        "non_informative": [0],
        "random": [2],
    },
    "repo_snapshot": {
        "filename": ["pkg/old.py", "README.md", "pkg/empty.py"],
        "content": ["def helper(): ...\n", "# x\n", ""],
    },
    "completion_lines_raw": {"commited": [1], "other": []},
}


def test_rows_of_a_parquet_file_become_a_snapshot_and_a_file_to_complete(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ROW]), tmp_path / "test.parquet")
    context, added = LongCodeArena(path=str(tmp_path / "test.parquet")).records()
    assert (context.fields["path"], context.fields["role"]) == ("pkg/old.py", "context")
    assert added.fields["role"] == "added" and added.fields["text"] == ROW["completion_file"]["content"]
    assert added.fields["completion_lines"] == {"committed": [1], "non_informative": [0], "random": [2]}
    assert (
        added.fields["project"]
        == context.fields["project"]
        == added.group
        == "owner__name@0123456789ab/pkg/new.py"
    )
    listed = {**ROW, "repo_snapshot": [{"filename": "pkg/old.py", "content": "def helper(): ...\n"}]}
    (tmp_path / "test.jsonl").write_text(json.dumps(listed) + "\n")
    assert [r.fields for r in LongCodeArena(path=str(tmp_path / "test.jsonl")).records()] == [
        context.fields,
        added.fields,
    ]
    both = LongCodeArena(path=str(tmp_path / "test.parquet"), suffixes=[".py", ".md"])
    assert [r.fields["path"] for r in both.records()] == ["pkg/old.py", "README.md", "pkg/new.py"]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"repo": "a", "text": "b"}\n')
    with pytest.raises(UserError, match="a row has no commit_hash, completion_file"):
        list(LongCodeArena(path=str(tmp_path / "test.jsonl")).records())
