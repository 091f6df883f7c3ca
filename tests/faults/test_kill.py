"""kill -9 at random moments: the rerun ends with the very bits of an uninterrupted run."""

import json
import random
import signal
import time
from pathlib import Path

import pytest
from tests.fixtures.processes import Luthier, luthier
from tests.fixtures.tiny_run import write_recipe

KILLS = 2


def _steps(run: Path) -> int:
    try:
        return len((run / "history.jsonl").read_bytes().splitlines())
    except FileNotFoundError:
        return 0


def _without_times(path: Path) -> list[dict[str, object]]:
    """History without what depends on the clock and the process."""
    clock = ("seconds", "tokens_per_s", "memory_gib", "peak_memory_gib")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row.get("eval", {}).pop("seconds", None)
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


@pytest.mark.slow
def test_a_run_killed_twice_ends_as_if_it_never_was(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    luthier(["run", recipe, "--run", tmp_path / "whole"], tmp_path / "log")
    draw = random.Random(time.time_ns())
    moments = [0, *sorted(draw.sample(range(1, 31), KILLS - 1))]  # lines of history; 0: before training
    codes = []
    for moment in moments:
        run = Luthier(["run", recipe, "--run", tmp_path / "killed"], tmp_path / "log")
        began = time.monotonic()
        while run.running() and time.monotonic() - began < 120:
            if _steps(tmp_path / "killed") >= moment and (moment or time.monotonic() - began > 1):
                break
            time.sleep(0.002)
        time.sleep(draw.random() * 0.05)
        run.kill()
        codes.append(run.processes[0].exitcode)
    assert -signal.SIGKILL in codes and set(codes) <= {0, -signal.SIGKILL}, (codes, moments)
    luthier(["run", recipe, "--run", tmp_path / "killed"], tmp_path / "log")
    for name in ("adapter/adapter_model.safetensors", "predictions.jsonl", "data/train.arrow"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (
            name,
            moments,
        )
    assert _without_times(tmp_path / "killed/history.jsonl") == _without_times(
        tmp_path / "whole/history.jsonl"
    )
