"""The sandbox, with programs that do what must not be done."""

import sys
from pathlib import Path

import pytest

from luthier.execution.python_tests import all_passes, passes
from luthier.execution.sandbox import Limits, run

QUICK = Limits(timeout_s=5, memory_mib=512, disk_mib=8)


def python(source: str, limits: Limits = QUICK):
    return run([sys.executable, "-I", "-c", source], {}, limits)


def test_output_exit_code_and_files() -> None:
    outcome = run(
        [sys.executable, "-I", "a.py"],
        {"a.py": "print(open('b.txt').read()); raise SystemExit(3)", "b.txt": "hé"},
    )
    assert (outcome.status, outcome.exit_code, outcome.output.strip()) == ("exited", 3, "hé")
    with pytest.raises(ValueError, match="plain file name"):
        run(["true"], {"../x": ""})


def test_time_is_limited_and_children_end_too() -> None:
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    outcome = python(code + "print('on', flush=True); time.sleep(600)", Limits(timeout_s=1.5))
    assert outcome.status == "timeout" and outcome.seconds < 6 and outcome.output.strip() == "on"


def test_memory_is_limited() -> None:
    outcome = python("x = bytearray(2 << 30)")
    assert outcome.exit_code == 1 and "MemoryError" in outcome.output


def test_a_signal_is_told_apart_from_an_exit_code() -> None:
    outcome = python(
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )  # as the first of its processes it may be spared
    assert outcome.status in ("killed", "exited")
    outcome = run(["sh", "-c", "sh -c 'kill -9 $$'; exit $?"], {}, QUICK)
    assert outcome.status == "killed" and outcome.exit_code == -9


def test_disk_is_limited() -> None:
    outcome = python("f = open('big', 'wb')\nfor _ in range(64): f.write(bytes(1 << 20)); f.flush()")
    assert outcome.exit_code != 0


def test_nothing_of_this_process_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret")
    outcome = python(
        "import os, sys; print('SOME_TOKEN' in os.environ, sys.stdin.read() == '', os.listdir())"
    )
    assert outcome.output.strip() == "False True []"


def test_there_is_no_network_and_nothing_else_can_be_written(tmp_path: Path) -> None:
    probe = python("")
    if not (probe.network_cut and probe.disk_read_only):
        pytest.skip("this kernel or container allows no namespaces")
    code = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
    assert "Network is unreachable" in python(code).output
    outcome = python(f"open({str(tmp_path / 'x')!r}, 'w')")
    assert "Read-only file system" in outcome.output and not (tmp_path / "x").exists()
    assert python("open('mine', 'w').write('x'); print(open('mine').read())").output.strip() == "x"
    outcome = python("import os; print(os.getpid() < 5)")
    assert outcome.output.strip() == "True"


def test_a_program_passes_only_if_it_comes_to_its_end() -> None:
    good = "def f(x):\n    return x + 1\nassert f(1) == 2"
    bad = good.replace("+ 1", "+ 2")
    early = "import os\nos._exit(0)\nassert False"
    forever = "while True: pass"
    broken = "def f(:"
    quick = Limits(timeout_s=2)
    assert all_passes([good, bad, early, forever, broken], quick) == [True, False, False, False, False]
    passed, outcome = passes(bad)
    assert not passed and "AssertionError" in outcome.output
