"""Files of a run folder."""

from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.run_folder import read_jsonl


def test_of_jsonl_only_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_jsonl(path) == []
    path.write_text('{"a": 1}\n{"a": 2}')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}], "whole, though without a newline"
    path.write_text('{"a": 1}\n{"a": ')
    assert read_jsonl(path) == [{"a": 1}]
    for damaged in ('{"a": \n{"a": 2}\n', "[1]\n"):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"rows\.jsonl is damaged in line 1"):
            read_jsonl(path)
