import re

import pytest
from tests.fixtures.tokenizers import characters, smollm, with_sentinels

from luthier.encoding.encode import encode
from luthier.encoding.infill import SENTINELS
from luthier.records import Dropped, Example, Record, Row
from luthier.tasks.codexglue import CodeXGlueLine

PYTHON = "<s> import os <EOL> def f ( a ) : <EOL> return a <EOL> x = <NUM_LIT> </s>"
JAVA = "<s> class A { int x = <NUM_LIT> ; void f ( ) { g ( '<CHAR_LIT:;>' ) ; } } </s>"


def made(task: CodeXGlueLine, fields: dict[str, object], **more: int) -> list:
    return list(
        task.examples(
            Record("r", fields, "g"), "train", characters(), max_length=512, seed=more.get("seed", 0)
        )
    )


@pytest.mark.parametrize(
    ("language", "text", "lines"),
    [
        ("python", PYTHON, [" def f ( a ) : <EOL>", " return a <EOL>", " x = <NUM_LIT> </s>"]),
        (
            "java",
            JAVA,
            [" int x = <NUM_LIT> ;", " void f ( ) {", " g ( '<CHAR_LIT:;>' ) ;", " }", " }", " </s>"],
        ),
    ],
)
def test_lines_are_cut_out_of_token_level_files(language: str, text: str, lines: list[str]) -> None:
    task = CodeXGlueLine(language=language, cut="line-start", max_lines_per_file=99, min_tokens=1)
    examples = made(task, {"tokens": text})
    assert [e.spans[1].text for e in examples] == lines
    for example in examples:
        context, target = example.spans
        assert text.startswith(context.text + target.text) and (context.weight, target.weight) == (0, 1)
        assert context.trim == "left" and target.trim == "never"
        assert re.search(task.stop_pattern, target.text)


@pytest.mark.parametrize(("language", "text"), [("python", PYTHON), ("java", JAVA)])
def test_inside_cuts_leave_some_of_the_line_on_both_sides(language: str, text: str) -> None:
    whole = CodeXGlueLine(language=language, cut="line-start", max_lines_per_file=99)
    lines = [e.spans[1].text for e in made(whole, {"tokens": text})]
    task = CodeXGlueLine(language=language, max_lines_per_file=99)
    places = set()
    for seed in range(50):
        examples = made(task, {"tokens": text}, seed=seed)
        assert len(examples) == len(lines)
        for line, example in zip(lines, examples, strict=True):
            target = example.spans[1].text
            assert (
                line.endswith(target) and target != line and text.startswith(example.spans[0].text + target)
            )
            places.add(example.meta["token"])
    assert len(places) > 5
    assert len(made(CodeXGlueLine(language=language, max_lines_per_file=1), {"tokens": text})) == 1
    shorter = CodeXGlueLine(language=language, max_lines_per_file=99, min_tokens=1)
    assert len(made(shorter, {"tokens": text})) == len(lines), "a line of one token has no inside"


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_a_line_can_be_asked_with_what_follows_it(order: str) -> None:
    task = CodeXGlueLine(max_lines_per_file=99, infill={"rate": 1.0, "order": order, "sentinels": "new"})
    marks, tokenizer = SENTINELS["new"], with_sentinels("new")
    plain = CodeXGlueLine(max_lines_per_file=99)
    expected = [e.spans for e in made(plain, {"tokens": PYTHON})]

    def parts(split: str) -> list[Example]:
        found = task.examples(Record("r", {"tokens": PYTHON}, "g"), split, tokenizer, max_length=512, seed=0)
        return [e for e in found if isinstance(e, Example)]

    assert [e.spans for e in parts("test")] == expected, "evaluation sees what is published"
    rows = parts("train")
    assert [e.meta.get("infill") for e in rows] == [order, order, None]  # nothing follows the last line
    assert rows[2].spans == expected[2]
    for example, (context, target) in zip(rows[:2], expected, strict=False):
        by_name = {s.name: s.text for s in example.spans}
        assert (by_name["prefix"], by_name["middle"]) == (context.text, target.text)
        assert context.text + target.text + by_name["suffix"] == PYTHON
        row = encode(example, tokenizer, 512)
        assert isinstance(row, Row) and row.target == target.text
        assert tokenizer.decode(row.input_ids[row.loss_weights > 0]) == target.text + marks.end
        # Too long a row keeps its target.
        assert encode(example, tokenizer, 60).target == target.text
    with pytest.raises(ValueError, match="spans"):
        CodeXGlueLine(infill={"spans": "lines"})
    given = {"input": "<s> x", "gt": "= 1"}
    [only] = task.examples(Record("r", given, "g"), "train", tokenizer, max_length=512, seed=0)
    assert [s.name for s in only.spans] == ["context", "target"]


def test_line_level_rows_are_taken_as_they_are() -> None:
    [example] = made(CodeXGlueLine(language="java"), {"id": 7, "input": "<s> f ( final A", "gt": "b , C d )"})
    assert [s.text for s in example.spans] == ["<s> f ( final A", " b , C d ) {"]
    assert example.meta == {"id": 7}
    [example] = made(CodeXGlueLine(language="java"), {"id": 7, "input": "<s> x", "gt": "= 1 ;"})
    assert example.spans[1].text == " = 1 ;"
    [example] = made(CodeXGlueLine(), {"id": 7, "input": "<s> x", "gt": "= 1"})
    assert example.spans[1].text == " = 1 <EOL>"


@pytest.mark.parametrize(
    ("language", "text", "answer"),
    [
        ("python", " return a <EOL> x", "return a"),
        ("python", " x = 1 </s>", "x = 1"),
        ("python", " EOL > < x", "EOL > < x"),  # no set of characters is stripped
        ("java", " b , C d ) { int", "b , C d )"),
        ("java", " = <NUM_LIT:0> ; int", "= <NUM_LIT:0> ;"),
        ("java", " '<CHAR_LIT:;>' ) ; x", "'<CHAR_LIT:;>' ) ;"),
        ("java", " }", "}"),
        ("java", " x y", "x y"),
    ],
)
def test_answers_are_what_gt_holds(language: str, text: str, answer: str) -> None:
    assert CodeXGlueLine(language=language).answer(text) == answer


def test_rows_that_give_no_line_are_counted() -> None:
    [dropped] = made(CodeXGlueLine(), {"text": "x"})
    assert isinstance(dropped, Dropped) and dropped.reason == "no-tokens" and dropped.budgeted
    [dropped] = made(CodeXGlueLine(), {"tokens": "<s> a </s>"})
    assert isinstance(dropped, Dropped) and dropped.reason == "no-line" and not dropped.budgeted


def test_a_long_input_loses_its_beginning_and_never_the_target() -> None:
    text = "<s> " + "a = b <EOL> " * 400 + "return x </s>"
    task = CodeXGlueLine(max_lines_per_file=99, cut="line-start")
    for example in task.examples(Record("r", {"tokens": text}, "g"), "test", smollm(), max_length=64, seed=0):
        row = encode(example, smollm(), 64)
        assert row.target == example.spans[1].text and len(row.input_ids) <= 64
