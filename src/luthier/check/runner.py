"""Runs the checks and says what they found."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from luthier import registry
from luthier.check.context import CheckContext, Skip
from luthier.errors import UserError
from luthier.records import Finding

Progress = Callable[[str, int, int | None], None]

_ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, slots=True)
class Report:
    """What all checks have to say.

    Attributes:
        findings: Worst first.
        passed: Names of the checks that found nothing.
        skipped: Those that do not apply or could not run, ``{"check", "why"}`` each.
        waived: Names of checks whose errors do not count.
        seconds: What each check cost.
        seen: How much each check looked at.
        quick: Whether checks of the model were left out.
    """

    findings: Sequence[Finding] = ()
    passed: Sequence[str] = ()
    skipped: Sequence[Mapping[str, str]] = ()
    waived: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    seen: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False

    @property
    def ok(self) -> bool:
        """Whether no error is left that is not waived."""
        return not any(f.severity == "error" and f.check not in self.waived for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``findings.json``."""
        return {
            "ok": self.ok,
            "findings": [asdict(finding) for finding in self.findings],
            "passed": list(self.passed),
            "skipped": [dict(skip) for skip in self.skipped],
            "waived": list(self.waived),
            "seconds": dict(self.seconds),
            "seen": dict(self.seen),
            "quick": self.quick,
        }


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
    for name in waived:
        registry.lookup("check", name, "recipe key check.waive")
    for name in only:
        registry.lookup("check", name, "--only")
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
    )
