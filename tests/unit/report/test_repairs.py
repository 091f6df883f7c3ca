"""Judged patches on the page."""

import json
from pathlib import Path
from typing import Any

from luthier.recipe import Recipe
from luthier.report import page
from luthier.run_folder import RunFolder, write_json


def test_the_page_shows_fix_candidates_verdicts_and_messages(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    buggy, fixed = "def f(x):\n    return x - 1\n", "def f(x):\n    return x + 1\n"
    usual = {
        "bug": "shop-1",
        "exact": False,
        "ast": False,
        "duplicate_of": None,
        "logprob": -1.5,
        "failing": "",
        "message": "",
    }
    rows: list[dict[str, Any]] = [
        {
            **usual,
            "rank": 1,
            "verdict": "compile-error",
            "function": "def f(<",
            "message": "SyntaxError: <bad>",
        },
        {**usual, "rank": 2, "verdict": "passed", "function": fixed, "exact": True},
        {
            **usual,
            "rank": 3,
            "verdict": "test-failed",
            "function": None,
            "failing": "t::test_f",
            "duplicate_of": 1,
        },
    ]
    folder = run.repair / "tuned"
    write_json(
        folder / "repair.json",
        {
            "num_bugs": 2, "num_judged": 1, "left_out": {"flaky": ["shop-2"]}, "num_candidates": 3,
            "verdicts_by_rank": {"passed": [0, 1, 0], "timeout": [0, 0, 0]}, "fences": ["bubblewrap"],
            "plausible_at_1_by_order": {"score": 0.0, "tests": 1.0, "agreement": None},
            "metrics": {"plausible@3": {"value": 1.0, "interval": None}},
            "bugs": {
                f"shop-{n}": {"path": "a.py", "buggy": buggy, "fixed": fixed, "symptom": "AssertionError", "failing": ["t::test_f"], "repaired": True}
                for n in range(1, 31)
            },
        },
    )  # fmt: skip
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page.write(run, Recipe()).read_text()
    for words in ("1 of 2 bugs judged", "Left out, flaky: 1 (shop-2)", "bubblewrap", "shop-1", "✓ repaired", "SyntaxError: &lt;bad&gt;",
                  "fails t::test_f", "as #1", "AssertionError", 'href="#repairs"',
                  "order of the candidates", "All 30 bugs", "shop-30"):  # fmt: skip
        assert words in text, words
    assert "timeout" not in text.partition('id="repairs"')[2].partition("</section>")[0]
    assert 'id="repairs"' not in page.write(RunFolder(tmp_path / "other"), Recipe()).read_text()
