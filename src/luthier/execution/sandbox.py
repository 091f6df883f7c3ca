"""Commands that nobody vouches for: run apart, with limits of time, memory and disk, and without a network.

On Linux the command gets namespaces of its own where the kernel allows that: no network, no other processes, a disk that
is read-only but for its own folder in memory. Elsewhere only the limits hold, and that is said once. It is a fence
against accidents, which code from models is full of, and no wall against somebody who looks for a way out.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.run_folder import logger

_INSIDE = Path(__file__).with_name("inside.py")
_TAIL = 4_000  # characters of output that are kept


@dataclass(frozen=True, slots=True)
class Limits:
    """What a command may use.

    Attributes:
        timeout_s: Seconds from its start, and of processor time.
        memory_mib: Address space of each of its processes.
        disk_mib: Largest file, and all of its folder where that is in memory.
    """

    timeout_s: float = 10.0
    memory_mib: int = 1024
    disk_mib: int = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command.

    Attributes:
        status: ``exited``, ``timeout`` or ``killed`` (by a signal).
        exit_code: Of the command; that of a signal is negative.
        output: The end of what it wrote to both streams.
        seconds: From start to end.
        network_cut: Whether it had no network.
        disk_read_only: Whether it could write nowhere but in its folder.
    """

    status: Literal["exited", "timeout", "killed"]
    exit_code: int
    output: str
    seconds: float
    network_cut: bool
    disk_read_only: bool


def run(
    command: Sequence[str], files: Mapping[str, str] | None = None, limits: Limits | None = None
) -> Outcome:
    """What a command does in an empty folder that holds only ``files``, and that is gone afterwards.

    The command sees none of this process's environment but PATH and LANG, and nothing on standard input.

    Args:
        command: Program and arguments.
        files: Plain names and texts of the files in its folder.
        limits: What it may use.
    """
    limits = limits or Limits()
    for name in files or {}:
        if Path(name).name != name:
            raise ValueError(f"{name!r} is no plain file name")
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        environment |= {"HOME": folder, "TMPDIR": folder}
        reading, writing = os.pipe()
        order = {
            "command": list(command),
            "files": dict(files or {}),
            "folder": folder,
            "environment": environment,
            "seconds": max(1, round(limits.timeout_s)),
            "memory_bytes": limits.memory_mib << 20,
            "disk_bytes": limits.disk_mib << 20,
            "report": writing,
        }
        began = time.perf_counter()
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_INSIDE)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=(writing,),
            )
            os.close(writing)
            timed_out = False
            try:
                process.communicate(json.dumps(order).encode(), timeout=limits.timeout_s)
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:
                _end(process)
            with os.fdopen(reading, "rb") as pipe:
                report = json.loads(pipe.read() or b"{}")
            seconds = time.perf_counter() - began
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - 4 * _TAIL))
            text = output.read().decode("utf-8", "replace")[-_TAIL:]
    code = process.returncode
    code = 128 - code if 128 < code < 128 + signal.NSIG else code  # a signal, passed on as shells do
    cut = bool(report.get("network_cut"))
    if not cut:
        _say_open()
    return Outcome(
        "timeout" if timed_out else "killed" if code < 0 else "exited",
        code,
        text,
        round(seconds, 3),
        cut,
        bool(report.get("disk_read_only")),
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills all that is left of the command."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@functools.cache
def _say_open() -> None:
    logger.warning(
        "the sandbox cannot cut off the network here (no namespaces): code runs with limits of time and memory only"
    )
