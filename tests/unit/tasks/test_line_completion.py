"""Every eligible line once in training, single lines in the comparison, whole or from inside."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.fixtures.tokenizers import characters

from luthier.encoding.encode import encode
from luthier.records import Dropped, Example, Record, Row
from luthier.tasks.line_completion import LineCompletion

CODE = "".join(
    f"def function_{i}(value):\n    result = value + {i}\n    return result\n\n\n" for i in range(12)
)


def made(task: LineCompletion, split: Any, text: str = CODE) -> list[Any]:
    record = Record("r", {"text": text}, "g")
    return list(task.examples(record, split, characters(), max_length=160, seed=0))


def rows(task: LineCompletion, split: Any) -> Iterator[Row]:
    for example in made(task, split):
        assert isinstance(example, Example)
        row = encode(example, characters(), 160)
        assert isinstance(row, Row)
        yield row


def test_training_has_every_line_but_the_first_once() -> None:
    lines = [
        line.strip()
        for row in rows(LineCompletion(min_context_tokens=8), "train")
        for line in row.target.split("\n")
    ]
    assert [line for line in lines if line] == [line.strip() for line in CODE.split("\n") if line.strip()][1:]


def test_no_file_gives_more_than_its_share() -> None:
    assert len(made(LineCompletion(min_context_tokens=8, max_train_rows_per_file=3), "train")) == 3
    assert len(made(LineCompletion(max_lines_per_file=5), "test")) == 5


def test_lines_are_completed_from_where_they_are_cut() -> None:
    tokenizer = characters()
    for cut, whole in (("inside", False), ("line-start", True)):
        task = LineCompletion(max_lines_per_file=20, cut=cut)
        found = list(rows(task, "test"))
        assert len(found) == 20, cut
        starts = 0
        for row in found:
            prompt = tokenizer.decode(row.input_ids[: row.num_prompt_tokens].tolist())
            assert f"{prompt}{row.target}" in CODE  # trimmed at its beginning
            starts += row.target.startswith("\n")  # the prompt ends at the last visible character
        assert starts == (20 if whole else 0)


def test_the_answer_is_a_line() -> None:
    assert LineCompletion().answer("\n\n    x = 1\ny\n") == "    x = 1"
    assert LineCompletion(cut="inside").answer(" = 1\ny") == " = 1"


@pytest.mark.parametrize(("text", "reason"), [("# x\n#y\n", "no-eligible-line"), (None, "no-text")])
def test_files_without_such_a_line_are_dropped(text: Any, reason: str) -> None:
    (dropped,) = made(LineCompletion(), "train", text)
    assert isinstance(dropped, Dropped) and dropped.reason == reason
