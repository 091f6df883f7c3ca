"""A run over several processes on one or more machines: the torchrun line, kept as a script, and running it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from luthier.errors import Interrupted, UserError
from luthier.run_folder import RunFolder, read_json, write_text

SCRIPT = "torchrun.sh"
# Seconds that processes have for the step under way and a checkpoint, once they are asked to end; torchrun's own 30 are
# few for a large model.
GRACE_S = 110


def line(arguments: Sequence[str], *, nodes: int, processes: int, endpoint: str | None = None) -> list[str]:
    """The command that starts this machine's processes.

    Args:
        arguments: Of ``luthier``: ``["run", "my.yaml"]``. The run folder is not among them (torchrun takes ``--run`` for
            an option of its own), but in the variable ``LUTHIER_RUN``.
        nodes: Machines.
        processes: On each of them; one for each GPU, as a rule.
        endpoint: ``host:port`` of one of the machines, where all of them meet; needed for more than one.

    Raises:
        UserError: Several machines without a place to meet.
    """
    if nodes == processes == 1:
        return [sys.executable, "-m", "luthier", *arguments]
    # All processes say the same; the first one of each machine says it here.
    start = ["torch.distributed.run", f"--nproc-per-node={processes}", "--local-ranks-filter=0"]
    if nodes == 1:
        start += ["--standalone"]
    elif endpoint is None:
        raise UserError(
            f"{nodes} machines need a place to meet",
            "option --endpoint",
            "give the same HOST:PORT of one of them on each machine: --endpoint node1:29500; or --slurm, which knows its own",
        )
    else:
        start += [
            f"--nnodes={nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={endpoint}",
            "--rdzv-id=luthier",
        ]
    return [sys.executable, "-m", *start, "-m", "luthier", *arguments]


def script(command: Sequence[str], run: RunFolder, threads: int) -> str:
    """A line as a script that does the same from anywhere."""
    return "\n".join(
        [
            "#!/bin/bash",
            f"cd {shlex.quote(str(Path.cwd()))} || exit 2",
            f"export LUTHIER_RUN={shlex.quote(str(run.path.resolve()))}",
            f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={GRACE_S}",
            f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{threads}}}",
            f"exec {shlex.join(command)}",
            "",
        ]
    )


def refuse_odd(*texts: object) -> None:
    """Makes sure that texts can stand in a script.

    Raises:
        UserError: One holds line breaks, other control characters, or what is no Unicode.
    """
    for text in texts:
        if not str(text).isprintable():
            raise UserError(
                f"{str(text)!r} holds characters that cannot stand in a script",
                "luthier launch",
                "use names of plain characters, on one line",
            )


def threads_each(processes: int) -> int:
    """Threads that each of so many processes should compute with on this machine; torchrun would give them one."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def keep(run: RunFolder, text: str) -> Path:
    """Writes the script into the run folder."""
    path = run.launch / SCRIPT
    write_text(path, text)
    return path


def start(path: Path, run: RunFolder, *, quiet: bool = False) -> dict[str, Any] | None:
    """Runs a script in the foreground; Ctrl-C and SIGTERM reach its processes, which save a checkpoint.

    Args:
        path: Of the script.
        run: The folder of the run that it starts.
        quiet: Leave out what it prints on standard output.

    Returns:
        How it ended, in the form of ``stopped.json``; none if all is done.

    Raises:
        Interrupted: A signal came before it was done.
    """
    received: list[int] = []
    process = subprocess.Popen(["bash", str(path)], stdout=subprocess.DEVNULL if quiet else None)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGTERM:  # a terminal sends Ctrl-C to all processes itself
            process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if code == 0:
        return None
    if not run.stopped.is_file():  # killed processes could not say anything
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        run.note_stopped(
            "killed", 1, f"the processes ended {how} without a word", str(run.path), "see run.log"
        )
    stopped: dict[str, Any] = read_json(run.stopped)
    if received:
        raise Interrupted(*(stopped[name] for name in ("what", "where", "fix")))
    return stopped
