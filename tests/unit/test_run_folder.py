"""Files of a run folder."""

from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.run_folder import RunFolder, read_json, read_jsonl


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


@pytest.mark.parametrize("text", ["[]", "3", "null", '[{"metrics": {}}]', '{"metrics": 3}', "[" * 100_000])
def test_json_of_another_kind_is_damaged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"scores\.json is damaged: "):
        read_json(path)


def test_a_file_says_itself_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "any.json"
    path.write_text('[{"a": {"b": 1}}]')
    read = read_json(path, list)
    assert read == [{"a": {"b": 1}}] and read[0].get("c") is None
    with pytest.raises(UserError, match=r"any\.json holds no 'c'") as raised:
        read[0]["a"]["c"]
    assert raised.value.where == str(path)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"b": 1}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2 holds no 'a'"):
        [row["a"] for row in read_jsonl(path)]


def test_of_several_processes_the_first_says_how_the_run_ended(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for what in ("the loss is nan", "the other process has gone"):
        run.note_stopped("refused", 1, what, "here", "mend it")
    assert read_json(run.stopped)["what"] == "the loss is nan"
