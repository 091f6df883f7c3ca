"""Launching for real: two processes, two machines that are one, a sweep that is cut off."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.fixtures.tiny_run import write_recipe

from luthier.run_folder import RunFolder, read_json, read_jsonl

pytestmark = pytest.mark.skipif(
    "LUTHIER_TEST_LAUNCH" not in os.environ, reason="whole runs in several processes: make test-launch"
)


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "luthier", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def luthier(*arguments: object) -> tuple[int, str, str]:
    process = started(*arguments)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(run / "history.jsonl") if "loss" in row]


@pytest.mark.slow
def test_two_processes_do_all_of_it_and_a_refusal_keeps_its_exit_code(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, train={"max_steps": 6})
    code, out, err = luthier("launch", recipe, "--processes", 2, "--run", tmp_path / "two runs")
    run = RunFolder(tmp_path / "two runs")
    assert code == 0, err
    assert out.count("report: ") == 1 and out.count("20 steps") == 0 and out.count("6 steps") == 1
    assert read_json(run.environment)["num_processes"] == 2 and run.report.is_file() and run.scores.is_file()
    assert (run.launch / "torchrun.sh").read_text() in err
    code, _, err = luthier(
        "launch", recipe, "train.learning_rate=1e30", "--processes", 2, "--run", tmp_path / "bad"
    )
    assert code == 1 and re.search(r"^step \d has a loss of nan", err.rpartition("=====")[2], re.MULTILINE), (
        err
    )
    assert read_json(tmp_path / "bad/stopped.json")["kind"] == "refused"


@pytest.mark.slow
def test_two_machines_meet(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, train={"max_steps": 6})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    run = tmp_path / "run"
    both = [started("launch", recipe, "--nodes", 2, "--endpoint", endpoint, "--run", run) for _ in range(2)]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("report: " in out for out, _ in said) == 1, "the second machine is silent"
    assert read_json(run / "environment.json")["num_processes"] == 2
    assert luthier("train", recipe, "--run", tmp_path / "one")[0] == 0
    assert losses(run) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_a_sweep_that_is_cut_off_goes_on_and_ends_in_one_table(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, train={"max_steps": 200, "eval_every_steps": 100})
    sweep = tmp_path / "sweep"
    command = ("run", recipe, "--run", sweep, "--sweep", "train.learning_rate=1e-3,1e-2,1e30")
    names = [f"learning_rate={rate}" for rate in ("1e-3", "1e-2", "1e30")]
    process = started(*command)
    history = sweep / names[1] / "history.jsonl"
    while process.poll() is None and not (history.is_file() and len(history.read_bytes().splitlines()) > 50):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1 and "interrupted after step" in err, err
    states = [
        run["state"] for setting in read_json(sweep / "table.json")["settings"] for run in setting["runs"]
    ]
    assert states == ["finished", "failed", "waiting"]
    written = (sweep / names[0] / "adapter/adapter_model.safetensors").stat().st_mtime_ns
    reached = len(history.read_bytes().splitlines()) - 1

    code, out, err = luthier(*command)
    assert code == 1 and f"report: {sweep}/report.html" in out, err
    found = {
        run["folder"]: run
        for setting in read_json(sweep / "table.json")["settings"]
        for run in setting["runs"]
    }
    assert [found[name]["state"] for name in names] == ["finished", "finished", "failed"]
    assert "not finite" in found[names[2]]["reason"] and "not finite" in out
    assert (sweep / names[0] / "adapter/adapter_model.safetensors").stat().st_mtime_ns == written, (
        "not done again"
    )
    assert f"checkpoints/step-{reached}" in (sweep / names[1] / "run.log").read_text()
    assert len({(sweep / name / "data/train.arrow").stat().st_ino for name in names}) == 1, "prepared once"
    alone = tmp_path / "alone"
    assert luthier("train", recipe, "train.learning_rate=1e-2", "--run", alone)[0] == 0
    assert losses(sweep / names[1]) == losses(alone)
    against = read_json(sweep / "table.json")["settings"][1]["against_first"]
    assert against["loss"]["interval"] and json.dumps(against)
