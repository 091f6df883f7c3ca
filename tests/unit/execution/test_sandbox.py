"""The sandbox, with programs that do what must not be done."""

import contextlib
import functools
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from luthier.execution import inside, sandbox
from luthier.execution.python_tests import all_passes, passes
from luthier.execution.sandbox import Fence, Limits, Outcome, Step, run, run_steps

QUICK = Limits(timeout_s=5, memory_mib=512, disk_mib=8)


def python(source: str, limits: Limits = QUICK):
    return run([sys.executable, "-I", "-c", source], {}, limits)


def python_reads(text: str) -> str:
    return run([sys.executable, "-I", "-c", "print(open('b', 'rb').read())"], {"b": text}).output.strip()


def test_output_exit_code_and_files() -> None:
    outcome = run(
        [sys.executable, "-I", "a.py"],
        {"a.py": "print(open('b.txt').read()); raise SystemExit(3)", "b.txt": "hé"},
    )
    assert python_reads("\udce9") == "b'\\xe9'", "undecodable bytes are written as they were"
    assert (outcome.status, outcome.exit_code, outcome.output.strip()) == ("exited", 3, "hé")
    for name in ("../x", "/x", "a/../../x"):
        with pytest.raises(ValueError, match="not inside"):
            run(["true"], {name: ""})
    assert len(python("print('x' * 20000 + 'y')").output) == sandbox._KEEP_BYTES


def test_time_is_limited_and_children_end_too() -> None:
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    outcome = python(code + "print('on', flush=True); time.sleep(600)", Limits(timeout_s=1.5))
    assert outcome.status == "timeout" and outcome.seconds < 6 and outcome.output.strip() == "on"
    step = Step("x", ["sh", "-c", "sleep 611.7 & sleep 611.7"])
    (outcome,) = run_steps([step], {}, Limits(timeout_s=1.5), fence="limits")
    assert outcome.status == "timeout"
    assert not [p for p in psutil.process_iter(["cmdline"]) if "611.7" in (p.info["cmdline"] or ())]


def test_memory_is_limited() -> None:
    outcome = python("x = bytearray(2 << 30)")
    assert outcome.exit_code == 1 and "MemoryError" in outcome.output


def test_a_signal_is_told_apart_from_an_exit_code() -> None:
    outcome = python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert (outcome.status, outcome.exit_code) == ("killed", -9)
    outcome = run(["sh", "-c", "exit 137"], {}, QUICK)
    assert (outcome.status, outcome.exit_code) == ("exited", 137)


def test_steps_share_a_folder_and_the_first_that_fails_is_the_last(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "a.txt").write_text("from the tree")
    (tmp_path / "b.txt").write_text("from the tree")
    steps = [
        Step("one", ["sh", "-c", "cat pkg/a.txt b.txt > made"], collect=["made", "lacking"]),
        Step("two", ["sh", "-c", "echo $X; cat made; exit 4"], environment={"X": "y"}),
        Step("three", ["true"]),
    ]
    outcomes = run_steps(steps, {"b.txt": "of the bug"}, QUICK, trees=[tmp_path])
    assert [o.name for o in outcomes] == ["one", "two"]
    assert outcomes[0].files == {"made": "from the treeof the bug"} and outcomes[0].ok
    assert outcomes[1].output == "y\nfrom the treeof the bug" and not outcomes[1].ok
    assert (tmp_path / "b.txt").read_text() == "from the tree" and not (tmp_path / "made").exists()


def test_what_is_guarded_may_not_change() -> None:
    touch = [Step("write", ["sh", "-c", "echo x > t/a.py"]), Step("next", ["true"])]
    (outcome,) = run_steps(touch, {"t/a.py": "", "t/b.py": ""}, QUICK, guard=["t"])
    assert list(outcome.tampered) == ["t/a.py"] and outcome.exit_code == 0 and not outcome.ok
    assert run_steps(touch, {"t/a.py": "", "t/b.py": ""}, QUICK, guard=["t/b.py"])[-1].ok
    others = [Step("delete", ["rm", "t/b.py"]), Step("add", ["sh", "-c", "echo x > t/c.txt"])]
    deleted, added = (run_steps([step], {"t/b.py": ""}, QUICK, guard=["t"])[0] for step in others)
    assert list(deleted.tampered) == ["t/b.py"] and added.ok
    for new in ("mkfifo t/b.py", "ln -s /dev/zero t/b.py"):  # of neither is there an end to read
        (replaced,) = run_steps(
            [Step("new", ["sh", "-c", f"rm t/b.py; {new}"])], {"t/b.py": ""}, QUICK, guard=["t"]
        )
        assert (replaced.status, list(replaced.tampered)) == ("exited", ["t/b.py"])


@pytest.mark.parametrize("fence", ["limits", None])
def test_files_are_not_written_through_links_of_a_tree(tmp_path: Path, fence: Fence | None) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tree" / "real").mkdir(parents=True)
    (tmp_path / "tree" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tree" / "within").symlink_to("real")
    steps, trees = [Step("show", ["cat", "real/a.py"])], [tmp_path / "tree"]
    (kept,) = run_steps(steps, {"within/a.py": "x"}, QUICK, trees=trees, fence=fence)
    assert kept.ok and kept.output == "x"
    (refused,) = run_steps(steps, {"out/a.py": "x"}, QUICK, trees=trees, fence=fence)
    assert not refused.ok and "out/a.py lies behind a link" in refused.output
    assert not list((tmp_path / "elsewhere").iterdir())


def test_memory_of_all_processes_is_limited_together() -> None:
    code = (
        "import os, time\nfor _ in range(4):\n    if not os.fork():\n"
        "        x = bytearray(60 << 20); x[::4096] = b'x' * len(x[::4096]); time.sleep(60)\ntime.sleep(60)"
    )
    steps = [Step("one", ["true"]), Step("two", [sys.executable, "-I", "-c", code])]
    one, two = run_steps(steps, {}, Limits(timeout_s=20, memory_mib=150))
    assert (two.status, two.name, two.disk_read_only) == ("out-of-memory", "two", one.disk_read_only)


def test_what_cannot_be_started_is_said() -> None:
    outcome = run(["no-such-command"], {}, QUICK)
    assert (outcome.exit_code, outcome.output) == (127, "no-such-command: No such file or directory\n")
    outcome = run(["true"], {"a": "", "a/b": ""}, QUICK)
    assert (outcome.status, outcome.exit_code, outcome.name) == ("killed", -9, "run")
    assert "FileExistsError" in outcome.output


def test_the_system_holds_the_limits() -> None:
    code = "import resource as r; print([r.getrlimit(getattr(r, f'RLIMIT_{name}'))[0] for name in ('CPU', 'FSIZE', 'NPROC', 'NOFILE', 'CORE', 'AS')])"
    limits = Limits(timeout_s=4.5, memory_mib=512, disk_mib=8, processes=32)
    seconds = 1 + math.ceil(4.5 * (os.cpu_count() or 1))
    assert python(code, limits).output == f"[{seconds}, {8 << 20}, 32, 1024, 0, {512 << 20}]\n"


# What works here is found out without the code under test: a fence that it breaks is no reason to skip.
ALONE = {
    "bubblewrap": ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--", "true"],
    "namespaces": ["unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--ipc", "--fork", "true"],
}  # fmt: skip


@functools.cache
def works_here(fence: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run(ALONE[fence], capture_output=True).returncode == 0
    return False


@pytest.mark.parametrize("fence", ["bubblewrap", "namespaces"])
def test_both_fences_hold(fence: Fence) -> None:
    if not works_here(fence):
        pytest.skip(f"no {fence} here")
    tries = "mount -o remount,rw /; echo > /etc/luthier-x; echo luthier > /proc/sys/kernel/hostname; ls /dev/vda /dev/sda /dev/mem"
    name = socket.gethostname()
    (outcome,) = run_steps([Step("try", ["sh", "-c", tries])], {}, QUICK, fence=fence)
    assert outcome.fence == fence and outcome.disk_read_only and socket.gethostname() == name
    assert not Path("/etc/luthier-x").exists() and outcome.output.count("No such file or directory") == 3
    (outcome,) = run_steps([Step("caps", ["cat", "/proc/self/status"])], {}, QUICK, fence=fence)
    places = """ls -A /run; ls -A . ; awk -v here="$PWD" '$2 == here { print $3, $4 }' /proc/mounts"""
    (mounts,) = run_steps([Step("mounts", ["sh", "-c", places])], {}, QUICK, fence=fence)
    assert mounts.output.startswith("tmpfs ") and {"nosuid", "nodev"} <= set(re.split("[ ,]", mounts.output))
    assert "CapBnd:\t0000000000000000" in outcome.output and "CapEff:\t0000000000000000" in outcome.output


def test_the_strongest_fence_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    working = [fence for fence in ALONE if works_here(fence)] + ["limits"]
    found = sandbox.strongest.__wrapped__
    assert found() == working[0]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert found() == next(fence for fence in working if fence != "bubblewrap")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert found() == "limits"


def test_without_a_fence_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    sandbox._say_open.cache_clear()
    (outcome,) = run_steps([Step("x", ["true"])], {}, QUICK, fence="limits")
    assert outcome.ok and outcome.fence == "limits" and not outcome.disk_read_only
    assert "cannot cut off the network" in caplog.text


def test_a_fence_that_does_not_start_says_nothing_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    sandbox._say_open.cache_clear()
    (outcome,) = run_steps([Step("x", ["true"])], {}, QUICK, fence="bubblewrap")
    assert (outcome.status, outcome.fence) == ("killed", "limits") and not caplog.text


def test_disk_is_limited() -> None:
    outcome = python("f = open('big', 'wb')\nfor _ in range(64): f.write(bytes(1 << 20)); f.flush()")
    assert outcome.exit_code != 0


@pytest.mark.parametrize("fence", ["bubblewrap", "namespaces"])
def test_all_files_together_have_so_much_disk(fence: Fence) -> None:
    if not works_here(fence):
        pytest.skip(f"no {fence} here")
    for num_files in (4, 64):
        code = f"for i in range({num_files}): open(f'f{{i}}', 'wb').write(bytes(1 << 20))"
        limits = Limits(timeout_s=20, memory_mib=512, disk_mib=16)
        (outcome,) = run_steps([Step("x", [sys.executable, "-I", "-c", code])], {}, limits, fence=fence)
        assert outcome.status == "exited" and outcome.ok == (num_files == 4)


def test_nothing_of_this_process_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret")
    monkeypatch.setenv("LANG", "C.UTF-8")
    outcome = python(
        "import os, sys, tempfile; print('SOME_TOKEN' in os.environ, sys.stdin.read() == '', os.listdir(), "
        "os.environ['LANG'], os.environ['TMPDIR'], tempfile.gettempdir())"
    )
    assert outcome.output.strip() == "False True [] C.UTF-8 . ."
    first = python("import os; print(b'SOME_TOKEN' in open(f'/proc/{os.getppid()}/environ', 'rb').read())")
    assert first.output.strip() == "False"  # nor by what starts it


def test_there_is_no_network_and_nothing_else_can_be_written(tmp_path: Path) -> None:
    if not any(map(works_here, ALONE)):
        pytest.skip("this kernel or container allows no namespaces")
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection({server.getsockname()!r}, 1); print('connected')"
        refused = python(code).output
    assert "connected" not in refused and ("unreachable" in refused or "refused" in refused)
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
    late = "import atexit, sys\natexit.register(print, 'bye')\nsys.stdout.write('no end of line')"
    shown = "import sys\nprint(open(__file__).read())\nsys.exit()"  # its own source, seal included
    assert all_passes([late, shown], quick) == [True, False]
    fails_late = "import atexit, os\natexit.register(os._exit, 3)\n"
    assert not passes(fails_late, quick)[0]


def test_a_step_is_well_only_if_nothing_was_wrong() -> None:
    good = Outcome("exited", 0, "", 0.1, "limits", False)
    assert good.ok
    for change in ({"status": "timeout"}, {"exit_code": 1}, {"tampered": ["a"]}):
        assert not replace(good, **change).ok
    assert Limits() == Limits(timeout_s=10, memory_mib=1024, disk_mib=64, processes=64, address_space=True)


@pytest.mark.parametrize(
    ("members", "broken"),
    [
        ([(1, 3), (1, 8)], None),
        ([(1, 3), (1, 9)], "too-many-processes"),  # threads: eight more than processes
        ([(0, 0)] * 3, None),
        ([(0, 0)] * 4, "too-many-processes"),
        ([(1 << 20, 1), (1 << 20, 1)], None),
        ([(1 << 20, 1), (1 + (1 << 20), 1)], "out-of-memory"),
    ],
)
def test_a_family_of_processes_is_counted_together(
    monkeypatch: pytest.MonkeyPatch, members: list[tuple[int, int]], broken: str | None
) -> None:
    class Member:
        def __init__(self, rss: int, threads: int) -> None:
            self.memory_info = lambda: SimpleNamespace(rss=rss)
            self.num_threads = lambda: threads

    family = SimpleNamespace(
        children=lambda recursive: [Member(*one) for one in members] if recursive else []
    )
    monkeypatch.setattr(sandbox.psutil, "Process", lambda pid: family)
    assert sandbox._too_much(1, Limits(memory_mib=2, processes=3)) == broken

    def gone(*_: object, **__: object) -> None:
        raise sandbox.psutil.NoSuchProcess(1)

    gone_meanwhile = SimpleNamespace(memory_info=gone, num_threads=gone)
    family.children = lambda recursive: [gone_meanwhile, Member(3 << 20, 1)]
    assert sandbox._too_much(1, Limits(memory_mib=2)) == "out-of-memory", "the others are counted"
    family.children = gone
    assert sandbox._too_much(1, Limits()) is None, "it ended meanwhile"


def test_all_processes_are_ended_only_where_they_have_a_table_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[tuple[str, int, int]] = []

    def none_left(*_: int) -> None:
        raise ChildProcessError

    monkeypatch.setattr(inside.os, "killpg", lambda *given: ended.append(("group", *given)))
    monkeypatch.setattr(inside.os, "kill", lambda *given: ended.append(("one", *given)))
    monkeypatch.setattr(inside.os, "waitpid", none_left)
    group, everything = ("group", 12345, signal.SIGKILL), ("one", -1, signal.SIGKILL)
    for alone, wanted in ((False, [group]), (True, [group, everything])):
        ended.clear()
        assert inside._kill(12345, alone) is None and ended == wanted


def test_what_is_guarded_and_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("t/a.py", "1"), ("t/in/b.py", "2"), ("t/a.pyc", "3"), ("c.txt", "four")):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    Path("link").symlink_to("c.txt")
    found = inside._hashes(["t", "c.txt", "lacking"])
    assert found.keys() == {"t/a.py", "t/in/b.py", "c.txt", "lacking"} and found["lacking"] == ""
    assert inside._collected(["c.txt", "link", "t", "lacking"], 4) == ({"c.txt": "four"}, [])
    assert inside._collected(["c.txt"], 3) == ({}, ["c.txt"])
