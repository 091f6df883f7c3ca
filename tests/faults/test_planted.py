"""Every planted defect is caught by the check that is named for it, and no healthy set-up is called ill.

With ``LUTHIER_REGENERATE=1`` what was seen is written to ``results.json``, from which the table in the docs is made.
"""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from tests.faults import suite

suite.load()
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    pytest.mark.filterwarnings("default"),  # of other people's trainers
]
SEEN = Path(__file__).with_name("seen")


def numbers(text: str) -> list[float]:
    return [float(n.replace(",", "")) for n in re.findall(r"-?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", text)]


def holds(what: str, measured: Any) -> bool:
    """Whether a message names the measured value, as a number, a percentage or text."""
    if isinstance(measured, bool) or not isinstance(measured, int | float):
        return str(measured) in what
    if isinstance(measured, int):
        return measured in numbers(what)
    shown = [*numbers(what), *(n / 100 for n in numbers(what))]
    return any(
        math.isclose(n, measured, rel_tol=0.02, abs_tol=6e-3 if abs(measured) >= 0.05 else 1e-4)
        for n in shown
    )


def caught(fault: suite.Fault, said: dict[str, Any]) -> list[dict[str, Any]]:
    return [f for f in said["findings"] if f["check"] == fault.check and f["severity"] == fault.severity]


@pytest.mark.parametrize("fault", suite.FAULTS.values(), ids=lambda f: f.name)
def test_planted_defect_is_caught_by_its_check(fault: suite.Fault, tmp_path: Path) -> None:
    said = suite.as_dict(fault.plant(tmp_path))
    assert not [f for f in said["findings"] if "the check itself failed" in f["what"]], said["findings"]
    findings = caught(fault, said)
    assert findings, (
        json.dumps(said["findings"], indent=1) + f"\npassed: {said['passed']}\nskipped: {said['skipped']}"
    )
    for finding in findings:
        assert finding["where"] and finding["fix"]
        if finding["measured"] is not None:
            assert holds(finding["what"], finding["measured"]), finding
    others = {f["check"] for f in said["findings"] if f["severity"] != "note"} - {fault.check}
    seen = {"what": findings[0]["what"], "severity": findings[0]["severity"], "also": sorted(others)}
    note(f"fault-{fault.name}", seen)


@pytest.mark.parametrize("case", suite.HEALTHY.values(), ids=lambda c: c.name)
def test_healthy_set_up_is_left_alone(case: suite.Healthy, tmp_path: Path) -> None:
    said = suite.as_dict(case.make(tmp_path))
    bad = [f for f in said["findings"] if f["severity"] != "note"]
    assert [f for f in bad if f["severity"] == "error"] == []
    assert len(bad) <= 1, bad
    note(
        f"healthy-{case.name}",
        {"warnings": len(bad), "passed": len(said["passed"]), "skipped": len(said["skipped"])},
    )


def note(name: str, seen: dict[str, Any]) -> None:
    if os.environ.get("LUTHIER_REGENERATE"):
        SEEN.mkdir(exist_ok=True)
        (SEEN / f"{name}.json").write_text(json.dumps(seen))
