"""Python programs that test themselves."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from luthier.execution.sandbox import Limits, Outcome, run


def passes(program: str, limits: Limits | None = None) -> tuple[bool, Outcome]:
    """Whether a program comes to its end without an error, and what became of it.

    A program that leaves early with exit code 0 did not pass: its last line has to have run.
    """
    seal = secrets.token_hex(16)
    # What threads and exit handlers say comes behind it. A program that shows its own source has more on that line.
    # "\nprint" begins a line of its own even behind an unfinished one; a backslash there is an error, as it should be.
    source = f"{program}\nprint({seal!r}, flush=True)\n"
    outcome = run([sys.executable, "-I", "program.py"], {"program.py": source}, limits)
    ended = outcome.status == "exited" and outcome.exit_code == 0
    return ended and any(line.endswith(seal) for line in outcome.output.splitlines()), outcome


def all_passes(programs: Sequence[str], limits: Limits | None = None) -> list[bool]:
    """Whether each program passes, as many at once as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [passed for passed, _ in pool.map(lambda program: passes(program, limits), programs)]
