"""Runs every check, writes ``findings.json`` and keeps the gate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from luthier import registry
from luthier.check.context import CheckContext, Skip
from luthier.errors import UserError
from luthier.records import Finding
from luthier.run_folder import write_json

Progress = Callable[[str, int, int | None], None]


def check(context: CheckContext, progress: Progress | None = None) -> dict[str, Any]:
    """The content of ``findings.json``, written: ``ok``, ``findings``, ``passed``, ``skipped``, ``waived``, ``seconds``.

    ``ok`` is whether no error is left that the recipe does not waive by name. A check that could not run is listed as
    skipped with the reason, never silently absent.

    Raises:
        UserError: ``check.waive`` names a check that does not exist.
    """
    checks = registry.registered("check")
    waived = context.recipe.check.waive
    for name in waived:
        registry.lookup("check", name, "recipe key check.waive")
    findings: list[Finding] = []
    passed: list[str] = []
    skipped: list[dict[str, str]] = []
    seconds: dict[str, float] = {}
    for number, (name, function) in enumerate(checks.items()):
        if progress:
            progress(name, number, len(checks))
        began = time.perf_counter()
        try:
            found = list(function(context))
        except Skip as why:
            skipped.append({"check": name, "why": str(why)})
        except UserError as error:
            findings.append(Finding(name, "error", error.what, error.where, error.fix))
        else:
            findings += found
            if not found:
                passed.append(name)
        seconds[name] = round(time.perf_counter() - began, 3)
    order = {"error": 0, "warning": 1, "note": 2}
    result = {
        "ok": not any(f.severity == "error" and f.check not in waived for f in findings),
        "findings": [asdict(finding) for finding in sorted(findings, key=lambda f: order[f.severity])],
        "passed": passed,
        "skipped": skipped,
        "waived": sorted({f.check for f in findings if f.severity == "error"} & set(waived)),
        "seconds": seconds,
    }
    write_json(context.run.findings, result)
    return result
