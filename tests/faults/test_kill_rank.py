"""Twenty kill -9, of one process or of two or of one of two, some in the middle of a checkpoint: nothing is lost.

Each training process is forked from one that has imported everything, so that a start costs a second. All twenty:
``make test-kill``; the suite does six of them.
"""

import functools
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.fixtures.processes import Luthier, luthier
from tests.fixtures.tiny_run import write_recipe

STEPS = 24
SET_UPS = {
    # name: processes, overrides, who is killed: ``all`` at a random moment, ``save`` in a checkpoint, or a rank alone
    "one": (1, [], ["all", "save", "save", "all", "save", "all", "save", "all"]),
    "two": (2, [], ["all", 1, "save", 0, 1, "all"]),
    "shards": (2, ["train.sharding=fsdp"], [1, "save", "all", 0, "save", 1]),
}
assert sum(len(kills) for _, _, kills in SET_UPS.values()) == 20
ALL = "LUTHIER_TEST_KILLS"  # else two of each


def count_lines(folder: Path) -> None:
    """Notes how many lines of our own code a checkpoint is."""
    die_in_save(0, 1, note=folder / "lines")


def die_in_save(line: int, call: int, note: Path | None = None) -> None:
    """The first process kills itself at a line of the code that writes a checkpoint, in the given one of those to come."""
    from luthier.train import checkpoint

    if os.environ.get("RANK", "0") != "0":
        return

    usual, calls = checkpoint.save, itertools.count(1)
    files = ("checkpoint.py", "run_folder.py", "contextlib.py")

    def save(*arguments, **others):
        if next(calls) != call:
            return usual(*arguments, **others)
        lines = itertools.count(1)

        def trace(frame, event, _):
            if not frame.f_code.co_filename.endswith(files):
                return None
            if event == "line" and next(lines) == line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            return usual(*arguments, **others)
        finally:
            sys.settrace(None)
            if note:
                note.write_text(str(next(lines) - 1))

    checkpoint.save = save


def history(run: Path) -> tuple[int, int]:
    """The history's inode, which is another one once a run has begun again, and its number of lines."""
    try:
        with open(run / "history.jsonl", "rb") as file:
            return os.fstat(file.fileno()).st_ino, len(file.read().splitlines())
    except FileNotFoundError:
        return 0, 0


def newest(run: Path) -> int | None:
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=None)


def resumptions(run: Path) -> list[int]:
    """Steps from which the run has gone on so far."""
    log = run / "run.log"
    return [
        int(step)
        for step in re.findall(r"resuming from \S*step-(\d+)", log.read_text() if log.exists() else "")
    ]


def without_times(run: Path) -> list[dict[str, object]]:
    """History without what depends on the clock and the process."""
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    for row in rows:
        row.get("eval", {}).pop("seconds", None)
        for key in ("seconds", "tokens_per_s", "memory_gib", "peak_memory_gib", "findings"):
            row.pop(key, None)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("name", SET_UPS)
def test_killed_runs_end_as_if_they_never_were(name: str, tmp_path: Path) -> None:
    count, overrides, kills = SET_UPS[name]
    if not os.environ.get(ALL):
        kills = kills[:2]
    recipe = write_recipe(
        tmp_path, train={"max_steps": STEPS, "eval_every_steps": 8, "checkpoint_every_steps": 2}
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    luthier(["check", recipe, "--run", whole], tmp_path / "log")
    shutil.copytree(whole, killed)
    command = ["train", recipe, *overrides, "--run"]
    run = Luthier([*command, whole], tmp_path / "log", count, trap=functools.partial(count_lines, tmp_path))
    assert run.codes() == [0] * count, run.said()
    num_lines = int((tmp_path / "lines").read_text())
    assert num_lines > 30, "a checkpoint is no single line"

    draw = random.Random(seed := time.time_ns())
    for number, victim in enumerate(kills):
        expected, before, (old, _) = newest(killed), resumptions(killed), history(killed)
        trap = None
        if victim == "save":
            trap = functools.partial(die_in_save, draw.randint(1, num_lines), draw.randint(1, 2))
        run = Luthier([*command, killed], tmp_path / f"log-{number}", count, trap)
        if number == 0 and victim == "all":
            time.sleep(draw.random() * 1.5)  # perhaps before the first step
        elif victim != "save":
            # A rank alone is killed once both have met: before that only torchrun can tell the other one.
            began, moment = time.monotonic(), (expected or 0) + draw.randint(2, 5)
            while run.running() and time.monotonic() - began < 60:
                file, lines = history(killed)
                if file != old and lines >= moment:
                    break
                time.sleep(0.001)
            time.sleep(draw.random() * 0.03)
        if victim == "all":
            run.kill()
        elif victim != "save":
            run.processes[victim].kill()
            if number % 2:  # as torchrun does when it sees that one has ended
                run.processes[1 - victim].terminate()
        codes, first = run.codes(timeout=30), victim if isinstance(victim, int) else 0
        assert codes[first] == -signal.SIGKILL, (seed, number, codes, run.said())
        if count > 1 and victim != "all":
            assert codes[1 - first] == 1, (seed, number, codes, run.said())
            assert "another one has ended" in run.said(), (seed, number, run.said())
        told = resumptions(killed)[len(before) :]
        assert told in ([], [expected]), (seed, number, told)
    expected = newest(killed)
    luthier([*command, killed], tmp_path / "log-last", count)
    # By chance every one may have been killed before its first checkpoint.
    assert resumptions(killed)[-1:] == [step for step in [expected] if step is not None], seed
    file = "adapter/adapter_model.safetensors"
    if count == 1:
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), seed
        assert without_times(killed) == without_times(whole), seed
    weights = load_file(killed / file)
    for key, value in load_file(whole / file).items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-6)
    assert [row["loss"] for row in without_times(killed)[1:]] == pytest.approx(
        [row["loss"] for row in without_times(whole)[1:]], abs=1e-6
    )
    assert not list((killed / "checkpoints").glob(".step-*")), "what a killed write leaves is cleared away"
