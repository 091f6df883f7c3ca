"""What the drivers of all tools share: each case in a process of its own, and what libraries say."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import torch

Finding = dict[str, str]
"""``severity`` (error, warning, note, or ended for an error of the training itself) and ``text``."""

TIMEOUT_S = 300
heard: list[Finding] = []
"""What libraries have logged or warned of since the case began, once ``listen`` was called."""


def each(look: Callable[[cases.SetUp], list[Finding]]) -> None:
    """Gives the cases named on the command line to a tool, and writes for each ``NAME.json`` and ``NAME.log``.

    A case runs in a fork of this process, so that imports are paid once and nothing of one case reaches the next.
    """
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            one(look, cases.CASES[name], folder)
        os.waitpid(child, 0)
        print(f"  {name}", flush=True)


def one(look: Callable[[cases.SetUp], list[Finding]], case: cases.Case, folder: Path) -> None:
    """The child's work; does not return."""
    log = os.open(folder / f"{case.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.alarm(TIMEOUT_S)
    heard.clear()
    temporary = tempfile.mkdtemp()
    tempfile.tempdir = temporary
    start = time.monotonic()
    try:
        findings, crash = look(case.make()), ""
    except BaseException as error:
        traceback.print_exc()
        findings, crash = [], f"{type(error).__name__}: {error}"
    result = {"findings": findings, "crash": crash, "seconds": round(time.monotonic() - start, 1)}
    (folder / f"{case.name}.json").write_text(json.dumps(result))
    shutil.rmtree(temporary, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def listen() -> None:
    """From now on ``heard`` fills with all warnings, of logging and of Python, that would be shown."""
    handle, show = logging.Logger.handle, warnings.showwarning

    def handled(self: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            severity = "error" if record.levelno >= logging.ERROR else "warning"
            heard.append({"severity": severity, "text": f"{record.name}: {record.getMessage()}"})
        handle(self, record)

    def shown(message: Any, category: Any, *rest: Any, **more: Any) -> None:
        heard.append({"severity": "warning", "text": f"{category.__name__}: {message}"})
        show(message, category, *rest, **more)

    logging.Logger.handle = handled  # type: ignore[method-assign]
    warnings.showwarning = shown


def train(trainer: Any) -> list[Finding]:
    """Trains to the end; the error that ended it before, if any, with the severity ``ended``."""
    try:
        trainer.train()
    except Exception as error:
        traceback.print_exc()
        return [{"severity": "ended", "text": f"{type(error).__name__}: {error}"}]
    return []


def distinct(findings: list[Finding]) -> list[Finding]:
    """Every finding once."""
    return [dict(pairs) for pairs in dict.fromkeys(tuple(finding.items()) for finding in findings)]
