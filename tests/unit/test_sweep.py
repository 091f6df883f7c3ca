import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from tests.fixtures.synthetic_run import write_run
from typer.testing import CliRunner

from luthier import cli, sweep
from luthier.errors import Interrupted, UserError, UserErrors
from luthier.launch import torchrun
from luthier.run_folder import RunFolder, read_json, write_json


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "my recipe.yaml"
    path.write_text("name: mine\n")
    return path


def test_values_are_cut_at_their_own_commas() -> None:
    assert sweep.axes(
        ["train.learning_rate=1e-4, 2e-4", "seed=0,1", "train.betas=[0.9,0.95],[0.9, 0.999]", 'name="a,b",c']
    ) == {
        "train.learning_rate": ["1e-4", "2e-4"],
        "seed": ["0", "1"],
        "train.betas": ["[0.9,0.95]", "[0.9, 0.999]"],
        "name": ['"a,b"', "c"],
    }


@pytest.mark.parametrize(
    ("given", "what"),
    [("train.epochs", "is not key=value,value"), ("=1,2", "is not key"), ("a b=1", "is not key"), ("seed=", "has no values"),
     ("seed=1,1", "the same value twice"), ("seed=[1,2", "not valid YAML"), ("seed=1],[2", "not valid YAML"),
     ("seed=1 # 2", "not valid YAML"), (f"seed={'[' * 5000}", "not valid YAML")],
)  # fmt: skip
def test_axes_that_cannot_be(given: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        sweep.axes([given])


def test_all_mistakes_at_once() -> None:
    with pytest.raises(UserErrors) as raised:
        sweep.axes(["seed=1,2", "seed=3", "nonsense"])
    assert [error.what for error in raised.value.errors] == [
        "seed is swept twice",
        "'nonsense' is not key=value,value",
    ]
    assert raised.value.errors[0].fix.endswith("--sweep seed=1,2,3")


def folders(runs: list[sweep.Planned]) -> list[str]:
    return [planned.run.path.name for planned in runs]


def test_every_combination_is_a_run(recipe: Path, tmp_path: Path) -> None:
    given = ["train.learning_rate=1e-4,2e-4", "seed=0,1"]
    top, base, runs = sweep.plan(recipe, ["train.epochs=2"], given, tmp_path / "sweep")
    assert folders(runs) == [
        f"learning_rate={rate}_seed={seed}" for rate in ("1e-4", "2e-4") for seed in (0, 1)
    ]
    assert runs[1].overrides == ["train.learning_rate=1e-4", "seed=1"] and base.train.epochs == 2
    assert read_json(top / "sweep.json")["runs"][1] == {
        "folder": "learning_rate=1e-4_seed=1", "settings": {"train.learning_rate": "1e-4", "seed": "1"},
    }  # fmt: skip


def test_names_of_folders_tell_settings_apart(recipe: Path, tmp_path: Path) -> None:
    _, _, runs = sweep.plan(
        recipe, [], ['description="a/b",a-b,"a b"', "train.warmup_steps=1,2"], tmp_path / "s"
    )
    names = folders(runs)
    assert (
        len(set(names)) == 6
        and names[2] == "description=a-b_warmup_steps=1"
        and not any("/" in n for n in names)
    )
    _, _, runs = sweep.plan(recipe, [], ["evaluate.batch_size=1", "train.batch_size=1"], tmp_path / "t")
    assert folders(runs) == ["evaluate.batch_size=1_train.batch_size=1"]
    _, _, runs = sweep.plan(recipe, [], [f"description={'x' * 300},{'x' * 301}"], tmp_path / "u")
    assert len(set(folders(runs))) == 2 and max(map(len, folders(runs))) < 120


def test_a_sweep_can_be_widened(recipe: Path, tmp_path: Path) -> None:
    sweep.plan(recipe, [], ["seed=0,1"], tmp_path / "s")
    sweep.plan(recipe, [], ["seed=1,2"], tmp_path / "s")
    assert [run["folder"] for run in read_json(tmp_path / "s/sweep.json")["runs"]] == [
        "seed=1",
        "seed=2",
        "seed=0",
    ]
    before = (tmp_path / "s/sweep.json").read_bytes()
    with pytest.raises(UserError, match="had other settings"):
        sweep.plan(recipe, ["train.epochs=3"], ["seed=3"], tmp_path / "s")
    assert (tmp_path / "s/sweep.json").read_bytes() == before


def test_a_folder_of_a_sweep_that_holds_other_training_is_refused(recipe: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "s/seed=1", num_steps=20)
    with pytest.raises(UserError, match="holds training with other settings"):
        sweep.plan(recipe, [], ["seed=1,2"], tmp_path / "s")
    assert not (tmp_path / "s/sweep.json").exists()


def test_mistakes_come_before_anything_is_written(recipe: Path, tmp_path: Path) -> None:
    cases = {
        "option --sweep": ([], ["seed=" + ",".join(map(str, range(1001)))]),
        "command line": (["seed=1"], ["seed=1,2"]),
        "recipe key train.epochs (command line)": ([], ["train.epochs=1,-1"]),
        "recipe key trian": ([], ["trian.epochs=1,2"]),
    }
    for where, (overrides, given) in cases.items():
        with pytest.raises(UserError) as raised:
            sweep.plan(recipe, overrides, given, tmp_path / "s")
        assert raised.value.where == where
    assert not (tmp_path / "s").exists()
    single = write_run(tmp_path / "single", stage="prepare")
    with pytest.raises(UserError, match="holds a single run"):
        sweep.plan(recipe, [], ["seed=1,2"], single.path)


DOES = """
import json, os, shutil, signal, sys
run = os.environ["LUTHIER_RUN"]
open(os.path.join(os.path.dirname(run), "begun"), "a").write(os.path.basename(run) + "\\n")
what = sys.argv[-1].partition("=")[2]
if what == "1":
    shutil.copytree(os.path.join(os.path.dirname(run), "..", "whole"), run, dirs_exist_ok=True)
elif what == "2":
    json.dump({"kind": "refused", "exit_code": 1, "what": "the <loss> is nan", "where": "", "fix": ""}, open(run + "/stopped.json", "w"))
    sys.exit(1)
elif what == "3":
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "4":
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs that end at once, each in its own way, as its seed tells; the folder of the sweep."""
    whole = write_run(tmp_path / "whole", num_steps=20)
    write_json(whole.stages, {"evaluate": "key"})
    shutil.rmtree(whole.adapter)  # of another recipe than the runs that take this folder as theirs
    shutil.rmtree(whole.checkpoints, ignore_errors=True)

    def line(arguments: list[str], **_: object) -> list[str]:
        return [sys.executable, "-c", DOES, *arguments]

    monkeypatch.setattr(torchrun, "line", line)
    return tmp_path / "sweep"


def begun(folder: Path) -> list[str]:
    names = (folder / "begun").read_text().split()
    (folder / "begun").unlink()
    return names


def call(*arguments: object) -> tuple[int, str]:
    done = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"}).invoke(
        cli.app, [str(part) for part in arguments]
    )
    return done.exit_code, done.output


def test_what_fails_stands_in_the_table_and_stops_nothing(recipe: Path, stand_in: Path) -> None:
    command = ("run", recipe, "--run", stand_in, "--sweep", "seed=2,1,3")
    code, said = call(*command)
    assert code == 1 and begun(stand_in) == ["seed=2", "seed=1", "seed=3"]
    assert (
        "seed=2: refused: the <loss> is nan\n" in said
        and "SIGKILL" in said
        and "2 runs did not end well: seed=2, seed=3" in said
    )
    [setting] = read_json(stand_in / "table.json")["settings"]
    assert [run["state"] for run in setting["runs"]] == ["failed", "finished", "failed"]
    assert setting["eval_loss"] and setting["eval_loss_deviation"] is None
    assert "the &lt;loss&gt; is nan" in (stand_in / "report.html").read_text()
    # The same command tries all again: what is finished is found so by the run itself.
    assert call(*command)[0] == 1 and len(begun(stand_in)) == 3


def test_a_signal_ends_the_sweep_and_the_table_is_written_all_the_same(recipe: Path, stand_in: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    code, said = call("run", recipe, "--run", stand_in, "--sweep", "seed=1,4,2")
    assert code == 1 and begun(stand_in) == ["seed=1", "seed=4"] and "SIGTERM" in said
    assert signal.getsignal(signal.SIGTERM) is before
    states = [run["state"] for run in read_json(stand_in / "table.json")["settings"][0]["runs"]]
    assert states == ["finished", "failed", "waiting"]
    assert "seed=2: waiting" in call("status", stand_in)[1]


def test_interrupted_is_a_way_to_be_refused(recipe: Path, stand_in: Path) -> None:
    _, _, runs = sweep.plan(recipe, [], ["seed=4"], stand_in)
    with pytest.raises(Interrupted):
        list(sweep.run(recipe, [], runs))


def test_a_sweep_well_ended(recipe: Path, stand_in: Path) -> None:
    code, said = call(
        "run", recipe, "--run", stand_in, "--sweep", "train.warmup_steps=1", "--sweep", "seed=1"
    )
    assert code == 0 and f"report: {stand_in}/report.html" in said and "warmup_steps=1" in said
    (stand_in / "report.html").unlink()
    assert call("report", stand_in)[0] == 0 and (stand_in / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [(["--nodes", "2"], "2 machines need a place to meet"), (["--endpoint", "a:1"], "one machine needs no place to meet"),
     (["--nodes", "2", "--sweep", "seed=1,2"], "needs Slurm"), (["--slurm", "nodes=2"], "comes from --nodes"),
     (["--slurm", "time=1", "nonsense=2=3", "x"], "'x' is no option of sbatch"), (["train.epochs=-1"], "greater than 0"),
     (["--slurm", "time=1", "train.epoch=1"], "did you mean 'epochs'?"), (["--sweep", "seed"], "is not key=value,value"),
     (["--slurm", "time=1"], "there is no sbatch")],
)  # fmt: skip
def test_what_cannot_be_launched(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], what: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    code, said = call("launch", recipe, *arguments)
    assert code == 2 and what in said


@pytest.mark.parametrize(("kind", "exit_code"), [("refused", 1), ("mistake", 2), ("defect", 3)])
def test_the_exit_code_is_that_of_the_process_and_not_of_torchrun(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exit_code: int
) -> None:
    stopped = json.dumps(
        {"kind": kind, "exit_code": exit_code, "what": "so it is", "where": "here", "fix": "mend"}
    )
    end = ["bash", "-c", f"echo '{stopped}' > $LUTHIER_RUN/stopped.json; exit 1"]
    monkeypatch.setattr(torchrun, "line", lambda *_, **__: end)
    code, said = call("launch", recipe, "--processes", "2", "--run", tmp_path / "run")
    assert code == exit_code and "so it is\n  where: here\n  fix:   mend\n" in said
    assert (tmp_path / "run/launch/torchrun.sh").read_text() in said


def test_the_script_of_an_array_is_kept(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text("#!/bin/sh\necho 17\n")
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    top = tmp_path / "sweep"
    code, said = call(
        "launch", recipe, "--run", top, "--slurm", "time=5", "mem=4G", "train.epochs=2", "--sweep", "seed=0,1"
    )
    text = (top / "launch/slurm.sh").read_text()
    assert code == 0 and "submitted as job 17" in said and text in said
    assert (
        "#SBATCH --array=0-1\n" in text
        and "#SBATCH --mem=4G\n" in text
        and "#SBATCH --job-name=mine-sweep\n" in text
    )
    assert f"1) export LUTHIER_RUN={top}/seed=1; arguments=(run '{recipe}' train.epochs=2 seed=1) ;;" in text
    assert RunFolder(top / "seed=1").siblings() == [], "nothing has begun"
