"""Rows of project-level completion, on a project of six files and on one of long ones."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.fixtures.small_project import FILES, PATH, TEXT, records
from tests.fixtures.tokenizers import characters, smollm, with_sentinels

from luthier.encoding.encode import encode
from luthier.encoding.infill import SENTINELS
from luthier.errors import UserError
from luthier.records import Dropped, Example, Record, Row
from luthier.sources.code import Code
from luthier.tasks.project_completion import ProjectCompletion

LONG = "".join(
    f"def function_{i}(value):\n    result = value + {i}\n    return helper_{i % 7}(result)\n\n\n"
    for i in range(40)
)


def with_neighbours(*projects: list[Record]) -> list[Record]:
    """The last record of each project, which can see all of them."""
    neighbours = {found[0].fields["project"]: found for found in projects}
    return [replace(found[-1], neighbours=neighbours) for found in projects]


def long_project(name: str = "long", num_files: int = 4) -> list[Record]:
    return [
        Record(
            f"{name}/f{i}.py",
            {
                "text": LONG.replace("result", f"result_{i}"),
                "path": f"pkg{i % 2}/f{i}.py",
                "language": "python",
                "project": name,
            },
            name,
        )
        for i in range(num_files)
    ]


def rows(task: ProjectCompletion, record: Record, split: str, max_length: int, tokenizer=None) -> list[Row]:
    tokenizer = tokenizer or smollm()
    made = list(task.examples(record, split, tokenizer, max_length=max_length, seed=0))
    found = [encode(item, tokenizer, max_length) if isinstance(item, Example) else item for item in made]
    assert not [item for item in found if isinstance(item, Dropped)]
    return found


def test_evaluation_rows_ask_for_lines_with_the_project_before_them() -> None:
    [record] = with_neighbours(records())
    task = ProjectCompletion(
        max_lines_per_file=20, stretch_share=0.9, prefix_share=0.05, composer="imports-first"
    )
    found = rows(task, record, "test", 1024)
    lines = TEXT.split("\n")
    assert [row.target.strip("\n ") for row in found] == [
        lines[row.meta["line"] - 1].strip() for row in found
    ]
    assert len(found) == 11  # all visible lines but the first and the comment
    prompt = smollm().decode(found[-1].input_ids[: found[-1].num_prompt_tokens])
    order = [
        prompt.index(f"# {path}\n") for path in ("tools/report.py", "shop/cart.py", "shop/money.py", PATH)
    ]
    assert order == sorted(order)
    assert prompt.endswith("    return place_order(order)\n    # done")
    assert task.answer(found[-1].target + "more\n") == "    total = rows + 12345"
    strata = {row.meta["line"]: row.meta["strata"] for row in found}
    assert (
        strata[9]["category"] == strata[9]["category by import"] == "inproject"
    )  # basket.add_item(Price(3))
    assert strata[3] == {
        "project": "shop", "category": "inproject", "category by import": "other", "verbatim in context": "yes",
    }  # fmt: skip  # from .money import Price, which shop/cart.py has as well
    assert strata[15]["verbatim in context"] == "no"


def test_only_lines_of_the_categories_that_are_asked_for() -> None:
    [record] = with_neighbours(records())
    found = rows(ProjectCompletion(max_lines_per_file=20, categories=["committed"]), record, "test", 1024)
    assert [row.target.strip() for row in found] == [
        "from .vouchers import Voucher",
        "voucher = Voucher(order)",
    ]


def test_lines_that_the_data_itself_asks_for() -> None:
    [record] = with_neighbours(records())
    given = {"infile": [6], "random": [13, 14]}
    record = replace(record, fields={**record.fields, "completion_lines": given})
    found = rows(ProjectCompletion(max_lines_per_file=1), record, "test", 1024)
    assert [(row.meta["line"], row.meta["strata"]["category"]) for row in found] == [
        (7, "infile"), (14, "random"), (15, "random"),
    ]  # fmt: skip


def test_lines_that_are_asked_for_and_cannot_be_are_dropped_with_a_reason() -> None:
    [record] = with_neighbours(records())
    text = TEXT.replace("    total", f"    names = [{', '.join(map(str, range(400)))}]\n    total")
    asked = {"infile": [0, 4, 6], "random": [9, 14, 15, 99], "common": [10]}
    record = replace(record, fields={**record.fields, "text": text, "completion_lines": asked})
    task = ProjectCompletion(categories=["infile", "random"])
    made = list(task.examples(record, "test", smollm(), max_length=1024, seed=0))
    dropped = {item.id.rpartition("#")[2]: item for item in made if isinstance(item, Dropped)}
    assert {number: item.reason for number, item in dropped.items()} == {
        "0": "first-line", "4": "no-such-line", "99": "no-such-line", "10": "other-category", "14": "line-too-long",
    }  # fmt: skip
    assert [number for number, item in dropped.items() if not item.budgeted] == ["10"]
    rows_made = [item.id.rpartition("#")[2] for item in made if isinstance(item, Example)]
    assert rows_made == ["6", "9", "15"]
    alone = replace(record, fields={**record.fields, "completion_lines": {"infile": [0]}})
    [only] = task.examples(alone, "test", smollm(), max_length=1024, seed=0)
    assert isinstance(only, Dropped) and only.reason == "first-line"


def test_a_row_for_training_and_one_for_evaluation_have_the_same_ids_before_a_target() -> None:
    found = with_neighbours(long_project())
    for composer in ("path-distance", "retrieval", "half-memory", "none"):
        task = ProjectCompletion(composer=composer, stretches_per_file=99, max_lines_per_file=999)
        trained = rows(task, found[0], "train", 512)
        asked = {row.meta["line"]: row for row in rows(task, found[0], "test", 512)}
        first = [asked[row.meta["line"]] for row in trained if row.meta["line"] in asked]
        assert len(first) > 3
        by_line = {row.meta["line"]: row for row in trained}
        for row in first:
            size = row.num_prompt_tokens
            other = by_line[row.meta["line"]]
            assert other.num_prompt_tokens == size
            np.testing.assert_array_equal(other.input_ids[:size], row.input_ids[:size])


@pytest.mark.parametrize("composer", ["path-distance", "retrieval", "skeletons", "none", "shuffled"])
@pytest.mark.parametrize("max_length", [256, 512])
def test_rows_fit_without_being_trimmed_and_the_prefix_keeps_its_share(
    composer: str, max_length: int
) -> None:
    [record] = with_neighbours(long_project())
    tokenizer = characters() if max_length == 512 else smollm()
    task = ProjectCompletion(
        composer=composer, stretches_per_file=2, max_lines_per_file=4, max_train_rows_per_file=4
    )
    text, kinds = record.fields["text"], set()
    for split in ("train", "test"):
        for row in rows(task, record, split, max_length, tokenizer):
            assert len(row.input_ids) <= max_length and not row.trimmed
            kinds |= set(row.span_names)
            whole = tokenizer.decode(row.input_ids)
            in_file = whole[whole.index("# pkg1/f3.py\n") + len("# pkg1/f3.py\n") :]
            first = text.index(in_file)
            line = len("".join(text.splitlines(keepends=True)[: row.meta["line"] - 1]))
            prefix = tokenizer.encode(text[first:line])
            assert first == 0 or len(prefix) >= 0.25 * max_length
            assert composer == "none" or first == 0 or len(prefix) < 0.75 * max_length
    assert bool(kinds & {"file", "skeleton", "chunk", "outline"}) == (composer != "none")


@pytest.mark.parametrize("loss", ["middle", "all"])
@pytest.mark.parametrize("order", ["psm", "spm"])
@pytest.mark.parametrize("name", ["new", "codellama"])
def test_a_gap_lies_in_the_stretch_with_the_project_before_it(name: str, order: str, loss: str) -> None:
    [record] = with_neighbours(long_project())
    tokenizer, marks = with_sentinels(name), SENTINELS[name]
    infill = {"rate": 1.0, "order": order, "spans": "lines", "loss": loss, "sentinels": name}
    plain, task = ProjectCompletion(), ProjectCompletion(infill=infill)
    gaps = 0
    for row in rows(task, record, "train", 512, tokenizer):
        assert len(row.input_ids) <= 512
        if "infill" not in row.meta:
            continue
        gaps += 1
        prefix, suffix, middle = (
            tokenizer.decode(row.input_ids[[row.span_names[i] == part for i in row.span_ids]])
            for part in ("prefix", "suffix", "middle")
        )
        assert prefix[-40:] + middle + suffix in record.fields["text"] and middle.strip()
        whole = tokenizer.decode(row.input_ids)
        titles = re.findall(r"# (pkg\d/f\d\.py)\n", whole)
        assert titles[-1] == "pkg1/f3.py" and len(titles) > 1, "other files stand before the file's own text"
        places = [whole.index(mark.strip("▁")) for mark in (marks.prefix, marks.suffix)]
        assert order == "spm" or places[0] < whole.index("# pkg") < places[1]
        trained = {row.span_names[i] for i in row.span_ids[row.loss_weights > 0]}
        assert trained <= ({"middle", "end"} if loss == "middle" else {"middle", "end", "prefix", "suffix"})
    assert gaps >= 3
    # Rows for evaluation have none.
    assert [r.target for r in rows(task, record, "test", 512, tokenizer)] == [
        r.target for r in rows(plain, record, "test", 512, tokenizer)
    ]


def test_the_context_of_another_project_holds_nothing_of_the_own() -> None:
    small, long = with_neighbours(records("a"), long_project("b"))
    task = ProjectCompletion(from_project="other", max_lines_per_file=3)
    of_small, of_long = (list(rows(task, one, "test", 1024)) for one in (small, long))
    assert of_small and of_long
    for row in of_small:
        assert {path for _, path in row.meta["context"]} <= {f"pkg{i % 2}/f{i}.py" for i in range(4)}
        assert row.meta["context"] and row.meta["strata"]["project"] == "a"
    for row in of_long:
        paths = {path for _, path in row.meta["context"]}
        assert paths and paths <= set(FILES)
    [alone] = with_neighbours(records())
    with pytest.raises(UserError, match="single project"):
        rows(task, alone, "test", 1024)


def test_a_folder_of_code_is_one_project(tmp_path: Path) -> None:
    for record in long_project():
        (tmp_path / record.fields["path"]).parent.mkdir(exist_ok=True)
        (tmp_path / record.fields["path"]).write_text(record.fields["text"])
    files = list(Code(path=str(tmp_path)).records())
    task = ProjectCompletion()
    assert {task.neighbourhood(record) for record in files} == {"the source"}
    assert task.neighbourhood(replace(files[0], group="mine")) == "mine"
    shown = replace(files[-1], neighbours={"the source": files})
    assert {path for row in rows(task, shown, "test", 1024) for _, path in row.meta["context"]}


def test_no_file_gives_more_rows_than_it_may() -> None:
    [long] = with_neighbours(long_project())
    counts = [
        len(rows(ProjectCompletion(max_lines_per_file=999, stretches_per_file=n), long, "test", 1024))
        for n in (1, 2, 99)
    ]
    assert counts[0] < counts[1] < counts[2]
    assert len(rows(ProjectCompletion(max_lines_per_file=4), long, "test", 1024)) == 4
    assert len(rows(ProjectCompletion(max_train_rows_per_file=3), long, "train", 1024)) == 3
    assert ProjectCompletion().baseline("a\nb\nc\na\n") == "b"


def test_files_that_are_only_shown_give_no_rows_and_are_no_copies() -> None:
    context = records()[0]
    task = ProjectCompletion()
    [dropped] = task.examples(context, "train", smollm(), max_length=512, seed=0)
    assert isinstance(dropped, Dropped) and dropped.reason == "context-only" and not dropped.budgeted
    assert task.duplicate_text(context) != context.fields["text"]
    assert task.duplicate_text(records()[-1]) == TEXT


def test_a_file_without_text_or_with_another_role_stands_in_nobodys_way() -> None:
    own = records()
    odd = [
        replace(own[0], id="odd", fields={"project": own[0].fields["project"], "path": "a.py"}),
        replace(own[0], id="note", fields={**own[0].fields, "path": "note.py", "role": "note"}),
    ]
    [record] = with_neighbours([*odd, *own])
    found = rows(ProjectCompletion(composer="alphabetical"), record, "test", 1024)
    assert found and ["file", "note.py"] in found[0].meta["context"]


def test_the_lines_are_the_same_whatever_the_context() -> None:
    found = with_neighbours(records("a"), long_project("b"))
    ids = [
        [row.id for record in found for row in rows(ProjectCompletion(**options), record, "test", 512)]
        for options in ({"composer": "none"}, {"composer": "retrieval"}, {"from_project": "other"})
    ]
    assert ids[0] == ids[1] == ids[2] and len(ids[0]) > 10
