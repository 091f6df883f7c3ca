"""Every entry of the catalogue of silent failures is planted, prevented by a test that is there, or said to be out of reach."""

import json
import re
from pathlib import Path

from tests.faults import catalogue, suite

from luthier import registry

suite.load()
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLANTED = {number for fault in suite.FAULTS.values() for number in fault.catalogue}


def test_every_entry_is_accounted_for() -> None:
    known = PLANTED | catalogue.PREVENTED.keys() | catalogue.OUT_OF_REACH.keys()
    assert sorted(catalogue.ENTRIES) == list(range(1, 83))
    assert sorted(catalogue.ENTRIES.keys() - known) == []
    assert not PLANTED & catalogue.OUT_OF_REACH.keys()
    assert all((ROOT / test).is_file() for _, test in catalogue.PREVENTED.values())


def test_the_suite_is_as_large_as_it_says() -> None:
    assert len(suite.FAULTS) >= 60
    assert len(suite.HEALTHY) >= 15


def test_every_check_has_a_planted_defect_or_a_direct_test() -> None:
    built_in = {
        name
        for name, entry in registry.registered("check").items()
        if entry.__module__.startswith("luthier.")
    }
    direct = re.findall(r'\b(?:only|found)\(.*?"([a-z-]+)"', (HERE / "test_checks.py").read_text())
    tested = {fault.check for fault in suite.FAULTS.values()}.union(direct)
    assert sorted(built_in - tested) == []


def test_results_are_those_of_this_suite() -> None:
    results = json.loads((HERE / "results.json").read_text())
    keys = ("name", "check", "severity", "where", "how")
    known = {tuple(getattr(fault, key) for key in keys) for fault in suite.FAULTS.values()}
    assert {tuple(fault[key] for key in keys) for fault in results["faults"]} == known, "run make faults"
    assert {case["name"] for case in results["healthy"]} == suite.HEALTHY.keys(), "run make faults"
