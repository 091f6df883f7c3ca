"""The standard library of the interpreter that runs the tests."""

from __future__ import annotations

import ast
import inspect
import json.decoder
from pathlib import Path

import pytest

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


def test_tests_on_demand_and_further_excludes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = ["json/tests/x.py", "test/y.py", "idlelib/idle_test/z.py", "test_it.py"]
    for name in ("os.py", "email/a.py", "site-packages/w.py", *tests):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert {r.id for r in Stdlib().records()} == {"os.py", "email/a.py"}
    found = {r.id for r in Stdlib(include_tests=True, exclude=["email/**"]).records()}
    assert found == {"os.py", *tests}
