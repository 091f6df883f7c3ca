"""What every benchmark and study leaves behind has one form."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOUND = sorted([*Path("benchmarks").glob("*/results.json"), *Path("studies").glob("*/results.json")])


def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_results", "benchmarks/results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.parent.name)
def test_every_results_file_has_the_form(path: Path) -> None:
    content = json.loads(path.read_text())
    assert {"figures", "command", "versions", "date", "notes"} <= content.keys()
    wrong = [name for name, value in content["figures"].items() if not results().is_figure(value)]
    assert content["figures"] and not wrong


def test_names_are_joined_and_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    tree = {"a": {"b": 1, "c": None}, "d": [0.5, 0.4, 0.6]}
    results().write(path, tree, command="x", packages=["pytest"], notes="y", more=[1])
    content = json.loads(path.read_text())
    assert content["figures"] == {"a/b": 1, "d": [0.5, 0.4, 0.6]} and content["more"] == [1]
    assert content["versions"]["pytest"] == pytest.__version__


@pytest.mark.parametrize("value", ["1", True, [1, 2], [1, 2, None], float("nan")])
def test_what_is_no_figure_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="a/b"):
        results().flat({"a": {"b": value}})
