import json
import os
import random
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.tiny_prepare import rows_source, tiny_recipe, tiny_tokenizer, write_rows

from luthier.errors import UserError
from luthier.prepare import build, chunks
from luthier.prepare.build import inputs, prepare
from luthier.recipe import Recipe
from luthier.records import SPLITS
from luthier.rows import Rows
from luthier.run_folder import RunFolder, read_json, read_jsonl

TOKENIZER = tiny_tokenizer()


def texts(count: int, seed: int = 0) -> list[dict[str, object]]:
    draw = random.Random(seed)
    return [{"text": f"{draw.random()}>{draw.random()}\n|{draw.random()}>b\n"} for _ in range(count)]


def hashes(run: RunFolder) -> dict[str, str]:
    files: dict[str, str] = read_json(run.manifest)["files"]
    return files


def split_of(run: RunFolder) -> dict[str, str]:
    """The split of each record, by id."""
    return {row.id.split("#")[0]: split for split in SPLITS for row in Rows(run.rows(split))}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", texts(60))


def test_rows_ledger_and_manifest_agree(tmp_path: Path, run: RunFolder) -> None:
    bad = [
        {"drop": "broken"},
        {"drop": "generated", "budgeted": False},
        {"text": ""},
        {"text": "!refused|a>"},
    ]
    path = write_rows(
        tmp_path / "rows.jsonl", [*texts(60), *texts(1), *bad, {"text": "x" * 90 + ">" + "y" * 30}]
    )
    assert prepare(tiny_recipe(path), run, TOKENIZER) is True
    ledger = read_json(run.ledger)
    reasons = {
        level: {name: (r["count"], r["budgeted"]) for name, r in ledger[level]["dropped"].items()}
        for level in ("records", "rows")
    }
    assert reasons["records"] == {
        "broken": (1, True), "generated": (1, False), "exact-duplicate": (1, False), "no-example": (1, True),
    }  # fmt: skip
    assert reasons["rows"] == {"refused": (1, True), "no-target": (1, True)}
    assert (ledger["records"]["in"], ledger["records"]["kept"]) == (66, 62)
    assert (ledger["rows"]["in"], ledger["rows"]["kept"]) == (123, 121)
    assert ledger["records"]["dropped"]["exact-duplicate"]["ids"] == ["row:61"]
    # What rules drop is in neither number.
    assert ledger["drop_share"] == pytest.approx(2 / 64) and ledger["drop_budget"] == 0.05
    assert ledger["duplicates"] == {"exact": 1, "near": 0, "clusters": 0}
    dropped = {
        (line["stage"], line["id"], line["reason"], line["detail"]) for line in read_jsonl(run.dropped)
    }
    assert ("records", "row:61", "exact-duplicate", "copy of row:1") in dropped and len(dropped) == 6
    trims = [ledger["splits"][split]["trimmed"] for split in SPLITS]
    assert [t for t in trims if t] == [{"prompt": {"rows": 1, "tokens": 56}}]  # 90 + 30 bytes into 64 tokens
    for split in SPLITS:
        made, facts = Rows(run.rows(split)), ledger["splits"][split]
        assert facts["rows"] == len(made) == sum(facts["length"]["histogram"]["counts"]) > 0
        assert facts["groups"] == len({row.group for row in made})
        assert facts["tokens"] == made.lengths().sum() and facts["length"]["max"] == made.lengths().max()
        assert facts["trained_tokens"] == made.num_trained().sum()
        assert facts["target_bytes"] == sum(len(row.target.encode()) for row in made)
        assert all(row.meta == {"split": split} for row in made)
    assert set(hashes(run)) == {p.name for p in run.data.iterdir()} - {"manifest.json"}
    assert os.listdir(run.path) == ["data"]


def test_nothing_is_done_twice(rows: Path, run: RunFolder) -> None:
    recipe = tiny_recipe(rows)
    assert prepare(recipe, run, TOKENIZER)
    before = {p.name: p.stat().st_mtime_ns for p in run.data.iterdir()}
    trained_otherwise = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 9.0})})
    more_workers = trained_otherwise.model_copy(
        update={"data": recipe.data.model_copy(update={"num_workers": 2})}
    )
    assert not prepare(more_workers, run, TOKENIZER)
    assert {p.name: p.stat().st_mtime_ns for p in run.data.iterdir()} == before


@pytest.mark.parametrize("harm", ["delete", "change", "manifest"])
def test_damaged_data_is_made_anew(rows: Path, run: RunFolder, harm: str) -> None:
    recipe = tiny_recipe(rows)
    prepare(recipe, run, TOKENIZER)
    before = hashes(run)
    if harm == "delete":
        run.rows("test").unlink()
    elif harm == "change":
        run.rows("test").write_bytes(run.rows("test").read_bytes()[:-1] + b"x")
    else:
        run.manifest.write_text("[]")
    assert prepare(recipe, run, TOKENIZER)
    assert hashes(run) == before


def test_all_that_matters_changes_the_key(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = inputs(tiny_recipe(rows), TOKENIZER)
    assert inputs(tiny_recipe(rows), tiny_tokenizer()) == base
    templated = tiny_tokenizer()
    templated.hf.chat_template = "{{ messages }}"
    changed = [
        inputs(tiny_recipe(rows, suffix="\n"), TOKENIZER),
        inputs(tiny_recipe(rows, seed=1), TOKENIZER),
        inputs(tiny_recipe(rows, max_length=65), TOKENIZER),
        inputs(tiny_recipe(rows, test_source=rows_source(rows)), TOKENIZER),
        inputs(tiny_recipe(rows), templated),
    ]
    monkeypatch.setattr(build, "code_hash", lambda entry: "another version of the task's file")
    changed.append(inputs(tiny_recipe(rows), TOKENIZER))
    monkeypatch.undo()
    monkeypatch.setattr(build, "hash_folder", lambda *_: "another version of luthier")
    changed.append(inputs(tiny_recipe(rows), TOKENIZER))
    assert len({json.dumps(facts, sort_keys=True) for facts in [base, *changed]}) == 8
    rows.write_text(rows.read_text() + '{"text": "a>b"}\n')
    monkeypatch.undo()
    assert inputs(tiny_recipe(rows), TOKENIZER) != base


def test_all_code_that_tasks_and_sources_use_is_in_the_key(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(
        build, "hash_folder", lambda folder, names: hashed.extend(f for n in names for f in folder.glob(n))
    )
    inputs(tiny_recipe(rows), TOKENIZER)
    package = Path(build.__file__).parents[1]
    text = "".join(file.read_text() for file in (*package.glob("tasks/*.py"), *package.glob("sources/*.py")))
    used = re.findall(r"^from luthier\.((?:encoding|execution|ontology|projects)\.\w+) ", text, re.MULTILINE)
    assert len(used) > 40 and {package / f"{name.replace('.', '/')}.py" for name in used} <= {*hashed}


def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path) -> None:
    made = [*texts(1200), {"text": "!refused"}, *texts(400, seed=9)]  # more than one chunk for each worker
    path = write_rows(tmp_path / "rows.jsonl", made)
    found = []
    for workers in (1, 2):
        run = RunFolder(tmp_path / f"run{workers}")
        prepare(tiny_recipe(path, num_workers=workers, max_rows={"train": 700}), run, TOKENIZER)
        found.append(hashes(run))
    assert found[0] == found[1]


def test_a_limit_keeps_the_same_rows_whatever_stands_beside_them(tmp_path: Path) -> None:
    kept = []
    for name, extra in (("a", 0), ("b", 30)):
        path = write_rows(tmp_path / f"{name}.jsonl", [*texts(100), *texts(extra, seed=5)])
        run = RunFolder(tmp_path / name)
        prepare(tiny_recipe(path, max_rows={"train": 40, "eval": 3}), run, TOKENIZER)
        ledger = read_json(run.ledger)
        assert ledger["splits"]["train"]["rows"] == 40 and ledger["splits"]["eval"]["rows"] == 3
        over = ledger["rows"]["dropped"]["over-max-rows"]
        assert over["count"] == ledger["rows"]["in"] - ledger["rows"]["kept"] and not over["budgeted"]
        assert ledger["drop_share"] == 0
        kept.append([row.id for row in Rows(run.rows("train"))])
    old = [name for name in kept[1] if int(name.split("#")[0].removeprefix("row:")) <= 100]
    assert len(old) < 40 and set(old) <= set(kept[0]) and old == [name for name in kept[0] if name in old]


def test_rows_that_cutting_made_equal_stay_in_one_split(tmp_path: Path) -> None:
    # Only the last words of a prompt stay, so that records of other beginnings give the same row.
    made = [{"text": f"{' '.join(f'w{i}x{n}' for n in range(90))} the end>x"} for i in range(40)]
    recipe = tiny_recipe(write_rows(tmp_path / "rows.jsonl", [*made, *texts(60)]), max_rows={"train": 30})
    run = RunFolder(tmp_path / "run")
    prepare(
        recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_length": 8})}), run, TOKENIZER
    )
    rows = {split: [tuple(row.input_ids.tolist()) for row in Rows(run.rows(split))] for split in SPLITS}
    assert all(not set(rows[a]) & set(rows[b]) for a, b in combinations(SPLITS, 2))
    ledger = read_json(run.ledger)
    dropped = ledger["rows"]["dropped"]
    assert dropped["row-in-test"]["count"] > 0 and not dropped["row-in-test"]["budgeted"]
    assert len(rows["train"]) == 30  # those that are left fill the limit
    assert ledger["rows"]["in"] == ledger["rows"]["kept"] + sum(entry["count"] for entry in dropped.values())


def test_rows_of_several_seeds_are_the_same_where_the_data_have_their_own(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", texts(100))
    found = []
    for own in (None, 7):
        for seed in (1, 2):
            run = RunFolder(tmp_path / f"{own}-{seed}")
            recipe = tiny_recipe(path, max_rows={"train": 40}, seed=seed)
            data = recipe.data.model_copy(update={"seed": own})
            prepare(recipe.model_copy(update={"data": data}), run, TOKENIZER)
            found.append({split: [row.id for row in Rows(run.rows(split))] for split in ("train", "test")})
    assert found[0] != found[1] and found[2] == found[3]


def test_adding_records_moves_no_other(tmp_path: Path) -> None:
    found = []
    for name, made in (("a", texts(80)), ("b", [*texts(80), *texts(80, seed=3)])):
        run = RunFolder(tmp_path / name)
        prepare(tiny_recipe(write_rows(tmp_path / f"{name}.jsonl", made)), run, TOKENIZER)
        found.append(split_of(run))
    assert found[0].items() <= found[1].items()


def test_a_split_with_a_source_of_its_own_wins_over_copies_and_groups_in_training(
    tmp_path: Path, run: RunFolder
) -> None:
    train = [
        *texts(40),
        {"text": "copied>x"},
        {"text": "same group>x", "group": "project"},
        {"text": "fine>x", "group": "p2"},
    ]
    test = [
        {"text": "copied>x"},
        {"text": "other>x", "group": "project"},
        {"text": "copied>x", "id": "again"},
    ]
    recipe = tiny_recipe(
        write_rows(tmp_path / "train.jsonl", train),
        test_source=rows_source(write_rows(tmp_path / "test.jsonl", test)),
    )
    prepare(recipe, run, TOKENIZER)
    splits, ledger = split_of(run), read_json(run.ledger)
    assert sorted(name for name, split in splits.items() if split == "test") == [
        "test:again",
        "test:row:1",
        "test:row:2",
    ]
    assert {row.group for row in Rows(run.rows("test"))} == {"test:row:1", "project", "test:again"}
    assert ledger["records"]["dropped"] == {
        "exact-duplicate": {"count": 1, "budgeted": False, "ids": ["row:41"]},
        "group-in-test": {"count": 1, "budgeted": True, "ids": ["row:42"]},
    }
    assert "row:43" in splits and ledger["splits"]["eval"]["rows"] > 0


@pytest.mark.parametrize("near", ["drop", "keep-together", "off"])
def test_near_copies(tmp_path: Path, run: RunFolder, near: str) -> None:
    draw = random.Random(0)
    made: list[dict[str, object]] = []
    for _ in range(20):
        words = [f"w{draw.randrange(1000)}" for _ in range(60)]
        made += [{"text": " ".join([*words, f"end{copy}"]) + ">x"} for copy in range(4)]
    recipe = tiny_recipe(
        write_rows(tmp_path / "rows.jsonl", made),
        near_duplicates=near,
        splits={"train": 0.4, "eval": 0.3, "test": 0.3},
    )
    prepare(recipe, run, TOKENIZER)
    splits, ledger = split_of(run), read_json(run.ledger)
    families = [{splits.get(f"row:{4 * family + copy + 1}") for copy in range(4)} for family in range(20)]
    assert ledger["duplicates"] == {
        "exact": 0,
        "near": 0 if near == "off" else 60,
        "clusters": 0 if near == "off" else 20,
    }
    assert len(splits) == (20 if near == "drop" else 80)
    if near == "off":
        assert any(len(family) > 1 for family in families)  # else this test could not fail
    else:
        assert all(len(family - {None}) == 1 for family in families)


@pytest.mark.parametrize(
    ("made", "data", "what", "where"),
    [
        ([], {}, "gave no records", "data.source"),
        ([{"drop": "broken"}] * 3, {}, "3 records broken", "data"),
        ([{"text": "!refused"}] * 3, {}, "rows refused", "task"),
        (texts(2), {}, "groups are too few for a share", "data.splits"),
        ([{"text": f"{i}>x", "group": "g"} for i in range(50)], {}, "1 groups are too few for a share", "data.splits"),
        ([*texts(30), {"text": "a>b", "id": "row:7"}], {}, "record 7 and record 31 have the same id 'row:7'", "data.source"),
        ([{"text": f"{i}>too long for it"} for i in range(30)], {"max_length": 8}, "target-too-long", "task"),
        (texts(60), {"test_source": []}, "the test split is empty", "data"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_and_leaves_nothing(
    tmp_path: Path, run: RunFolder, made: list[dict[str, object]], data: dict[str, Any], what: str, where: str
) -> None:
    if "test_source" in data:
        data = {"test_source": rows_source(write_rows(tmp_path / "empty.jsonl", data["test_source"]))}
    with pytest.raises(UserError) as caught:
        prepare(tiny_recipe(write_rows(tmp_path / "rows.jsonl", made), **data), run, TOKENIZER)
    assert what in caught.value.what and where in caught.value.where and caught.value.fix
    assert not run.path.exists() or os.listdir(run.path) == []


@pytest.mark.parametrize(
    ("defect", "what", "workers"),
    [
        ("same-id", "row 1 and row 2 have the same id 'row:1'", 1),
        ("own-group", "its record's is 'row:1'", 1),
        ("own-group", "its record's is 'row:1'", 2),
    ],
)
def test_a_defective_task_is_named(rows: Path, run: RunFolder, defect: str, what: str, workers: int) -> None:
    with pytest.raises(UserError, match=what) as caught:
        prepare(tiny_recipe(rows, defect=defect, num_workers=workers), run, TOKENIZER)
    assert "tiny-parts" in caught.value.where and os.listdir(run.path) == []


def test_records_without_text_are_no_copies_of_each_other(tmp_path: Path, run: RunFolder) -> None:
    code = [f"def f{i}(a, b):\n    return a * {i * 7919} + b\n\n\nprint(f{i}({i}, 2))\n" for i in range(40)]
    path = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in code] + [{"text": None}] * 9)
    recipe = Recipe.model_validate(
        {
            "task": {"type": "line-completion", "min_context_tokens": 4},
            "data": {
                "source": {"type": "files", "path": str(path)},
                "max_length": 200,
                "num_workers": 1,
                "drop_budget": 0.9,
            },
        }
    )
    prepare(recipe, run, TOKENIZER)
    ledger = read_json(run.ledger)
    dropped = {
        level: {n: r["count"] for n, r in ledger[level]["dropped"].items()} for level in ("records", "rows")
    }
    assert "exact-duplicate" not in dropped["records"] and dropped["rows"]["no-text"] == 9
    assert ledger["drop_share"] > 0.1


def test_labels_that_no_record_has_are_said(tmp_path: Path, run: RunFolder) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": f"word {i}", "label": []} for i in range(40)])
    recipe = Recipe.model_validate(
        {
            "task": {"type": "classification", "text": "{{ text }}", "several": True},
            "data": {"source": {"type": "files", "path": str(path)}, "max_length": 60, "num_workers": 1},
        }
    )
    with pytest.raises(UserError, match="no record has a label"):
        prepare(recipe, run, TOKENIZER)


def test_rows_under_a_training_are_not_replaced(rows: Path, run: RunFolder) -> None:
    prepare(tiny_recipe(rows), run, TOKENIZER, trained=True)
    before = {path: path.read_bytes() for path in sorted(run.data.iterdir())}
    assert prepare(tiny_recipe(rows), run, TOKENIZER, trained=True) is False
    with pytest.raises(UserError, match="would be replaced: seed changed"):
        prepare(tiny_recipe(rows, seed=1), run, TOKENIZER, trained=True)
    assert before == {path: path.read_bytes() for path in sorted(run.data.iterdir())}


def test_half_a_surrogate_pair_is_counted(tmp_path: Path, run: RunFolder) -> None:
    path = write_rows(
        tmp_path / "rows.jsonl", [*texts(60), {"text": "a\ud800>b"}, {"text": "a>b", "id": "n\udcff"}]
    )
    prepare(tiny_recipe(path), run, TOKENIZER)
    assert read_json(run.ledger)["records"]["dropped"]["invalid-unicode"] == {
        "count": 2, "budgeted": True, "ids": ["row:61", "n\\udcff"],
    }  # fmt: skip


def test_a_disk_that_cannot_be_written_is_a_users_error(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        prepare(tiny_recipe(rows), RunFolder(tmp_path / "file" / "run"), TOKENIZER)
    with pytest.raises(UserError, match="No such file"):
        prepare(tiny_recipe(tmp_path / "absent.jsonl"), RunFolder(tmp_path / "run"), TOKENIZER)


def test_progress_reaches_its_end(rows: Path, run: RunFolder) -> None:
    seen: dict[str, tuple[int, int | None]] = {}
    prepare(
        tiny_recipe(rows),
        run,
        TOKENIZER,
        progress=lambda phase, done, total: seen.update({phase: (done, total)}),
    )
    assert list(seen) == ["reading", "duplicates", "encoding"]
    assert seen["reading"] == (60, 60) and seen["encoding"] == (60, 60)


def members(folder: Path) -> tuple[RunFolder, RunFolder]:
    """Two runs of a sweep, of which the first has begun."""
    folder.mkdir()
    (folder / "sweep.json").write_text("{}")
    first, second = RunFolder(folder / "a"), RunFolder(folder / "b")
    for run in (first, second):
        run.create()
        run.recipe.write_text("")
    return first, second


def test_runs_of_a_sweep_prepare_once(rows: Path, tmp_path: Path) -> None:
    first, second = members(tmp_path / "sweep")
    assert prepare(tiny_recipe(rows), first, TOKENIZER) is True
    assert prepare(tiny_recipe(rows), second, TOKENIZER) is False
    assert read_json(second.manifest) == read_json(first.manifest)
    for name in hashes(first):
        assert (second.data / name).stat().st_ino == (first.data / name).stat().st_ino
    assert prepare(tiny_recipe(rows), second, TOKENIZER) is False


def test_other_rows_are_made_anew_in_a_sweep_and_leave_those_of_the_other_run(
    rows: Path, tmp_path: Path
) -> None:
    first, second = members(tmp_path / "sweep")
    prepare(tiny_recipe(rows), first, TOKENIZER)
    before = hashes(first)
    prepare(tiny_recipe(rows), second, TOKENIZER)
    assert prepare(tiny_recipe(rows, seed=1), second, TOKENIZER) is True
    assert hashes(second) != before == hashes(first)
    assert prepare(tiny_recipe(rows), first, TOKENIZER) is False


def test_damaged_rows_of_another_run_are_not_taken_over(rows: Path, tmp_path: Path) -> None:
    first, second = members(tmp_path / "sweep")
    prepare(tiny_recipe(rows), first, TOKENIZER)
    good = hashes(first)
    first.rows("train").write_bytes(b"damaged")
    assert prepare(tiny_recipe(rows), second, TOKENIZER) is True and hashes(second) == good


def test_runs_that_are_no_sweep_share_nothing(rows: Path, tmp_path: Path) -> None:
    first, second = members(tmp_path / "sweep")
    (tmp_path / "sweep" / "sweep.json").unlink()
    assert prepare(tiny_recipe(rows), first, TOKENIZER) is True
    assert prepare(tiny_recipe(rows), second, TOKENIZER) is True


def test_large_data_are_encoded_by_all_processors(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chunks.num_workers(3, rows) == 3 and chunks.num_workers("auto", rows) == 1
    monkeypatch.setattr(chunks, "_LARGE_BYTES", 1)
    assert chunks.num_workers("auto", rows) == len(os.sched_getaffinity(0))
