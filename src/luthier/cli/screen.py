"""What goes to the terminal while a verb runs: progress, messages, warnings; and what is kept off it."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from luthier.display.text import duration, safe
from luthier.run_folder import logger

_PLAIN_EVERY_S = 5.0
_PACKAGE = Path(__file__).parents[1]


_err: Console | None = None


def out() -> Console:
    """Standard output, for results."""
    return _console(stderr=False)


def err() -> Console:
    """Standard error, for progress, messages and errors; one and the same while a verb runs."""
    return _err or _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    """A console; a pipe or file gets wide text."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console = Console(stderr=stderr, highlight=False, width=140)
    return console


def shield() -> None:
    """Keeps third parties' progress bars, advice and telemetry off the screen; before they are imported."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",  # encoding has processes of its own
    }.items():
        os.environ.setdefault(name, value)
    # Where it is installed, peft imports it, and it says that a kernel of a package that is not there was not fetched.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextlib.contextmanager
def messages() -> Iterator[Console]:
    """Shows what luthier logs on the console that it gives; other packages' warnings only go into run.log."""
    global _err
    before, level, raises = list(logger.handlers), logger.level, logging.raiseExceptions
    _err = _console(stderr=True)
    logger.addHandler(_Messages(_err))
    logger.setLevel(logging.INFO)
    logging.raiseExceptions = False  # a full disk must not end in a traceback of the log
    with warnings.catch_warnings():
        warnings.showwarning = _log_warning
        try:
            yield _err
        finally:
            for handler in logger.handlers[:]:
                if handler not in before:  # ours, and the run.log that the pipeline opened
                    logger.removeHandler(handler)
                    with contextlib.suppress(OSError, ValueError):
                        handler.close()
            logger.setLevel(level)
            logging.raiseExceptions = raises
            _err = None


class _Messages(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "only_log", False):
            style = {logging.INFO: "dim", logging.WARNING: "yellow"}.get(record.levelno, "red")
            self.console.print(Text(safe(record.getMessage()), style), soft_wrap=True)


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    own = Path(filename).is_relative_to(_PACKAGE)
    text = str(message) if own else f"{filename}:{lineno}: {category.__name__}: {message}"
    logger.warning("%s", text, extra={"only_log": not own})


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar with label, count and time left; plain lines every few seconds where there is no terminal."""
    console = err()
    if not console.is_terminal:
        yield _PlainLines(console)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Bar(bar)


class _Bar:
    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task: TaskID | None = None
        self.last: tuple[int, int | None] = (0, None)

    def __call__(self, label: str, done: int, total: int | None) -> None:
        if self.task is None or total != self.last[1] or done < self.last[0]:  # something else has begun
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(safe(label), total=total, completed=done)
        self.bar.update(self.task, description=safe(label), completed=done)
        self.last = (done, total)


class _PlainLines:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.began: tuple[float, int] = (time.monotonic(), 0)
        self.said = -_PLAIN_EVERY_S
        self.last: tuple[int, int | None] = (0, None)

    def __call__(self, label: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if total != self.last[1] or done < self.last[0]:
            self.began = (now, done)
        self.last = (done, total)
        if now - self.said < _PLAIN_EVERY_S:
            return
        self.said = now
        line = f"{label}  {done}" + (f"/{total}" if total else "")
        gained = done - self.began[1]
        if total and gained:
            line += f"  {duration((now - self.began[0]) / gained * (total - done))} left"
        self.console.print(Text(safe(line)), soft_wrap=True)
