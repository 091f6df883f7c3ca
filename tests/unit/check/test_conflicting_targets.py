from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from tests.fixtures.given_rows import GivenRows, row

from luthier import registry
from luthier.check.context import Skip
from luthier.records import Finding


def check(context: GivenRows) -> list[Finding]:
    return list(registry.lookup("check", "conflicting-targets", "test")(context))


def labelled(folder: Path, texts: list[int], labels: list[int]) -> GivenRows:
    rows = [
        row(i, [text, 7, 8], prompt=3, target=str(label), label=label)
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    context = GivenRows(folder, train=rows)
    context.objective = "classes"
    return context


@pytest.mark.parametrize("seed", range(5))
def test_impossible_labels_are_those_of_a_plain_count(tmp_path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    texts, labels = draw.integers(0, 60, 200).tolist(), draw.integers(0, 3, 200).tolist()
    by_text: dict[int, Counter[int]] = defaultdict(Counter)
    for text, label in zip(texts, labels, strict=True):
        by_text[text][label] += 1
    wrong = sum(sum(c.values()) - max(c.values()) for c in by_text.values())
    disputed = sum(sum(c.values()) for c in by_text.values() if len(c) > 1)
    (found,) = check(labelled(tmp_path, texts, labels))
    assert found.severity == "warning" and found.measured == round(wrong / 200, 4)
    assert f"{disputed} of 200 rows" in found.what and f"more than {1 - wrong / 200:.2%}" in found.what


def test_a_few_disputed_labels_are_a_note(tmp_path: Path) -> None:
    (found,) = check(labelled(tmp_path, [*range(99), 0], [0] * 99 + [1]))
    assert found.severity == "note" and found.measured == 0.01
    (tmp_path / "none").mkdir()
    assert check(labelled(tmp_path / "none", [*range(99), 0], [0] * 100)) == []


def test_one_prompt_for_all_rows(tmp_path: Path) -> None:
    rows = [row(i, [5, 6, 7, 100 + i], prompt=3) for i in range(60)]
    (found,) = check(GivenRows(tmp_path, train=rows))
    assert found.severity == "warning" and found.measured == 1.0 and "60 different targets" in found.what


def test_one_prompt_with_one_answer_is_no_contradiction(tmp_path: Path) -> None:
    assert check(GivenRows(tmp_path, train=[row(i, [5, 6, 7, 100], prompt=3) for i in range(60)])) == []


@pytest.mark.parametrize(("answers", "said"), [(2, 1), (1, 0)])
def test_several_answers_to_a_prompt_are_a_note(tmp_path: Path, answers: int, said: int) -> None:
    rows = [row(i, [5, i // 2, 7, 100 + i % answers], prompt=3) for i in range(60)]
    found = check(GivenRows(tmp_path, train=rows))
    assert [f.severity for f in found] == ["note"] * said


@pytest.mark.parametrize("prompt", [0, 1])
def test_rows_without_a_prompt_are_not_compared(tmp_path: Path, prompt: int) -> None:
    with pytest.raises(Skip, match="fewer than 20 training rows have a prompt"):
        check(GivenRows(tmp_path, train=[row(i, [5, i, 7], prompt=prompt) for i in range(60)]))


def test_rows_of_several_answers_are_not_compared(tmp_path: Path) -> None:
    rows = [row(i, [5, 6, 7, i, 8, i], prompt=3) for i in range(60)]
    for made in rows:
        made.loss_weights[4] = 0  # two stretches: a conversation, or lines of a file
    with pytest.raises(Skip, match="one answer"):
        check(GivenRows(tmp_path, train=rows))


def test_numbers_of_a_scale_are_not_compared(tmp_path: Path) -> None:
    context = GivenRows(tmp_path, train=[row(i, [5, 6], label=i / 7) for i in range(60)])
    context.objective = "classes"
    with pytest.raises(Skip, match="scale"):
        check(context)
