"""Two processes under torchrun train as one does: the same losses, and each file written once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
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
