"""From exceptions to what a person reads, and the exit code: 1 a gate says no, 2 a mistake, 3 our defect."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback

from rich.console import Console
from rich.text import Text

from luthier.display.text import safe
from luthier.errors import Interrupted, Refused, UserError, UserErrors, machine_limit
from luthier.run_folder import RunFolder, logger


def tell(error: BaseException, console: Console, *, debug: bool) -> int:
    """Prints what went wrong, logs all of it, and returns the exit code."""
    if isinstance(error, BrokenPipeError):  # the reader has gone, as `head` does: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    known = error if isinstance(error, Refused) else as_user_error(error)
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, KeyboardInterrupt):
        code, log = 1, "interrupted"
        console.print(Text("interrupted", "bold red"))
    elif known is None:
        code, log = 3, trace
        _print_defect(error, console)
    else:
        code, log = 1 if isinstance(known, Refused) else 2, str(known)
        for one in known.errors if isinstance(known, UserErrors) else (known,):
            show(one.what, one.where, one.fix, console)
        if known is not error:
            log = f"{log}\n{trace}"  # it was not raised as a mistake: keep where it came from
    if debug:
        console.print(Text(safe(trace)), soft_wrap=True)
    for note in getattr(error, "__notes__", ()):
        log += f"\n{note}"
        console.print(Text(safe(note)), soft_wrap=True)
    logger.error("%s", safe(log), extra={"only_log": True})
    return code


def show(what: str, where: str, fix: str, console: Console) -> None:
    """Prints what went wrong, where, and what to do."""
    console.print(Text(safe(what), "bold red"), soft_wrap=True)
    console.print(Text.assemble(("  where: ", "bold"), safe(where)), soft_wrap=True)
    console.print(Text.assemble(("  fix:   ", "bold"), safe(fix)), soft_wrap=True)


def note(error: BaseException, run: RunFolder) -> None:
    """Leaves in the run folder how the run ended: for those who started it without looking on."""
    known = error if isinstance(error, Refused) else as_user_error(error)
    if isinstance(error, KeyboardInterrupt | Interrupted):
        kind, code = "interrupted", 1
    elif known is None:
        kind, code = "defect", 3
    else:
        kind, code = ("refused", 1) if isinstance(known, Refused) else ("mistake", 2)
    what = known.what if known else f"{type(error).__name__}: {error}".rstrip(": ")
    where, fix = (known.where, known.fix) if known else (str(run.log), "the same command goes on")
    if run.path.is_dir():
        with contextlib.suppress(OSError, ValueError):  # a full disk must not hide the error itself
            run.note_stopped(kind, code, what, where, fix)


def as_user_error(error: BaseException) -> UserError | None:
    """The mistake, or the machine's limit, that an exception stands for; None if it is a defect of ours."""
    if isinstance(error, UserError):
        return error
    return machine_limit(error)


def _print_defect(error: BaseException, console: Console) -> None:
    logs = [str(getattr(handler, "baseFilename", "")) for handler in logger.handlers]
    log = next(filter(None, logs), None)
    console.print(Text("this is a defect of luthier, not of your input", "bold red"))
    console.print(Text(safe(f"  what:  {type(error).__name__}: {error}".rstrip(": "))), soft_wrap=True)
    place = f"the traceback is in {log}" if log else "there is no run folder yet"
    console.print(Text(safe(f"  where: {place}")), soft_wrap=True)
    console.print(
        "  fix:   run `luthier --debug ...` to see the traceback, and send it to the project", soft_wrap=True
    )


def saved(run: RunFolder) -> str:
    """What a run that failed has finished, and how to go on."""
    if told := [text for one in run.trainings().values() if (text := saved(one))]:
        return told[-1]
    steps = [path for path in run.checkpoints.glob("step-*") if path.name[5:].isdigit()]
    newest = max(steps, key=lambda path: int(path.name[5:]), default=None)
    finished = {
        "rows": run.manifest,
        "findings": run.findings,
        "checkpoint": newest,
        "trained weights": run.result(),
        "predictions": run.predictions,
        "scores": run.scores,
        "page": run.report,
    }
    there = [
        f"{name} ({path.relative_to(run.path)})" for name, path in finished.items() if path and path.exists()
    ]
    if not there:
        return ""
    return f"saved in {run.path}: {', '.join(there)}\nto go on, give the same command again: what is finished and unchanged is not done again"
