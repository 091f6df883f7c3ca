"""Runs the checks and says what they found."""

from __future__ import annotations

import inspect
import json
import math
import shutil
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import registry
from luthier.check.context import CheckContext, Skip
from luthier.errors import UserError, machine_limit, one_line
from luthier.records import Finding, Progress
from luthier.run_folder import logger, write_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text


_ORDER = {"error": 0, "warning": 1, "note": 2}
_WIDEST = 110  # columns of printed text; longer lines are hard to read


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """What all checks have to say. It prints itself, and shows itself in a notebook.

        print(report)
        report.show(verbose=True)  # with colours, and with what each check looked at and cost
        report.write_html("report.html")

    Attributes:
        findings: Worst first.
        passed: Names of the checks that found nothing.
        skipped: Those that do not apply or could not run, ``{"check", "why"}`` each.
        waived: Names of checks whose errors do not count.
        seconds: What each check cost.
        seen: How much each check looked at.
        quick: Whether checks of the model were left out.
        subject: What was checked: the model, and how many rows.
    """

    findings: Sequence[Finding] = ()
    passed: Sequence[str] = ()
    skipped: Sequence[Mapping[str, str]] = ()
    waived: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    seen: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False
    subject: str = ""

    @property
    def ok(self) -> bool:
        """Whether no error is left that is not waived."""
        return not any(f.severity == "error" and f.check not in self.waived for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``findings.json``: plain values alone, so that JSON takes them."""
        plain: dict[str, Any] = _plain({
            "ok": self.ok,
            "findings": [asdict(finding) for finding in self.findings],
            "passed": self.passed,
            "skipped": self.skipped,
            "waived": self.waived,
            "seconds": self.seconds,
            "seen": self.seen,
            "quick": self.quick,
            "subject": self.subject,
        })  # fmt: skip
        return plain

    def to_json(self) -> str:
        """The same as one JSON object."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write_html(self, path: str | Path) -> Path:
        """Writes a page that needs no other file and no network; returns its path."""
        from luthier.display import pages

        write_text(Path(path), pages.findings_page(self.to_dict()))
        return Path(path)

    def show(self, *, verbose: bool = False) -> None:
        """Prints it, with colours where there is a terminal.

        Args:
            verbose: Also what each check looked at and what it cost.
        """
        from rich.console import Console

        from luthier.display import findings

        findings.show(self.to_dict(), Console(highlight=False), verbose=verbose)

    def __str__(self) -> str:
        from luthier.display import findings

        width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)
        return "\n".join(line.plain for line in findings.lines(self.to_dict(), width))

    def __repr__(self) -> str:
        from luthier.display import findings

        return f"<Report {findings.verdict(self.to_dict()).plain}>"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from luthier.display import findings

        yield from findings.lines(self.to_dict(), options.max_width)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # IPython's terminal asks for this

    def _repr_html_(self) -> str:
        from luthier.display import pages

        return pages.findings_piece(self.to_dict())


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: numpy's and torch's numbers as Python's, NaN and infinity by name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def check(
    context: CheckContext,
    *,
    waived: Collection[str] = (),
    only: Collection[str] = (),
    progress: Progress | None = None,
) -> Report:
    """What the checks find, each of them passed, skipped with a reason, or with findings; never silently absent.

    Args:
        context: What to look at.
        waived: Checks whose errors do not count.
        only: Run these checks alone; none is all.
        progress: Called with a check's name, how many are done and how many there are.

    Raises:
        UserError: ``waived`` or ``only`` names a check that does not exist.
    """
    waived, only = names_of(waived, "recipe key check.waive"), names_of(only, "--only")
    checks = {n: f for n, f in registry.registered("check").items() if not only or n in only}
    findings: list[Finding] = []
    passed: list[str] = []
    skipped: list[dict[str, str]] = []
    seconds: dict[str, float] = {}
    seen: dict[str, str] = {}
    for number, (name, function) in enumerate(checks.items()):
        if progress:
            progress(name, number, len(checks))
        began = time.perf_counter()
        context.seen.clear()
        try:
            found = list(function(context))
        except Skip as why:
            skipped.append({"check": name, "why": str(why)})
            context.seen.clear()
        except UserError as error:
            findings.append(Finding(name, "error", error.what, error.where, error.fix))
        except Exception as error:
            if machine_limit(error):
                raise
            findings.append(_broken(context, name, function, error))
        else:
            findings += found
            if not found:
                passed.append(name)
        seconds[name] = round(time.perf_counter() - began, 3)
        if context.seen:
            seen[name] = "; ".join(dict.fromkeys(context.seen))
    return Report(
        findings=sorted(findings, key=lambda f: _ORDER[f.severity]),
        passed=passed,
        skipped=skipped,
        waived=sorted({f.check for f in findings if f.severity == "error"} & set(waived)),
        seconds=seconds,
        seen=seen,
        quick=context.quick,
        subject=_subject(context),
    )


def names_of(given: Collection[str], where: str) -> set[str]:
    """The checks of these names, or of ``path/to/file.py@name``, registered by now.

    Raises:
        UserError: There is no such check.
    """
    for name in given:
        registry.lookup("check", name, where)
    return {name.rpartition("@")[2] for name in given}


def _broken(context: CheckContext, name: str, function: Callable[..., Any], error: Exception) -> Finding:
    """The finding of a check that failed itself: nothing is proved then, and the other checks still speak."""
    logger.error("the check %s failed", name, exc_info=error, extra={"only_log": True})
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == inspect.getsourcefile(function)]
    place = (own or frames)[-1]
    return Finding(
        name,
        "error",
        f"the check itself failed, which is a defect of it: {one_line(error)}",
        f"{Path(place.filename).name}:{place.lineno}",
        context.fix(
            f"report it to the project; until it is mended, go on without it: check.waive=[{name}]",
            "report it to the project; the other checks have run all the same",
        ),
    )


def _subject(context: CheckContext) -> str:
    """The model and its rows, as far as they can be told."""
    try:
        names = {"train": "training", "eval": "evaluation", "test": "test"}
        counts = [f"{len(rows):,} {names[split]} rows" for split, rows in context.rows.items()]
        return f"{context.model_name}: {', '.join(counts)}"
    except (Skip, UserError):
        return ""
