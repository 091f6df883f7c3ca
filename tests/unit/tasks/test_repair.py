"""Rows of the task ``repair``: prompt, target, what is dropped, and what two runs must have in common."""

from typing import Any

import pytest
from tests.fixtures.tiny_model import make_tokenizer

from luthier.encoding.encode import encode, encode_prompt
from luthier.encoding.infill import SENTINELS
from luthier.encoding.repair import place_of
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.metrics.code import ast_match
from luthier.records import Dropped, Example, Record, Row
from luthier.tasks.repair import Attempt, Repair

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
    assert task.repaired(place_of(buggy, fixed)[0], found.target, "python") == (fixed, "output")
    assert ast_match([found.target, "x"], [found.target] * 2, metas=[found.meta] * 2) == [1, 0]


def test_trees_are_compared_with_the_output_in_its_place() -> None:
    text = "def f(a):\n    if a:\n        b()\n    else:\n        d()\n"
    meta = {"before": text, "start": 3, "end": 4, "output": "OR2", "language": "python"}
    fixed = "    elif a:\n"
    outputs = [fixed, "    elif (a):  # x\n", "    elif b:\n", "    else:\n", fixed]
    metas = [meta] * 4 + [meta | {"language": "cobol"}]
    assert ast_match(outputs, [fixed] * 5, metas=metas) == [1, 1, 0, 0, 0]
    inside = {"before": "def f(a):\n    return g(\n        a\n    )\n", "start": 2, "end": 3}
    assert ast_match(["        b \n"], ["        b\n"], metas=[meta | inside]) == [1]
    assert ast_match([text], [text + "\n"], metas=[{"language": "python"}]) == [1], "a whole function"


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


TRIED = {
    "output": "    return c * b\n",
    "function": "def add(a, b):\n    c = a\n    return c * b\n",
    "feedback": {"stage": "test", "error": "AssertionError", "expected": "3"},
}
EARLIER = {"output": "    return\n", "function": None, "feedback": {"stage": "extract"}}


def test_earlier_patches_stand_before_the_fix_and_are_not_trained(tokenizer: TextTokenizer) -> None:
    found = row(Repair(), tokenizer, attempts=[EARLIER, TRIED])
    assert prompt(found, tokenizer).endswith(
        "# fixed code:\n    return\n# there is no function in it\n# fixed code:\n"
        "    return c * b\n# AssertionError\n# expected: 3\n# fixed code:\n"
    )
    assert found.target == "    return c + b\n"
    assert (
        prompt(found, tokenizer)
        .removeprefix(prompt(row(Repair(), tokenizer), tokenizer))
        .startswith("    return\n")
    )
    for attempts in ([{"output": 3}], ["return"], 3):
        (wrong,) = examples(Repair(), tokenizer, attempts=attempts)
        assert isinstance(wrong, Dropped) and wrong.reason == "bad-attempts"
        assert Repair().duplicate_text(record(attempts=attempts)).startswith(BEFORE)
    with pytest.raises(UserError, match="no place for earlier patches"):
        examples(Repair(input="IR3", sentinels="new"), tokenizer, attempts=[TRIED])


def test_attempts_have_the_form_of_outputs(tokenizer: TextTokenizer) -> None:
    whole = row(Repair(input="IR1", output="OR1"), tokenizer, attempts=[TRIED])
    assert f"{TRIED['function']}# AssertionError\n" in prompt(whole, tokenizer)
    diff = row(Repair(output="OR4"), tokenizer, attempts=[TRIED])
    assert "-    return c - b\n+    return c * b\n# AssertionError\n" in prompt(diff, tokenizer)


def test_the_oldest_attempts_give_way_first(tokenizer: TextTokenizer) -> None:
    many = [{**TRIED, "output": f"    return {i}\n", "function": None} for i in range(30)]
    (example,) = examples(Repair(), tokenizer, attempts=many)
    assert isinstance(example, Example)
    encoded = encode(example, tokenizer, 400)
    assert isinstance(encoded, Row)
    text = prompt(encoded, tokenizer)
    assert text.startswith("def add(a, b):\n    c = a\n# buggy code") and text.count(
        "# AssertionError"
    ) in range(5, 30)
    assert "    return 29\n" in text and "    return 0\n" not in text


def test_the_place_of_a_change_can_be_given(tokenizer: TextTokenizer) -> None:
    found = row(Repair(), tokenizer, span=[1, 3])
    assert found.target == "    c = a\n    return c + b\n" and "# buggy code\n#     c = a\n" in prompt(
        found, tokenizer
    )
    (dropped,) = examples(Repair(), tokenizer, span=[1, 2])
    assert isinstance(dropped, Dropped) and dropped.reason == "no-round-trip"
    for span in ("2", 3, [1], ["a", 2], [2, 1], [0, 4], [-1, 3]):
        (dropped,) = examples(Repair(), tokenizer, span=span)
        assert isinstance(dropped, Dropped) and dropped.reason == "bad-span", span


def test_changes_that_are_taken_apart_have_places_of_their_own(tokenizer: TextTokenizer) -> None:
    before = BEFORE.replace("return c", "d = c\n    return d")
    after = before.replace("c = a", "c = +a").replace("- b", "+ b")
    found = examples(Repair(chunks="apart"), tokenizer, before=before, after=after, span=[1, 4])
    assert [e.spans[-2].text for e in found if isinstance(e, Example)] == [
        "    c = +a\n",
        "    return d + b\n",
    ]


def test_in_a_chat_the_function_stands_in_a_fence(tokenizer: TextTokenizer) -> None:
    task = Repair(format="chat", input="IR1", output="OR1")
    found = row(task, tokenizer, attempts=[TRIED])
    fixed = "def add(a, b):\n    c = a\n    return c + b\n"
    assert found.target == f"```python\n{fixed}```"
    shown = prompt(found, tokenizer)
    assert "```python\ndef add(a, b):\n    c = a\n    return c - b\n```" in shown
    assert "```python\ndef add(a, b):\n    c = a\n    return c * b\n```" in shown
    assert "AssertionError\nexpected: 3\nAnswer with the whole fixed function in one fenced block." in shown
    buggy, _, language = task.sides(record())  # type: ignore[misc]
    place = place_of(buggy, fixed)[0]
    attempts = [Attempt.model_validate(TRIED)]
    spans = task.prompt_spans(place, language, "", tokenizer, 400, attempts)
    ids = encode_prompt(Example("p", spans, "p"), tokenizer, 400)
    assert ids == found.input_ids[: found.num_prompt_tokens].tolist()
    assert task.repaired(place, f"Well:\n{found.target}\n", "python") == (fixed, "fence")
    assert task.answer(f"Well:\n{found.target}") == fixed and Repair().answer("x") == "x"
    assert ast_match([task.answer(found.target)], [fixed], metas=[found.meta]) == [1]
    with pytest.raises(ValueError, match="a reply holds a whole function"):
        Repair(format="chat")


def test_a_chat_keeps_what_was_asked_and_the_last_attempts(tokenizer: TextTokenizer) -> None:
    task = Repair(format="chat", input="IR1", output="OR1")
    many = [{**TRIED, "function": f"def add(a, b):\n    return {i}\n"} for i in range(9)]
    found = row(task, tokenizer, attempts=many)
    shown = prompt(found, tokenizer)
    assert "return c - b" in shown and "return 8\n" in shown and "return 0\n" not in shown


def test_another_chat_template_is_another_form(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = []
    for template in ("{{ messages[0].content }}", "{{ messages[0].content }} "):
        monkeypatch.setattr(tokenizer.hf, "chat_template", template)
        chat = Repair(input="IR1", output="OR1", format="chat").identity(tokenizer)
        forms.append((chat["chat_template"], Repair().identity(tokenizer)["chat_template"]))
    assert forms[0][0] != forms[1][0] and forms[0][1] == forms[1][1] == "none"
