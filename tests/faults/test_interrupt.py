"""Ctrl-C: it ends soon, with words, and says what is saved."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from tests.fixtures.tiny_model import save_model
from tests.fixtures.tiny_run import write_recipe

SLOW_TASK = """
import os
import time
from pathlib import Path

from luthier import task
from luthier.tasks import Task


@task("slow")
class Slow(Task):
    \"\"\"Never ends.\"\"\"

    folder: str
    \"\"\"Where it says that it has begun.\"\"\"

    def examples(self, record, split, tokenizer, *, max_length, seed):
        Path(self.folder, f"begun-{os.getpid()}").touch()
        time.sleep(300)
        yield
"""


def interrupt(arguments, folder, begun):
    """Starts luthier with its workers in a group of their own, as a terminal does, and interrupts the group."""
    with subprocess.Popen(
        [sys.executable, "-m", "luthier", *map(str, arguments)],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell that was put into the background leaves its children deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not begun() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
            before = time.monotonic()
            _, err = process.communicate(timeout=120)
            return process.returncode, err, time.monotonic() - before
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_preparing_ends_at_once_and_leaves_nothing(workers, tmp_path):
    save_model(tmp_path / "model")
    (tmp_path / "slow.py").write_text(SLOW_TASK)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"{i * 7919}"}) + "\n" for i in range(2000))
    )
    tree = {
        "task": {"type": "slow.py@slow", "folder": str(tmp_path)},
        "model": {"name": "model"},
        "data": {
            "source": {"type": "files", "path": "rows.jsonl"},
            "num_workers": workers,
            "near_duplicates": "off",
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    code, err, seconds = interrupt(
        ["prepare", "recipe.yaml", "--run", "run"],
        tmp_path,
        lambda: len(list(tmp_path.glob("begun-*"))) == workers,
    )
    assert code == 1, err
    assert "interrupted" in err.splitlines() and "Traceback" not in err
    assert seconds < 60, "it waited for what nobody wants"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "recipe.yaml",
        "environment.json",
        "run.log",
    }


@pytest.mark.slow
def test_training_saves_a_checkpoint_and_goes_on(tmp_path):
    recipe = write_recipe(
        tmp_path, train={"max_steps": 2000, "eval_every_steps": 1000, "checkpoint_every_steps": 1000}
    )
    run = tmp_path / "run"
    history = run / "history.jsonl"
    code, err, _ = interrupt(
        ["train", recipe, "--run", run],
        tmp_path,
        lambda: history.is_file() and len(history.read_bytes().splitlines()) > 3,
    )
    assert code == 1, err
    assert "a checkpoint was saved" in err and "Traceback" not in err
    (saved,) = (run / "checkpoints").iterdir()
    assert f"checkpoint (checkpoints/{saved.name})" in err
    assert "interrupted" in (run / "run.log").read_text()
