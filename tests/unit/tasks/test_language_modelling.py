import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.tokenizers import characters, mistral, with_sentinels
from tests.property.test_encoding import TEXT

from luthier.encoding.encode import encode
from luthier.encoding.infill import SENTINELS, Infill
from luthier.encoding.windows import windows
from luthier.errors import UserError
from luthier.records import Dropped, Record, Row
from luthier.sources.humaneval_infilling import HumanEvalInfilling
from luthier.tasks.language_modelling import LanguageModelling

CODE = "".join(f"def function_{i}(a, b):\n    return a * {i} + b\n\n" for i in range(40))
FILES = Path(os.environ.get("LUTHIER_TEST_DATA", "data")) / "completion"


def made(task: LanguageModelling, fields, tokenizer, max_length=64, split="train") -> list:
    return list(task.examples(Record("r", fields, "g"), split, tokenizer, max_length=max_length, seed=0))


@settings(max_examples=60, deadline=None)
@given(TEXT.filter(bool) | st.just(CODE), st.integers(2, 90), st.data())
def test_windows_join_to_the_text(text: str, num_tokens: int, data) -> None:
    for tokenizer in (characters(), mistral()):
        context = data.draw(st.integers(0, num_tokens // 2 - 1)) if num_tokens > 3 else 0
        parts = list(windows(text, tokenizer, num_tokens, context))
        assert "".join(text[p.start : p.end] for p in parts) == text
        for part in parts:
            assert part.context <= part.start < part.end


def test_windows_end_at_lines() -> None:
    parts = list(windows(CODE, characters(), 100, 10))
    assert all(CODE[part.end - 1] == "\n" for part in parts)
    assert all(60 < part.end - part.context <= 100 for part in parts[:-1])
    assert all(part.start - part.context == 10 for part in parts[1:])


def test_windows_count_control_tokens_in_a_text_as_the_text_that_they_are() -> None:
    tokenizer = mistral()
    text = "</s> and then a word\n" * 40
    for part in windows(text, tokenizer, 30, 5):
        assert len(tokenizer.encode(text[part.start : part.end], first=False)) <= 30 + 2


@pytest.mark.parametrize("tokenizer", [characters(), mistral()], ids=["characters", "mistral"])
def test_every_token_is_trained_once_and_documents_are_told_apart(tokenizer) -> None:
    examples = made(LanguageModelling(), {"text": CODE}, tokenizer)
    rows = [encode(example, tokenizer, 64) for example in examples]
    assert len(rows) > 3 and all(isinstance(row, Row) and len(row.input_ids) <= 64 for row in rows)
    assert "".join(row.target for row in rows) == CODE
    assert rows[-1].input_ids[-1] == tokenizer.eos_id and rows[-1].loss_weights[-1] == 1
    first = tokenizer.prefix_ids[0] if tokenizer.prefix_ids else tokenizer.eos_id
    assert rows[0].input_ids[0] == first and rows[0].loss_weights[0] == 0
    assert int(sum((row.input_ids == tokenizer.eos_id).sum() for row in rows)) == (
        1 if tokenizer.prefix_ids else 2
    )
    assert examples[1].meta["line"] > 1


@pytest.mark.parametrize("loss", ["middle", "all"])
def test_windows_with_gaps_fit(loss: str) -> None:
    tokenizer = with_sentinels("new")
    task = LanguageModelling(infill=Infill(rate=1.0, order="mixed", loss=loss))
    rows = [encode(example, tokenizer, 64) for example in made(task, {"text": CODE}, tokenizer)]
    assert all(isinstance(row, Row) for row in rows)
    assert all("infill" in row.meta for row in rows)
    trained = sum(int((row.loss_weights != 0).sum()) for row in rows) / sum(
        len(row.input_ids) for row in rows
    )
    assert trained > 0.85 if loss == "all" else 0.1 < trained < 0.7


def test_records_with_a_gap_of_their_own() -> None:
    tokenizer = with_sentinels("new")
    fields = {
        "prefix": "def f(x):\n",
        "suffix": "    return y + y\n",
        "middle": "    y = x\n",
        "test": "T",
        "entry_point": "f",
    }
    [example] = made(LanguageModelling(infill=Infill()), fields, tokenizer, 200, "test")
    row = encode(example, tokenizer, 200)
    # The line end before the gap belongs to the middle, and the program that is judged is the same.
    assert row.target == "\n    y = x\n" and row.meta["before"] == "def f(x):"
    assert row.meta["behind"] == "    return y + y\n\nT\ncheck(f)\n"
    marks = SENTINELS["new"]
    prompt = tokenizer.decode(row.input_ids[: row.num_prompt_tokens])
    assert prompt == f"{marks.prefix}def f(x):{marks.suffix}{fields['suffix']}{marks.middle}"
    task = LanguageModelling(infill=Infill())
    assert task.answer_to(row, "\n    y = x\n    return y + y\n") == row.target
    with pytest.raises(UserError, match="knows no sentinel tokens"):
        made(LanguageModelling(), fields, tokenizer)


def test_a_copy_is_one_wherever_it_lies() -> None:
    task = LanguageModelling()
    one, other = (Record(p, {"text": CODE, "path": p, "language": "python"}, p) for p in ("a.py", "b/c.py"))
    assert task.duplicate_text(one) == task.duplicate_text(other) == CODE
    gap = {"prefix": "a(", "middle": "b", "suffix": ")", "task": "t"}
    assert task.duplicate_text(Record("g", gap, "g")) == "a(b)"


def test_texts_that_give_nothing_are_counted() -> None:
    [dropped] = made(LanguageModelling(), {"other": "x"}, characters())
    assert isinstance(dropped, Dropped) and dropped.reason == "no-text"
    [dropped] = made(LanguageModelling(), {"text": " \n"}, characters())
    assert dropped.reason == "blank" and not dropped.budgeted


def test_gaps_of_one_problem_are_a_group(tmp_path: Path) -> None:
    row = {"prompt": "a", "suffix": "b", "canonical_solution": "c", "test": "t", "entry_point": "f"}
    path = tmp_path / "x.jsonl"
    names = [
        "SingleLineInfilling/HumanEval/0/L0",
        "SingleLineInfilling/HumanEval/0/L1",
        "RandomSpanInfilling/HumanEval/7/2",
    ]
    path.write_text("".join(json.dumps(row | {"task_id": name}) + "\n" for name in names))
    records = list(HumanEvalInfilling(path=str(path)).records())
    assert [r.group for r in records] == ["HumanEval/0", "HumanEval/0", "HumanEval/7"]
    assert [r.id for r in records] == names and records[0].fields["middle"] == "c"
    path.write_text(json.dumps(row | {"task_id": "other/1"}) + "\n")
    with pytest.raises(UserError, match="no task of HumanEval-Infilling"):
        list(HumanEvalInfilling(path=str(path)).records())


@pytest.mark.skipif(not FILES.is_dir(), reason="the benchmark's files are not there (LUTHIER_TEST_DATA)")
@pytest.mark.parametrize("name", ["single-line", "random-span-light"])
def test_the_solutions_of_the_benchmark_pass_and_nothing_else_does(name: str) -> None:
    from luthier.metrics.pass_at_k import pass_at_1

    records = list(HumanEvalInfilling(path=str(FILES / f"humaneval-infilling-{name}.jsonl.gz")).records())
    tokenizer, task = with_sentinels("new"), LanguageModelling(infill=Infill())
    rows = [
        encode(next(task.examples(record, "test", tokenizer, max_length=8192, seed=0)), tokenizer, 8192)
        for record in records[:: len(records) // 12]
    ]
    metas = [row.meta for row in rows]
    assert pass_at_1([row.target for row in rows], [""] * len(rows), metas=metas) == [1.0] * len(rows)
    assert sum(pass_at_1(["raise ValueError\n"] * len(rows), [""] * len(rows), metas=metas)) == 0
