"""Two processes under torchrun train as one does: the same losses, and each file written once."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from tests.fixtures.processes import Luthier
from tests.fixtures.tiny_run import write_recipe


def history(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    rows = history(run)
    return [row["loss"] for row in rows if "loss" in row] + [
        row["eval"]["loss"] for row in rows if "eval" in row
    ]


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, train={"max_steps": 8})
    one = [sys.executable, "-m", "luthier", "train", str(recipe)]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *one[1:]]
    for command, name in ((one, "one"), (two, "two")):
        environment = {**os.environ, "LUTHIER_RUN": str(tmp_path / name), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert [row["step"] for row in history(tmp_path / "two")] == list(range(9))
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["num_processes"] == 2


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def under_way(run: Path) -> bool:
    return (run / "history.jsonl").exists() and len(history(run)) > 2


@pytest.mark.slow
def test_torchrun_ends_soon_when_one_process_is_killed(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, train={"max_steps": 5000, "compile": False})
    run = tmp_path / "run"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "luthier", "train"]
    torchrun = subprocess.Popen(
        [sys.executable, *command, str(recipe), "--run", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: under_way(run))
        second = [p for p in psutil.Process(torchrun.pid).children() if p.environ().get("RANK") == "1"]
        second[0].kill()
        output, _ = torchrun.communicate(timeout=60)
    finally:
        torchrun.kill()
    assert torchrun.returncode != 0
    assert "process 0 of 2 ends, because another one has ended" in " ".join(output.split()), output[-3000:]


def impatient(seconds: float, busy: float) -> None:
    """Processes wait only so long for an answer; the first one is busy before it trains."""
    from luthier import pipeline
    from luthier.train import ranks

    ranks._ANSWER = timedelta(seconds=seconds)
    usual = pipeline.check

    def check(*arguments, **others):
        if os.environ["RANK"] == "0":
            time.sleep(busy)
        return usual(*arguments, **others)

    pipeline.check = check


def test_others_wait_for_preparing_but_not_for_one_that_hangs(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, train={"max_steps": 5000, "compile": False})
    run = tmp_path / "run"
    trap = functools.partial(impatient, seconds=4, busy=8)
    both = Luthier(["train", recipe, "--run", run], tmp_path / "log", count=2, trap=trap)
    try:
        wait_for(lambda: under_way(run) or not both.running())
        assert both.running(), both.said()
        os.kill(both.processes[1].pid, signal.SIGSTOP)
        both.processes[0].join(30)
        assert both.processes[0].exitcode == 1, both.said()
        assert "does not answer" in " ".join(both.said().split())
    finally:
        both.kill()
