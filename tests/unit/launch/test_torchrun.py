import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from luthier.errors import Interrupted, UserError
from luthier.launch import torchrun
from luthier.run_folder import RunFolder, read_json

ODD = 'it\'s 100% "odd" $HOME `x`; *'


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    place = RunFolder(tmp_path / ODD)
    place.create()
    return place


def test_one_process_needs_no_torchrun() -> None:
    assert torchrun.line(["run", "a.yaml"], nodes=1, processes=1) == [
        sys.executable, "-m", "luthier", "run", "a.yaml",
    ]  # fmt: skip


def test_lines_of_one_and_of_several_machines() -> None:
    one = torchrun.line(["run", "a.yaml"], nodes=1, processes=4)
    assert one[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--standalone", "--nproc-per-node=4"} <= set(one) and one[-4:] == [
        "-m",
        "luthier",
        "run",
        "a.yaml",
    ]
    two = torchrun.line(["run", "a.yaml"], nodes=2, processes=4, endpoint="node1:29500")
    assert {"--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=node1:29500"} <= set(two)
    assert "--standalone" not in two
    with pytest.raises(UserError, match="2 machines need a place to meet"):
        torchrun.line(["run", "a.yaml"], nodes=2, processes=1)


def test_the_script_hands_on_odd_names_as_they_are(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / f"cwd {ODD}"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd(), os.environ['LUTHIER_RUN'], os.environ['OMP_NUM_THREADS']]))"
    arguments = [ODD, "a b", "train.betas=[0.9, 0.95]", ""]
    path = torchrun.keep(run, torchrun.script([sys.executable, "-c", show, *arguments], run, 3))
    os.chdir("/")
    done = subprocess.run(["bash", str(path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [arguments, str(here), str(run.path), "3"]


@pytest.mark.parametrize("odd", ["two\nlines", "bell\x07", "no unicode \udc80"])
def test_what_cannot_stand_in_a_script(odd: str) -> None:
    torchrun.refuse_odd(ODD, "Größe 大", None)
    with pytest.raises(UserError, match="cannot stand in a script"):
        torchrun.refuse_odd("plain", Path(odd))


def test_words_of_data_that_are_no_unicode_are_kept_readable(run: RunFolder) -> None:
    run.note_stopped("refused", 1, "row \udc80", "", "")
    assert read_json(run.stopped)["what"] == "row \\udc80"


def started(run: RunFolder, shell: str) -> dict[str, object] | None:
    return torchrun.start(torchrun.keep(run, f"#!/bin/bash\n{shell}\n"), run)


def test_a_run_that_ends_well_has_nothing_to_say(run: RunFolder) -> None:
    assert started(run, "exit 0") is None
    assert not run.stopped.exists()


@pytest.mark.parametrize(
    ("shell", "how"), [("kill -9 $$", "by signal SIGKILL"), ("exit 7", "with exit code 7")]
)
def test_of_processes_that_were_killed_it_says_how(run: RunFolder, shell: str, how: str) -> None:
    stopped = started(run, shell)
    assert stopped is not None and stopped["kind"] == "killed" and how in str(stopped["what"])


def test_what_a_process_has_said_itself_is_kept(run: RunFolder) -> None:
    run.note_stopped("refused", 1, "the loss is nan", "here", "mend it")
    run.note_stopped("defect", 3, "the other process has gone", "there", "")
    stopped = started(run, "exit 1")
    assert stopped is not None and (stopped["kind"], stopped["what"]) == ("refused", "the loss is nan")


def test_a_signal_is_passed_on_and_ends_all(run: RunFolder) -> None:
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Interrupted, match="SIGTERM"):
        started(run, "exec sleep 60")
    assert signal.getsignal(signal.SIGTERM) is before
    timer.cancel()


def test_a_signal_that_comes_too_late_spoils_nothing(run: RunFolder) -> None:
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert started(run, "trap 'exit 0' TERM; sleep 60 & wait") is None
    timer.cancel()
