"""From fixes to judged patches on the tiny model: trained, generated, judged, stopped and taken up again."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures import scripted
from tests.fixtures.fixes import write_bugs, write_fixes
from tests.fixtures.scripted import Script
from tests.fixtures.tiny_run import write_recipe
from typer.testing import CliRunner

from luthier import pipeline
from luthier.cli import app
from luthier.errors import UserError
from luthier.evaluate import patches, repair
from luthier.evaluate.patches import compare_repairs
from luthier.models import inference_engines
from luthier.recipe import Options, Repair, Rounds
from luthier.run_folder import RunFolder, read_json, read_jsonl

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
SETTINGS = {
    "num_candidates": 3,
    "num_beams": 6,
    "max_new_tokens": 10,
    "timeout_s": 30,
    "memory_mib": 512,
    "num_workers": 2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("repair")
    fixes, bugs = write_fixes(folder / "fixes.jsonl"), write_bugs(folder / "bugs.jsonl")
    source = {"type": "repair-pairs", "path": str(fixes), "language": "python"}
    path = write_recipe(
        folder,
        task={"type": "repair"},
        data={
            "source": source,
            "max_length": 200,
            "near_duplicates": "off",
            "splits": {"train": 0.6, "eval": 0.2, "test": 0.2},
        },
        train={"max_steps": 3, "keep_checkpoints": 5},
        repair={
            **SETTINGS,
            "bugs": {"type": "bugs", "path": str(bugs), "id_column": "id", "group_column": "project"},
        },
    )
    pipeline.train(path, folder=folder / "run")
    return RunFolder(folder / "run")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_candidates_are_generated_and_judged(run: RunFolder) -> None:
    result = invoke("repair", str(run.path))
    assert result.exit_code == 0, result.output
    found = read_json(run.repair / "tuned" / "repair.json")
    assert (
        found["num_bugs"] == 3
        and found["num_judged"] == 2
        and found["left_out"] == {"buggy-passed": ["bug-2"]}
    )
    rows = read_jsonl(run.repair / "tuned" / "verdicts.jsonl")
    assert [(r["bug"], r["rank"]) for r in rows] == [(f"bug-{b}", k) for b in (0, 1) for k in (1, 2, 3)]
    assert sum(map(sum, found["verdicts_by_rank"].values())) == 6
    assert all(r["function"].startswith("def total(a, b):\n    c =") for r in rows)
    assert "plausible@3" in result.output and "2 of 3 bugs judged" in result.output
    again = (run.repair / "tuned" / "verdicts.jsonl").read_bytes()
    assert invoke("repair", str(run.path)).exit_code == 0
    assert (run.repair / "tuned" / "verdicts.jsonl").read_bytes() == again


def test_given_candidates_are_counted_as_they_are(run: RunFolder, tmp_path: Path) -> None:
    good, bad = "def total(a, b):\n    return a + b\n", "def total(a, b):\n    return 0\n"
    exact = "def total(a, b):\n    c = 0\n    return a + b\n"
    lines = [("bug-0", bad), ("bug-0", bad + "# same\n"), ("bug-0", exact), ("bug-0", good), ("bug-1", None), ("bug-1", "def ("),
             ("bug-2", good), ("bug-1", "def total(a, b):\n    c = 1\n    return a - b"), ("nowhere", good)]  # fmt: skip
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps({"bug": name, "function": text}) + "\n" for name, text in lines))
    command = ["repair", str(run.path), "--candidates", str(path)]
    early = invoke(*command, "--against", str(run.repair / "given"))
    assert early.exit_code == 2 and "holds no repair.json" in early.output
    assert invoke(*command).exit_code == 0
    result = invoke(*command, "--against", str(run.repair / "given"))
    assert result.exit_code == 0, result.output
    found = read_json(run.repair / "given" / "repair.json")
    assert found["table"] == {
        "bug-0": ["test-failed", "test-failed", "passed"],
        "bug-1": ["not-judged", "compile-error", "no-change"],
    }
    values = {name: one["value"] for name, one in found["metrics"].items()}
    assert values == {"plausible@1": 0, "plausible@3": 0.5, "exact@1": 0, "exact@3": 0.5, "ast@1": 0, "ast@3": 0.5,
                      "compile_rate": pytest.approx(4 / 6), "distinct_rate": pytest.approx(5 / 6), "unchanged_rate": pytest.approx(1 / 6)}  # fmt: skip
    assert found["plausible_at_1_by_order"]["tests"] == 0.5
    assert "McNemar's exact test: p = 1" in result.output and "both" in result.output


def test_another_form_than_in_training_is_refused_or_said(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="comments: 'margin' in training, 'indented' now"):
        pipeline.repair(pipeline.read(run.recipe, "task.comments=indented"), folder=run.path)
    pipeline.repair(
        pipeline.read(run.recipe, "task.comments=indented", "repair.other_format=warn"), folder=run.path
    )
    assert "another form than in training" in caplog.text
    with pytest.raises(UserError, match="no bugs to repair"):
        pipeline.repair(pipeline.read(run.recipe, "repair.bugs=null"), folder=run.path)


def test_a_run_that_is_stopped_goes_on_where_it_was(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.repair(run.recipe, folder=run.path, base=True)
    whole = (run.repair / "base" / "verdicts.jsonl").read_bytes()
    candidates = (run.repair / "base" / "candidates.jsonl").read_bytes()
    lines = candidates.splitlines(keepends=True)
    (run.repair / "base" / "candidates.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:20])
    judged = run.repair / "judged.jsonl"
    judged.write_bytes(judged.read_bytes()[:-30])
    asked: list[int] = []
    usual = repair.generate_candidates

    def counted(todo: Any, *others: Any) -> Any:
        def lend() -> Any:
            asked.append(1)
            return others[1]()

        return usual(todo, others[0], lend, *others[2:])

    monkeypatch.setattr(repair, "generate_candidates", counted)
    pipeline.repair(run.recipe, folder=run.path, base=True)
    assert asked == [1]
    assert [
        json.loads(x) for x in sorted((run.repair / "base" / "candidates.jsonl").read_bytes().splitlines())
    ] == [json.loads(x) for x in sorted(candidates.splitlines())]
    assert [
        {**json.loads(x), "seconds": 0}
        for x in (run.repair / "base" / "verdicts.jsonl").read_bytes().splitlines()
    ] == [{**json.loads(x), "seconds": 0} for x in whole.splitlines()]
    monkeypatch.setattr(patches.Judge, "_run", None)  # nothing is left to run
    pipeline.repair(run.recipe, folder=run.path, base=True)
    assert asked == [1]
    assert compare_repairs(run.repair / "base", run.repair / "base")["mcnemar"]["p_value"] == 1


def test_checkpoints_are_told_apart_by_what_passes(run: RunFolder) -> None:
    result = invoke("repair", str(run.path), "--checkpoints", "repair.num_beams=3", "repair.max_new_tokens=4")
    assert result.exit_code == 0, result.output
    found = read_json(run.repair / "checkpoints.json")
    assert [entry["step"] for entry in found["checkpoints"]] == [3] and found["best_step"] == 3
    assert found["checkpoints"][0]["eval_loss"] == read_jsonl(run.history)[-1]["eval"]["loss"]
    assert found["by"] == "plausible@3" and found["checkpoints"][0]["plausible@1"]["value"] is not None


def test_checkpoints_are_chosen_by_the_most_candidates(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [*(f"plausible@{k}" for k in (1, 3, 5, 10)), "compile_rate"]
    metrics = {name: {"value": 0.5, "interval": None} for name in names}
    monkeypatch.setattr(repair, "repair", lambda *_, **__: {"metrics": metrics})
    pipeline.repair(run.recipe, folder=run.path, checkpoints=True)
    assert read_json(run.repair / "checkpoints.json")["by"] == "plausible@10"


def test_every_option_is_read(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = pipeline.read(run.recipe)
    read: set[str] = set()
    usual = Options.__getattribute__

    def recording(self: Options, name: str) -> Any:
        if type(self) in (Repair, Rounds):
            read.add(name)
        return usual(self, name)

    monkeypatch.setattr(Options, "__getattribute__", recording)
    pipeline.repair(
        recipe.model_copy(update={"repair": recipe.repair.model_copy(update={"max_new_tokens": 3})}),
        folder=run.path,
    )
    unread = (
        set(Repair.model_fields) - read - {"other_format"}
    )  # that is read only where the form differs, as tested above
    assert unread == {"rounds"}
    pipeline.repair(recipe, "repair.max_new_tokens=3", folder=run.path, rounds=True)
    assert set(Rounds.model_fields) <= read  # a server's settings: tests/unit/evaluate/test_rounds.py


def test_rounds_are_on_the_page_and_in_tables(run: RunFolder) -> None:
    result = invoke("repair", str(run.path), "--rounds", "2", "repair.max_new_tokens=4")
    assert result.exit_code == 0, result.output
    found = read_json(run.repair / "tuned-rounds" / "rounds.json")
    assert found["max_rounds"] == 2 and found["num_judged"] == 2 and set(found["table"]) == {"bug-0", "bug-1"}
    assert "plausible by round 2" in result.output and "2 of 3 bugs judged" in result.output
    talk = read_jsonl(run.repair / "tuned-rounds" / "conversations" / "bug-0.jsonl")
    assert [line.get("round", line.get("judged")) for line in talk[1:]][:2] == [1, 1]
    pipeline.report(run.recipe, folder=run.path)
    page = run.report.read_text()
    for words in ("tuned-rounds", "round 1, prompt", "plausible by round 1", "found by output"):
        assert words in page, words


def test_patches_that_pass_are_learned_and_the_loop_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script()
    monkeypatch.setattr(inference_engines, "continuations", script)
    bugs = scripted.write_bugs(tmp_path / "bugs.jsonl")
    path = write_recipe(
        tmp_path,
        task={"type": "repair"},
        data={
            "max_length": 300,
            "near_duplicates": "off",
            "splits": {"train": 1.0, "eval": 0.0, "test": 0.0},
        },
        train={"max_steps": 2, "num_samples": 0},
        check={"waive": ["initial-loss", "schedule"]},
        repair={
            **{
                "num_candidates": 1,
                "max_new_tokens": 10,
                "timeout_s": 30,
                "memory_mib": 512,
                "num_workers": 2,
            },
            "bugs": {"type": "bugs", "path": str(bugs), "id_column": "id", "group_column": "project"},
        },
    )
    command = [
        "repair",
        str(path),
        "--base",
        "--rounds",
        "2",
        "--iterations",
        "1",
        "--run",
        str(tmp_path / "run"),
    ]
    result = invoke(*command)
    assert result.exit_code == 0, (result.output, result.exception)
    root = tmp_path / "run" / "rejection"
    first, second = read_json(root / "iterations.json")["iterations"]
    assert (first["num_patches"], first["num_new"], first["plausible"]["value"]) == (4, 4, 1.0)
    assert (second["num_patches"], second["num_new"]) == (4, 0)  # the script writes the same again
    learned = RunFolder(root / "iteration-1")
    assert learned.adapter.is_dir() and "repair-rounds" in learned.recipe.read_text()
    assert learned.rows("train").is_file()
    asked = len(script.prompts)
    assert invoke(*command).exit_code == 0 and len(script.prompts) == asked
    monkeypatch.setattr(scripted, "answer", lambda shown: scripted.WRONG)
    command[-1] = str(tmp_path / "other")
    refused = invoke(*command)
    assert refused.exit_code == 1 and "nothing to learn from" in refused.output
