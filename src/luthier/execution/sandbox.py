"""Commands that nobody vouches for: run apart, with limits of time, memory, processes and disk, and without a network.

On Linux the commands get namespaces of their own where the kernel allows that, by bubblewrap if it is installed and else by
our own calls: no network, no other processes, no devices, a disk that is read-only but for their own folder in memory.
Elsewhere only the limits hold, and that is said once. It is a fence against accidents, which code from models is full of,
and no wall against somebody who looks for a way out.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import psutil

from luthier.run_folder import logger

Fence = Literal["bubblewrap", "namespaces", "limits"]
Status = Literal["exited", "timeout", "killed", "out-of-memory", "too-many-processes"]

_INSIDE = Path(__file__).with_name("inside.py")
_KEEP_BYTES = 16_000  # of the end of a step's output
_COLLECT_BYTES = 16 << 20  # of a file that is collected
_WATCH_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a command may use.

    Attributes:
        timeout_s: Seconds from its start, and of processor time so many on each processor, with one more.
        memory_mib: Resident memory of all its processes, and address space of each.
        disk_mib: Largest file, and all of its folder where that is in memory.
        processes: Processes and threads.
        address_space: Whether address space is limited; a Java VM takes far more of it than it uses.
    """

    timeout_s: float = 10.0
    memory_mib: int = 1024
    disk_mib: int = 64
    processes: int = 64
    address_space: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """A command of several that share a folder.

    Attributes:
        name: For the outcome.
        command: Program and arguments.
        collect: Files of the folder whose text is wanted afterwards.
        environment: Variables beside PATH, LANG, HOME and TMPDIR.
    """

    name: str
    command: Sequence[str]
    collect: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command.

    Attributes:
        status: ``exited``, ``timeout``, ``killed`` (by a signal), or what limit was broken.
        exit_code: Of the command; that of a signal is negative.
        output: The end of what it wrote to both streams; the folder's own path is ``.`` there.
        seconds: From start to end.
        fence: What held it.
        disk_read_only: Whether it could write nowhere but in its folder.
        name: Of the step.
        files: The texts of the files that were to be collected and are there, with the folder's path as in ``output``.
        tampered: Guarded files that it changed or deleted.
        too_large: Files that were to be collected and have more than 16 MiB.
    """

    status: Status
    exit_code: int
    output: str
    seconds: float
    fence: Fence
    disk_read_only: bool
    name: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    tampered: Sequence[str] = ()
    too_large: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        """Whether it ended by itself without an error, and left alone what it had to."""
        return self.status == "exited" and self.exit_code == 0 and not self.tampered


def run(
    command: Sequence[str], files: Mapping[str, str] | None = None, limits: Limits | None = None
) -> Outcome:
    """What a command does in an empty folder that holds only ``files``, and that is gone afterwards.

    The command sees none of this process's environment but PATH and LANG, and nothing on standard input.

    Args:
        command: Program and arguments.
        files: Names and texts of the files in its folder.
        limits: What it may use.
    """
    return run_steps([Step("run", command)], files, limits)[0]


def run_steps(
    steps: Sequence[Step],
    files: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    *,
    trees: Sequence[Path] = (),
    guard: Sequence[str] = (),
    fence: Fence | None = None,
) -> list[Outcome]:
    """What commands do one after the other in a folder of their own, up to the first that does not end well.

    Args:
        steps: The commands.
        files: Names, relative to the folder, and texts; undecodable bytes as surrogates.
        limits: What each step may use.
        trees: Folders whose content is copied into the folder before the files.
        guard: Files and folders of the folder that no step may change; files that it adds to them are no change.
        fence: How it is held; the strongest that works here if not given.
    """
    limits = limits or Limits()
    refuse_outside(files or {})
    fence = fence or strongest()
    with (
        tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as report,
    ):
        environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        environment |= {"HOME": folder, "TMPDIR": folder}
        order = {
            "steps": [
                {"name": s.name, "command": list(s.command), "seconds": limits.timeout_s, "collect": list(s.collect),
                 "environment": dict(s.environment)}
                for s in steps
            ],
            "files": dict(files or {}),
            "trees": [str(tree.absolute()) for tree in trees],
            "guard": list(guard),
            "folder": folder,
            "environment": environment,
            "memory_bytes": limits.memory_mib << 20 if limits.address_space else 0,
            "disk_bytes": limits.disk_mib << 20,
            "processes": limits.processes,
            "threads": os.cpu_count() or 1,
            "keep_bytes": _KEEP_BYTES,
            "collect_bytes": _COLLECT_BYTES,
            "report": report.fileno(),
            "fence": fence,
        }  # fmt: skip
        process = subprocess.Popen(
            [*_wrapping(fence, folder, limits), sys.executable, "-I", "-S", str(_INSIDE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            pass_fds=(report.fileno(),),
        )
        broken = _watch(process, json.dumps(order).encode(), limits, len(steps) * limits.timeout_s + 30)
        assert process.stderr is not None
        with process.stderr as stream:
            said = stream.read().decode("utf-8", "replace")[-2000:]
        report.seek(0)
        about, *results = [
            json.loads(line) for line in report.read().splitlines() if line.endswith(b"}")
        ] or [{}]
    held: Fence = about.get("fence", "limits")
    if about and held == "limits":
        _say_open()
    outcomes = [
        Outcome(
            r["status"], r["exit_code"], r["output"].replace(folder, "."), r["seconds"], held, about["disk_read_only"], r["name"],
            {name: text.replace(folder, ".") for name, text in r["files"].items()}, r["tampered"],
            r["too_large"],
        )
        for r in results
    ]  # fmt: skip
    if broken or not outcomes or (outcomes[-1].ok and len(outcomes) < len(steps)):
        # The step that ran, and maybe ended the first program, says nothing any more.
        name = steps[min(len(outcomes), len(steps) - 1)].name
        read_only = bool(about.get("disk_read_only"))
        outcomes.append(Outcome(broken or "killed", -9, said, 0.0, held, read_only, name))
    return outcomes


def refuse_outside(names: Iterable[str]) -> None:
    """Raises ValueError where a name is that of a file outside of the folder."""
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{name!r} is not inside of the folder")


@functools.cache
def strongest() -> Fence:
    """The strongest fence that works on this machine."""
    fences: tuple[Fence, ...] = ("bubblewrap", "namespaces") if sys.platform.startswith("linux") else ()
    for fence in fences:
        if fence == "bubblewrap" and not shutil.which("bwrap"):
            continue
        (found,) = run_steps([Step("probe", [sys.executable, "-I", "-S", "-c", ""])], fence=fence)
        if found.ok and found.fence == fence and found.disk_read_only:
            return fence
    return "limits"


def _wrapping(fence: Fence, folder: str, limits: Limits) -> list[str]:
    """What bubblewrap is called with in front of the first program."""
    if fence != "bubblewrap":
        return []
    hidden = ["--tmpfs", "/run"] if os.path.isdir("/run") else []
    return [
        "bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL",
        "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", *hidden,
        "--size", str(16 << 20), "--tmpfs", "/dev/shm", "--remount-ro", "/dev",
        "--size", str(limits.disk_mib << 20), "--tmpfs", folder, "--",
    ]  # fmt: skip


def _watch(process: subprocess.Popen[bytes], order: bytes, limits: Limits, most_s: float) -> Status | None:
    """Waits for the end of the first program, and kills it with all that it started if they take too much.

    Returns:
        What was too much, if anything.
    """
    began = time.monotonic()
    broken: Status | None = None
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as stream:
            stream.write(order)
        while broken is None:
            try:
                process.wait(_WATCH_SECONDS)
                break
            except subprocess.TimeoutExpired:
                broken = "timeout" if time.monotonic() - began > most_s else _too_much(process.pid, limits)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return broken


def _too_much(pid: int, limits: Limits) -> Status | None:
    resident, threads = 0, 0
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(pid).children(recursive=True)
        # Threads are counted for few processes only: of many the number says enough.
        if len(family) > limits.processes:
            return "too-many-processes"
        for member in family:
            with contextlib.suppress(psutil.Error):
                resident += member.memory_info().rss
                threads += member.num_threads()
    if resident > limits.memory_mib << 20:
        return "out-of-memory"
    return "too-many-processes" if threads > limits.processes + 8 else None


@functools.cache
def _say_open() -> Any:
    logger.warning(
        "the sandbox cannot cut off the network here (no bubblewrap, no namespaces): code runs with limits of time, memory "
        "and processes only"
    )
