"""Rows of the task ``repair``: prompt, target, what is dropped, and what two runs must have in common."""

from typing import Any

import pytest
from tests.fixtures.tiny_model import make_tokenizer

from luthier.encoding.encode import encode, encode_prompt
from luthier.encoding.infill import SENTINELS
from luthier.encoding.repair import place_of
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.metrics.code import ast_match
from luthier.records import Dropped, Example, Record, Row
from luthier.tasks.repair import Repair

BEFORE = "def add(a, b):\n    # adds\n    c = a\n    return c - b\n"
AFTER = "def add(a, b):\n    # adds both\n    c = a\n    return c + b\n"


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(make_tokenizer()).add_tokens(SENTINELS["new"].tokens)


def record(before: str = BEFORE, after: str = AFTER, **others: Any) -> Record:
    return Record("r", {"before": before, "after": after, "language": "python", **others}, "g")


def examples(
    task: Repair, tokenizer: TextTokenizer, split: Any = "train", **fields: Any
) -> list[Example | Dropped]:
    return list(task.examples(record(**fields), split, tokenizer, max_length=400, seed=0))


def row(task: Repair, tokenizer: TextTokenizer, **fields: Any) -> Row:
    (example,) = examples(task, tokenizer, **fields)
    assert isinstance(example, Example)
    encoded = encode(example, tokenizer, 400)
    assert isinstance(encoded, Row)
    return encoded


def prompt(found: Row, tokenizer: TextTokenizer) -> str:
    return tokenizer.decode(found.input_ids[len(tokenizer.prefix_ids) : found.num_prompt_tokens], first=True)


def test_a_row_is_the_input_and_the_lines_with_indent_and_newline(tokenizer: TextTokenizer) -> None:
    found = row(Repair(), tokenizer)
    assert prompt(found, tokenizer) == (
        "def add(a, b):\n    c = a\n# buggy code\n#     return c - b\n    <FILL_ME>\n# fixed code:\n"
    )
    assert found.target == "    return c + b\n" and found.input_ids[-1] == tokenizer.eos_id
    kept = row(Repair(remove_comments=False, input="IR1", output="OR1"), tokenizer)
    assert kept.target == AFTER and "# adds\n" in prompt(kept, tokenizer)


@pytest.mark.parametrize("form", ["IR1", "IR2", "IR3", "IR4"])
@pytest.mark.parametrize("output", ["OR1", "OR2", "OR3", "OR4"])
def test_the_target_gives_the_fixed_function_back(form: Any, output: Any, tokenizer: TextTokenizer) -> None:
    task = Repair(input=form, output=output)
    found = row(task, tokenizer)
    buggy, fixed, _ = task.sides(record())  # type: ignore[misc]
    assert task.repaired(place_of(buggy, fixed)[0], found.target) == fixed
    assert ast_match([found.target, "x"], [found.target] * 2, metas=[found.meta] * 2) == [1, 0]


def test_inference_has_the_ids_of_training(tokenizer: TextTokenizer) -> None:
    for task in (Repair(), Repair(input="IR3", sentinels="new"), Repair(outside=True)):
        found = row(task, tokenizer, context="import os\n")
        buggy, fixed, language = task.sides(record())  # type: ignore[misc]
        spans = task.prompt_spans(place_of(buggy, fixed)[0], language, "import os\n", tokenizer, 400)
        assert (
            encode_prompt(Example("p", spans, "p"), tokenizer, 400)
            == found.input_ids[: found.num_prompt_tokens].tolist()
        )
        assert ("import os" in prompt(found, tokenizer)) == task.outside


def test_infilling_tokens_leave_the_indent_to_the_output(tokenizer: TextTokenizer) -> None:
    found = row(Repair(sentinels="new"), tokenizer)
    first, suffix, middle, _ = SENTINELS["new"].tokens
    assert prompt(found, tokenizer) == (
        f"{first}def add(a, b):\n    c = a\n# buggy code\n#     return c - b\n{suffix}{middle}"
    )
    assert found.target == "    return c + b\n"
    with pytest.raises(ValueError, match="take IR3 or IR4 with OR2"):
        Repair(sentinels="new", output="OR1")


def test_several_changes_are_one_row_or_one_each(tokenizer: TextTokenizer) -> None:
    after = AFTER.replace("c = a", "c = +a")
    assert len(examples(Repair(), tokenizer, after=after)) == 1
    apart = examples(
        Repair(chunks="apart", remove_comments=False), tokenizer, after=after.replace(" both", "")
    )
    assert len(apart) == 1  # neighbours are one change
    before = BEFORE.replace("return c", "d = c\n    return d")
    after = before.replace("c = a", "c = +a").replace("- b", "+ b")
    apart = examples(Repair(chunks="apart"), tokenizer, before=before, after=after)
    assert [e.spans[-2].text for e in apart if isinstance(e, Example)] == [
        "    c = +a\n",
        "    return d + b\n",
    ]
    assert len(examples(Repair(chunks="apart"), tokenizer, "test", before=before, after=after)) == 1


def test_rows_that_cannot_be_used_say_why(tokenizer: TextTokenizer) -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, {"after": BEFORE.replace("# adds", "# sums")}, "unchanged"),
        ({}, {"before": "x = 'a"}, "not-code"),
        ({}, {"before": 3}, "no-pair"),
        ({}, {"language": "cobol"}, "unknown-language"),
        ({"max_output_tokens": 2}, {}, "output-too-long"),
        ({"max_input_tokens": 9}, {}, "input-too-long"),
    ]
    for options, fields, reason in cases:
        (dropped,) = examples(Repair(**options), tokenizer, **fields)
        assert isinstance(dropped, Dropped) and dropped.reason == reason


def test_the_identity_changes_with_whatever_the_text_does(tokenizer: TextTokenizer) -> None:
    options: list[dict[str, Any]] = [
        {}, {"input": "IR3"}, {"output": "OR1"}, {"comments": "indented"}, {"remove_comments": False}, {"outside": True},
        {"sentinels": "new"},
    ]  # fmt: skip
    found = [Repair(**each).identity(tokenizer) for each in options]
    assert all(found[i] != found[j] for i in range(len(found)) for j in range(i))
    assert found[0] == Repair(max_output_tokens=9, chunks="apart").identity(tokenizer)
