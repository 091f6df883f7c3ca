"""CodeXGLUE's evaluator: ours prints the same digits, on the published rows where they are and on generated ones.

The reference is written from the evaluator's description and takes ``fuzz.ratio`` from fuzzywuzzy with
python-Levenshtein, as the evaluator does; a second one counts the longest common subsequence by the textbook table.
"""

import json
import os
import random
import re
from pathlib import Path

import pytest
from fuzzywuzzy import fuzz

from luthier.metrics.codexglue import codexglue_edit_similarity, codexglue_exact_match, with_literals

PUBLISHED = Path(os.environ.get("LUTHIER_TEST_DATA", "data")) / "completion" / "line_answers_5.json"
WORDS = [
    "self",
    ".",
    "x",
    "=",
    "(",
    "a",
    ",",
    "b",
    ")",
    "<NUM_LIT>",
    "<NUM_LIT:0>",
    "'<STR_LIT>'",
    "'<STR_LIT:name>'",
    '"<STR_LIT:U+0020>"',
    "'<CHAR_LIT:;>'",
    "'<CHAR_LIT>'",
    "return",
    "foo.bar",
    "é",
    "日本",
    "<STR_LIT:<NUM_LIT:0>>",
    "<",
    ">",
    ":",
    "[",
    "]",
    "{}",
    "<UNK_LIT:1>",
    "\t",
]


def line_scores(outputs: list[str], targets: list[str]) -> str:
    """What the evaluator would print of our scores."""
    similar = sum(round(100 * s) for s in codexglue_edit_similarity(outputs, targets)) / len(targets)
    exact = sum(codexglue_exact_match(outputs, targets)) / len(targets)
    return f"Edit sim: {round(similar, 2)}, EM: {round(exact * 100, 2)}"


def literal(text: str) -> str:
    """The evaluator's ``post_process``, step by step."""
    for name, value in (("NUM", "0"), ("STR", ""), ("CHAR", "")):
        text = value.join(text.split(f"<{name}_LIT>"))
    for found in list(re.finditer("<(STR|NUM|CHAR)_LIT:(.*?)>", text, re.S)):
        text = found.group(2).join(text.split(found.group(0)))
    return text


def printed(outputs: list[str], targets: list[str]) -> str:
    similar, exact = 0.0, 0.0
    for output, target in zip(outputs, targets, strict=True):
        output, target = literal(output.strip()), literal(target)
        similar += fuzz.ratio(output, target)
        exact += output.split() == target.split()
    count = len(targets)
    return f"Edit sim: {round(similar / count, 2)}, EM: {round(exact / count * 100, 2)}"


def ratio(one: str, other: str) -> float:
    """2 LCS / (|a| + |b|) by the textbook table."""
    row = [0] * (len(other) + 1)
    for a in one:
        before = row
        row = [0]
        for j, b in enumerate(other):
            row.append(before[j] + 1 if a == b else max(row[j], before[j + 1]))
    return 2 * row[-1] / (len(one) + len(other)) if one or other else 1.0


def generated(count: int, seed: int) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    targets = [" ".join(draw.choices(WORDS, k=draw.randrange(1, 20))) for _ in range(count)]
    outputs = []
    for target in targets:
        words = target.split()
        for _ in range(draw.choice([0, 0, 1, 2, 5])):
            place = draw.randrange(len(words) + 1)
            words[place : place + draw.randrange(2)] = draw.choices(WORDS, k=draw.randrange(3))
        outputs.append(draw.choice([" ", "  "]).join(words) + draw.choice(["", " ", "\n"]))
    return outputs, targets


def test_generated_rows_print_the_same_digits() -> None:
    outputs, targets = generated(200, seed=0)
    assert line_scores(outputs, targets) == printed(outputs, targets)
    for seed in range(1, 40):
        assert line_scores(*generated(200, seed)) == printed(*generated(200, seed))
    exact = codexglue_exact_match(outputs, targets)
    assert 0.1 < sum(exact) / 200 < 0.9


def test_edit_similarity_is_that_of_the_longest_common_subsequence() -> None:
    outputs, targets = generated(200, seed=7)
    for output, target, score in zip(
        outputs, targets, codexglue_edit_similarity(outputs, targets), strict=True
    ):
        assert score == round(100 * ratio(literal(output.strip()), literal(target))) / 100


def test_literals_are_written_out() -> None:
    assert (
        with_literals('f ( "<STR_LIT:name>" , <NUM_LIT> , "<STR_LIT>" , <NUM_LIT:3> )')
        == 'f ( "name" , 0 , "" , 3 )'
    )
    assert line_scores(["x = 0"], ["x = <NUM_LIT>"]) == "Edit sim: 100.0, EM: 100.0"
    assert line_scores(["a", "b", "c"], ["a", "d", "e"]) == "Edit sim: 33.33, EM: 33.33"
    assert line_scores([""], ["x"]) == "Edit sim: 0.0, EM: 0.0"
    assert line_scores([""], [""]) == "Edit sim: 100.0, EM: 100.0"


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published rows are not there (LUTHIER_TEST_DATA)")
def test_published_rows_print_the_same_digits() -> None:
    targets = [json.loads(line)["gt"] for line in PUBLISHED.read_text(encoding="utf-8").splitlines()]
    assert len(targets) == 5
    draw = random.Random(0)
    right = list(targets)
    wrong = [target[: draw.randrange(len(target))] + " x" for target in targets]
    for outputs in (right, wrong, [*right[:2], *wrong[2:]], [""] * 5):
        assert line_scores(outputs, targets) == printed(outputs, targets)
    assert line_scores(right, targets) == "Edit sim: 100.0, EM: 100.0"
