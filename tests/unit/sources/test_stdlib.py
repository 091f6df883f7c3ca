"""The standard library of the interpreter that runs the tests."""

from __future__ import annotations

import ast
import inspect
import json.decoder

from luthier import registry
from luthier.records import Dropped, Record
from luthier.sources.stdlib import Stdlib


def test_the_library_without_tests_and_installed_packages() -> None:
    everything = list(Stdlib().records())
    records = {r.id: r for r in everything if isinstance(r, Record)}
    assert records["json/decoder.py"].fields["text"] == inspect.getsource(json.decoder)
    assert records["json/decoder.py"].group == "json"
    assert records["ast.py"].group == "ast.py" and records["ast.py"].fields["text"] == inspect.getsource(ast)
    assert len(records) > 400
    parts = {part for name in records for part in name.split("/")}
    assert not parts & {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    assert not any(r.budgeted for r in everything if isinstance(r, Dropped))  # nothing in it is broken


def test_tests_on_demand_and_further_excludes() -> None:
    names = {r.id for r in Stdlib(include_tests=True, exclude=["email/**"]).records()}
    plain = {r.id for r in Stdlib().records()}
    assert {n for n in plain if not n.startswith("email/")} <= names
    assert not any(name.startswith("email/") for name in names)


def test_it_is_registered_with_the_others() -> None:
    assert set(registry.registered("source")) >= {"files", "code", "stdlib"}
