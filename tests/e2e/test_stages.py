"""Trainings one after the other: killed in each and taken up again, from all kinds of starts, with forgetting measured."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.fixtures.fixes import write_fixes
from tests.fixtures.processes import Luthier, luthier
from tests.fixtures.tiny_model import save_model
from tests.fixtures.tiny_run import write_recipe
from typer.testing import CliRunner

from luthier import pipeline, recipe_file
from luthier.cli import app
from luthier.errors import UserError
from luthier.report import stages as page
from luthier.run_folder import RunFolder, read_json, read_jsonl

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
WEIGHTS = "adapter/adapter_model.safetensors"


def write_cwes(path: Path) -> Path:
    """Fixes with a CWE and a file's name, as SVEN's rows have them."""
    rows = [json.loads(line) for line in write_fixes(path).read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"func_src_before": row.pop("before"), "func_src_after": row.pop("after")}
        row |= {"cwe": f"cwe-{number % 2 + 78:03}", "file_name": "a.py", "commit_link": f"commit {number}"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write(folder: Path, stages: dict[str, Any], **changes: Any) -> Path:
    source = {"type": "cwe-pairs", "path": str(write_cwes(folder / "fixes.jsonl"))}
    (folder / "code").mkdir(exist_ok=True)  # no code is needed
    path = write_recipe(
        folder,
        **{
            "task": {"type": "repair"},
            "data": {"source": source, "max_length": 200, "near_duplicates": "off"},
            "train": {"max_steps": 4, "eval_every_steps": 4, "checkpoint_every_steps": 1, "num_samples": 0},
            "evaluate": {"generate": False},
            **changes,
        },
    )
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**tree, "stages": stages}, sort_keys=False))
    return path


TWO = {"plain": {}, "class": {"task": {"outside": True}, "train": {"max_steps": 3, "learning_rate": 0.003}}}


def steps(run: Path) -> int:
    history = run / "history.jsonl"
    return len(history.read_bytes().splitlines()) if history.is_file() else 0


@pytest.mark.slow
def test_a_run_killed_in_each_stage_ends_as_if_it_never_was(tmp_path: Path) -> None:
    recipe = write(tmp_path, TWO)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    luthier(["run", recipe, "--run", whole], tmp_path / "log")
    for name in TWO:
        run = Luthier(["run", recipe, "--run", killed], tmp_path / "log")
        began = time.monotonic()
        while run.running() and steps(killed / "stages" / name) < 3 and time.monotonic() - began < 120:
            time.sleep(0.002)
        run.kill()
        assert not (killed / "stages" / name / "scores.json").exists(), run.said()
    luthier(["run", recipe, "--run", killed], tmp_path / "log")
    for name in TWO:
        for file in (WEIGHTS, "predictions.jsonl", "data/train.arrow"):
            both = [(run / "stages" / name / file).read_bytes() for run in (whole, killed)]
            assert both[0] == both[1], (name, file)
    one, other = (read_json(run / "forgetting.json", list) for run in (whole, killed))
    assert [entry["metrics"] for entry in one] == [entry["metrics"] for entry in other]

    # What is there after all that.
    place = RunFolder(killed)
    plain, later = place.trainings().values()
    assert "# CWE-78" not in read_jsonl(plain.predictions)[0]["prompt"]
    assert read_jsonl(later.predictions)[0]["prompt"].startswith("# CWE-")
    start = read_jsonl(later.history)[0]["eval"]["loss"]
    assert start < read_jsonl(plain.history)[0]["eval"]["loss"], (
        "it begins with what the stage before has learned"
    )
    (entry,) = read_json(place.forgetting, list)
    assert (entry["stage"], entry["after"]) == ("plain", "class")
    bits = entry["metrics"]["bits_per_byte"]
    assert bits["base"] == read_json(plain.scores)["metrics"]["bits_per_byte"]["tuned"]
    assert bits["tuned"] != bits["base"] and bits["interval"][0] < bits["interval"][1]
    told = read_json(place.changes, list)[1]["changes"]
    assert told["task.outside"] == [False, True] and told["train.max_steps"] == [4, 3]
    shown = place.report.read_text()
    for text in (
        "plain, after class",
        "stages/class/report.html",
        "task.outside",
        "Forgetting",
        "data:image/png",
    ):
        assert text in shown, text

    # All of it stays done when the folder has moved, and each stage is a run like any other.
    moved = RunFolder(killed.rename(tmp_path / "moved"))
    result = CliRunner().invoke(app, ["run", str(moved.path)])
    assert result.exit_code == 0, result.output
    assert "forgetting: plain after class" in result.output
    assert "train: 3 steps" not in moved.log.read_text().rpartition("stage plain")[2]
    result = CliRunner().invoke(app, ["status", str(moved.path)])
    assert result.output.count("stage ") >= 2 and "finished" in result.output
    result = CliRunner().invoke(app, ["generate", str(moved.training("class").path), "--prompt", "def f(a):"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["generate", str(moved.path), "--prompt", "def f(a):"])
    assert result.exit_code == 2 and str(moved.training("plain").path) in result.output.replace("\n", "")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A whole model, an adapter on it, one on the two merged, and one going on from that."""
    folder = tmp_path_factory.mktemp("chain")
    short = {"max_steps": 2, "eval_every_steps": 2, "checkpoint_every_steps": 2}
    stages = {
        "whole": {"model": {"adapter": None}},
        "lora": {},
        "merged": {"model": {"start_mode": "merge"}},
        "continued": {},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(folder / "cache"))
        place = pipeline.evaluate(write(folder, stages, train=short), folder=folder / "run")
    return place


@pytest.mark.slow
def test_stages_go_on_from_adapters_merged_models_and_whole_ones(chain: RunFolder) -> None:
    runs = list(chain.trainings().values())
    assert [run.result().name for run in runs] == ["model", "adapter", "adapter", "adapter"]  # type: ignore[union-attr]
    for before, run in pairwise(runs):
        ended = read_jsonl(before.history)[-1]["eval"]["loss"]
        assert read_jsonl(run.history)[0]["eval"]["loss"] == pytest.approx(ended, rel=1e-3), run.path.name
    assert len(read_json(chain.forgetting, list)) == 3 + 2 + 1
    assert all("metrics" in entry for entry in read_json(chain.forgetting, list))


@pytest.mark.slow
def test_a_stage_on_a_base_of_4_bits_goes_on_from_one(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    save_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    model = {"quantisation": "nf4", "adapter": {"rank": 4}}
    recipe = write(
        tmp_path, {"one": {}, "two": {}}, model=model, train={"max_steps": 2, "eval_every_steps": 2}
    )
    one, two = pipeline.evaluate(recipe, folder=tmp_path / "run").trainings().values()
    ended = read_jsonl(one.history)[-1]["eval"]["loss"]
    assert read_jsonl(two.history)[0]["eval"]["loss"] == pytest.approx(ended, rel=1e-3)


def test_all_stages_are_checked_before_any_is_trained(tmp_path: Path) -> None:
    recipe = write(tmp_path, TWO)
    result = CliRunner().invoke(app, ["check", str(recipe), "--run", str(tmp_path / "run"), "--json"])
    found = json.loads(result.stdout)
    assert list(found["stages"]) == ["plain", "class"]
    assert "adapter-targets" in found["stages"]["class"]["passed"], "with what it starts from standing in"
    assert found["ok"] == all(one["ok"] for one in found["stages"].values())
    with pytest.raises(UserError, match="'plain' that this one goes on from is not trained"):
        pipeline.train(tmp_path / "run/stages/class/recipe.yaml", folder=tmp_path / "run/stages/class")
    with pytest.raises(UserError, match="a sweep compares single trainings"):
        from luthier.sweep import plan

        plan(recipe, (), ["seed=0,1"], tmp_path / "sweep")


def test_a_mistake_in_later_data_shows_before_any_training(tmp_path: Path) -> None:
    stages = {"one": {}, "two": {"data": {"source": {"path": "nowhere.jsonl"}}}}
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        pipeline.run(write(tmp_path, stages), folder=tmp_path / "run")
    assert not (tmp_path / "run/stages/one/history.jsonl").exists()


@pytest.mark.slow
def test_forgetting_of_a_head_is_measured_and_of_another_head_is_not(tmp_path: Path) -> None:
    source = {"type": "cwe-pairs", "path": str(write_cwes(tmp_path / "fixes.jsonl")), "rows": "functions"}
    stages = {
        "one": {},
        "two": {"seed": 1},
        "kinds": {"task": {"label": "cwe"}, "model": {"start_from": None}},
    }
    recipe = write(
        tmp_path,
        stages,
        task={"type": "classification"},
        data={"source": source, "max_length": 160, "near_duplicates": "off"},
        train={"max_steps": 2, "eval_every_steps": 2},
        check={"waive": ["initial-loss", "name-leak"]},
    )
    read = recipe_file.load(recipe)
    place = pipeline.evaluate(read, folder=tmp_path / "run")
    first, second, third = read_json(place.forgetting, list)
    assert {"accuracy", "macro_f1", "loss"} == first["metrics"].keys()
    assert "another head" in second["not_measured"] and "another head" in third["not_measured"]
    assert "another head" in page.write(place, read).read_text()


def test_a_stage_without_test_rows_is_trained_and_not_compared(tmp_path: Path) -> None:
    """As the large recipes of repair are: what passes is judged, so that no rows are held back to be compared on."""
    none, some = ({"splits": {"train": 0.8 - test, "eval": 0.2, "test": test}} for test in (0.0, 0.3))
    recipe = write(tmp_path, {"without": {"data": none}, "with": {"data": some}})
    told = CliRunner().invoke(app, ["run", str(recipe), "train.max_steps=1", "--run", str(tmp_path / "run")])
    assert told.exit_code == 0, told.output
    without, later = (RunFolder(tmp_path / "run" / "stages" / name) for name in ("without", "with"))
    assert "left out, the recipe keeps no test rows" in without.log.read_text()
    assert without.result() and not without.scores.exists() and later.scores.is_file()
    assert not (tmp_path / "run" / "forgetting.json").exists()  # there is nothing to have forgotten on
    assert (without.path / "report.html").is_file()
