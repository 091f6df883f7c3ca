"""A training over several processes on one or more machines: the torchrun line, and running it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from luthier.errors import UserError


def line(
    arguments: Sequence[str], *, nodes: int, processes: int, endpoint: str | None = None, job: str = "luthier"
) -> list[str]:
    """The command that starts this machine's processes.

    Args:
        arguments: Of ``luthier``: ``["train", "my.yaml"]``.
        nodes: Machines.
        processes: Processes on each of them; one for each GPU, as a rule.
        endpoint: ``host:port`` of one of the machines, where all of them meet; needed for more than one.
        job: Name by which they know each other.

    Raises:
        UserError: Several machines without a place to meet.
    """
    # All processes say the same; the first one of each machine says it here.
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        "--local-ranks-filter=0",
    ]
    if nodes == 1:
        start += ["--standalone"]
    elif endpoint is None:
        raise UserError(
            f"{nodes} machines need a place to meet",
            "option --endpoint",
            f"--endpoint {socket.gethostname()}:29500, the same on each machine; or --slurm, which knows its machines",
        )
    else:
        start += [
            f"--nnodes={nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={endpoint}",
            f"--rdzv-id={job}",
        ]
    return [*start, "-m", "luthier", *arguments]


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Runs a line in the foreground; Ctrl-C and SIGTERM reach its processes, which save a checkpoint.

    Returns:
        The exit code of ``luthier`` in the first process that failed, 0 if none did.
    """
    # Cores are shared among the processes; torchrun would give each of them a single one.
    threads = str(max(1, len(os.sched_getaffinity(0)) // _processes(command)))
    process = subprocess.Popen(command, env={"OMP_NUM_THREADS": threads, **os.environ, **(environment or {})})

    def pass_on(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _processes(command: Sequence[str]) -> int:
    return next(int(part.partition("=")[2]) for part in command if part.startswith("--nproc-per-node="))
