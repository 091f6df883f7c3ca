"""Orders of candidates, and what stands first in them."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.encoding.repair import place_of
from luthier.errors import UserError
from luthier.evaluate.candidates import Asked, chosen
from luthier.evaluate.patches import compare_repairs, given_candidates, judge_candidates, summary
from luthier.execution.bugs import Bug
from luthier.models.search import Continuation
from luthier.recipe import Recipe, Repair
from luthier.run_folder import write_json
from luthier.tasks import repair

BUGGY, FIXED = "def f(x):\n    return x - 1\n", "def f(x):\n    return x + 1\n"


def asked() -> Asked:
    tests = {"type": "asserts", "code": "assert f(1) == 2"}
    bug = Bug("b", "g", "python", "a.py", BUGGY.encode(), 0, len(BUGGY), FIXED, tests, "", {"a.py": BUGGY})
    return Asked(bug, place_of(BUGGY, FIXED)[0], FIXED, [1], 0)


def recipe(**changes: Any) -> Recipe:
    return Recipe(repair=Repair(refill=False, timeout_s=30, num_workers=1, **changes))


def written(*texts: str) -> list[Continuation]:
    return [Continuation([1], text, -1.0 - place, 3, -1.0 - place, True) for place, text in enumerate(texts)]


def test_outputs_that_give_no_function_agree_with_nothing() -> None:
    task = repair.Repair(input="IR1", output="OR4")
    good = "@@ -1,2 +1,2 @@\n def f(x):\n-    return x - 1\n+    return x + 1\n"
    rows = chosen(asked(), written("no", "nor this", good), task, recipe(num_candidates=3))
    assert [(row["function"] is None, row["agreement"]) for row in rows] == [(True, 0), (True, 0), (False, 1)]
    judged = [
        {**row, "bug": "b", "rank": rank, "written_rank": rank, "exact": False, "ast": False, "fence": "", "compiled": row["function"] is not None,
         "verdict": "not-judged" if row["function"] is None else "passed"}
        for rank, row in enumerate(rows, 1)
    ]  # fmt: skip
    found = summary(judged, {"b": "g"}, [], recipe(num_candidates=3))
    assert found["plausible_at_1_by_order"] == {"score": 0, "mean-logprob": 0, "agreement": 1, "tests": 1}


def test_ranked_by_tests_what_passes_comes_first_and_duplicates_name_it(tmp_path: Path) -> None:
    functions = ["def f(x):\n    return (\n", "def f(x):\n    return 0\n", FIXED, FIXED + "\n"]
    given = tmp_path / "given.jsonl"
    given.write_text(
        "".join(f'{{"bug": "b", "function": {text!r}}}\n'.replace("'", '"') for text in functions)
    )
    tables, ranks = [], []
    for order in ("score", "tests"):
        settings = recipe(num_candidates=4, rank_by=order)
        candidates = given_candidates(given, [asked()], settings)
        found = judge_candidates([asked()], [], candidates, settings, tmp_path / order, tmp_path / "memory")
        tables.append(found["table"]["b"])
        ranks.append([found["metrics"][f"plausible@{k}"]["value"] for k in (1, 3)])
        assert found["metrics"]["distinct_rate"]["value"] == 0.75
        # Equal ones stay in the order in which they were written: that of the tests would tell the answer.
        assert found["plausible_at_1_by_order"] | {"agreement": None} == {
            "score": 0, "mean-logprob": 0, "agreement": None, "tests": 1
        }  # fmt: skip
    assert tables == [
        ["compile-error", "test-failed", "passed", "passed"],
        ["passed", "passed", "test-failed", "compile-error"],
    ]
    assert ranks == [[0, 1], [1, 1]]
    assert recipe(rank_by="tests").repair.written_order == "score"


def test_given_candidates_are_all_counted_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, settings = tmp_path / "given.jsonl", recipe(num_candidates=2)
    line = {"bug": "b", "function": FIXED}
    lines = [line, {**line, "bug": "other"}, {**line, "function": None, "logprob": -2, "score": 0.5}, line]
    path.write_text("\n".join(map(json.dumps, lines[:3])))  # the last line has no end
    first, second = given_candidates(path, [asked()], settings)["b"]
    assert first["score"] == -1 and (second["function"], second["logprob"], second["score"]) == (
        None,
        -2,
        0.5,
    )
    assert "1 candidates left out: of bugs that are not asked about" in caplog.text
    path.write_text("\n".join(map(json.dumps, lines)))
    given_candidates(path, [asked()], settings)
    assert "1 candidates left out: more than repair.num_candidates" in caplog.text
    for text, words in (
        ('{"bug": 3}', "bug: "), ("[]", "given.jsonl:1"), ("{", "given.jsonl:1"),
        ('{"bug": "b", "function": 3}', "function: "), ('{"bug": "b", "logprob": "x"}', "logprob: "),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            given_candidates(path, [asked()], settings)
    with pytest.raises(UserError, match="cannot be read"):
        given_candidates(tmp_path / "nowhere.jsonl", [asked()], settings)


def test_two_results_are_compared_on_the_bugs_that_both_judged(tmp_path: Path) -> None:
    tables = {
        "one": {
            "both": ["timeout", "passed"],
            "x": ["passed"],
            "y": ["timeout"],
            "neither": [],
            "z": ["passed"],
        },
        "other": {"both": ["passed"], "x": [], "y": ["passed"], "neither": ["timeout"], "u": ["passed"]},
    }
    for name, table in tables.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "repair.json", {"table": table})
    found = compare_repairs(tmp_path / "one", tmp_path / "other")
    assert found == {
        "num_bugs": 4, "not_in_both": ["u", "z"], "common": ["both"], "only_first": ["x"], "only_second": ["y"],
        "mcnemar": {"only_first": 1, "only_second": 1, "p_value": 1.0},
    }  # fmt: skip
