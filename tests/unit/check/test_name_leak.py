"""The check that says what names give away."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.juliet import write_juliet

from luthier.check.checks.name_leak import name_leak
from luthier.check.context import RunContext, Skip
from luthier.recipe import validate
from luthier.records import Finding
from luthier.run_folder import RunFolder


def findings(source: dict[str, Any]) -> list[Finding]:
    recipe = validate({"data": {"source": source}})
    return list(name_leak(RunContext(recipe, RunFolder("none"))))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_juliet(tmp_path_factory.mktemp("juliet"), variants=1))


def test_cleaned_names_are_a_note_with_both_figures(tree: str) -> None:
    (cleaned,) = findings({"type": "juliet", "path": tree})
    assert cleaned.severity == "note" and abs(cleaned.measured - 0.5) < 0.15
    assert "100.0%" in cleaned.what and "chance is 50%" in cleaned.what


def test_names_of_libraries_that_tell_are_a_warning(tmp_path: Path) -> None:
    rows = [
        {
            "cwe": "cwe-78",
            "before": f"def f(a):\n    return run(a, {i})\n",
            "after": f"def f(a):\n    return quoted(a, {i})\n",
        }
        for i in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"type": "cwe-pairs", "path": str(tmp_path / "rows.jsonl"), "before": "before", "after": "after",
              "language": "python", "group_column": None}  # fmt: skip
    (found,) = findings(source)
    assert found.severity == "warning" and "names=all" in found.fix
    (found,) = findings({**source, "names": "all"})
    assert found.severity == "note"


def test_other_sources_are_left_alone() -> None:
    with pytest.raises(Skip, match="does not say which code is vulnerable"):
        findings({"type": "stdlib"})
