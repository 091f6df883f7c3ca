"""A process that is killed while it prepares leaves the old data or none, and no process behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.fixtures.tiny_prepare import tiny_recipe, tiny_tokenizer, write_rows

from luthier.prepare.build import prepare
from luthier.run_folder import RunFolder, hash_file, read_json

# Stops itself for good once the phase is reached, so that the kill finds it there however fast the machine is.
SCRIPT = """
import sys, time
sys.path.append({root!r})
from pathlib import Path
from tests.fixtures.tiny_prepare import tiny_recipe, tiny_tokenizer
from luthier.prepare.build import prepare
from luthier.run_folder import RunFolder

def wait(phase, done, total):
    if phase == {phase!r} and done >= {done}:
        print("there", flush=True)
        time.sleep(600)

if __name__ == "__main__":
    recipe = tiny_recipe(Path({rows!r}), num_workers=2, max_rows={{"train": 900}})
    prepare(recipe, RunFolder({run!r}), tiny_tokenizer(), progress=wait)
"""


def test_a_script_without_a_guard_is_told_to_have_one(tmp_path: Path) -> None:
    rows, run = (
        write_rows(tmp_path / "rows.jsonl", [{"text": f"{i}>x{i}"} for i in range(60)]),
        tmp_path / "run",
    )
    (tmp_path / "sweep.json").write_text('{"runs": []}')  # in a sweep the processes would wait for each other
    script = tmp_path / "script.py"
    text = SCRIPT.format(root=str(Path(__file__).parents[2]), phase="", done=0, rows=str(rows), run=str(run))
    script.write_text(text.replace('if __name__ == "__main__":', "if True:"))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and 'under `if __name__ == "__main__":`' in done.stderr
    assert "luthier.errors.UserError: a process that encodes rows died" in done.stderr.splitlines()[-3]
    assert not (run / "data").exists()


@pytest.mark.parametrize(
    ("phase", "done", "old"), [("reading", 500, True), ("duplicates", 1, False), ("encoding", 1000, True)]
)
def test_a_kill_leaves_the_old_data_or_none(tmp_path: Path, phase: str, done: int, old: bool) -> None:
    rows, run = tmp_path / "rows.jsonl", RunFolder(tmp_path / "run")
    if old:
        prepare(
            tiny_recipe(write_rows(rows, [{"text": f"old {i}>x"} for i in range(60)])), run, tiny_tokenizer()
        )
    before = {path.name: hash_file(path) for path in run.data.glob("*")}
    write_rows(rows, [{"text": f"{i} {i * i} {i * i * i} one two three>x{i}"} for i in range(2000)])
    script = tmp_path / "crash.py"
    root = str(Path(__file__).parents[2])
    script.write_text(SCRIPT.format(root=root, phase=phase, done=done, rows=str(rows), run=str(run.path)))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "there\n"
            children = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()

    assert {path.name: hash_file(path) for path in run.data.glob("*")} == before
    assert run.data.exists() is old
    leftovers = [path for path in run.path.iterdir() if path != run.data]
    assert leftovers  # the kill came in the middle
    if phase == "encoding":
        assert len(children) >= 2
    deadline = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "worker processes outlive the one that was killed"
        time.sleep(0.1)

    assert prepare(tiny_recipe(rows, max_rows={"train": 900}), run, tiny_tokenizer())
    whole = RunFolder(tmp_path / "whole")
    prepare(tiny_recipe(rows, max_rows={"train": 900}), whole, tiny_tokenizer())
    assert read_json(run.manifest) == json.loads(whole.manifest.read_text())
    assert os.listdir(run.path) == ["data"]
