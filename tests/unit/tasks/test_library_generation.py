"""Rows of library-based generation."""

import pytest
from tests.fixtures.tokenizers import characters
from tests.unit.projects.test_library import EXAMPLE, LIBRARY

from luthier.encoding.encode import encode
from luthier.records import Dropped, Record
from luthier.tasks.library_generation import LibraryGeneration


def record(path: str, text: str, role: str) -> Record:
    return Record(
        path, {"text": text, "path": path, "language": "python", "project": "mylib", "role": role}, path
    )


FILES = [record(path, text, "context") for path, text in LIBRARY.items()]


def made(text: str, **options: object):
    own = record("examples/plot_it.py", text, "complete")
    own = Record(own.id, own.fields, own.group, {"mylib": [*FILES, own]})
    [item] = LibraryGeneration(format="plain", **options).examples(
        own, "test", characters(), max_length=4096, seed=0
    )
    return item


def test_the_row_of_an_example() -> None:
    row = encode(made(EXAMPLE), characters(), 4096)
    prompt = characters().decode(row.input_ids[: row.num_prompt_tokens])
    assert "uses the library mylib" in prompt and "[API]" in prompt and "may help" not in prompt
    assert not {"KMeans", "load_iris"} & set(prompt.replace("`", " ").replace(".", " ").split())
    assert row.target.startswith("from mylib.cluster import KMeans\n") and "# Author" not in row.target
    assert row.meta["apis"] == ["KMeans", "fit", "load_iris", "plot", "predict"]
    assert row.meta["strata"] == {"library": "mylib"}


def test_names_that_may_help_stand_in_the_prompt() -> None:
    row = encode(made(EXAMPLE, num_names=2), characters(), 4096)
    assert "Names of the library that may help: " in characters().decode(
        row.input_ids[: row.num_prompt_tokens]
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n", "no-instruction"),
        ('"""Words."""\nfrom mylib.cluster import KMeans\nKMeans()\n', "few-apis"),
    ],
)
def test_examples_that_say_or_call_too_little_are_left_out(text: str, reason: str) -> None:
    assert isinstance(item := made(text), Dropped) and item.reason == reason and not item.budgeted
    [library] = LibraryGeneration().examples(FILES[1], "train", characters(), max_length=64, seed=0)
    assert library.reason == "context-only"


def test_the_answer_is_the_code_in_a_fence_or_all() -> None:
    task = LibraryGeneration()
    assert task.answer("Here:\n```python\nx = 1\n```\nDone.") == "x = 1"
    assert task.answer(" x = 1\n") == "x = 1" and task.answer("```\ny = 2") == "y = 2"
