import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.fixtures.synthetic_run import write_run

from luthier.errors import UserError
from luthier.report import compare
from luthier.run_folder import RunFolder, read_jsonl, write_text


def paired(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stands in for the bootstrap: means, and an interval of a fixed width."""
    base, tuned = (
        sum(row[side]["scores"]["exact_match"] for row in rows) / len(rows) for side in ("base", "tuned")
    )
    entry = {
        "base": base,
        "tuned": tuned,
        "difference": tuned - base,
        "interval": [tuned - base - 0.01, tuned - base + 0.01],
    }
    return {"metrics": {"exact_match": {**entry, "better": "higher", "unit": "share"}}}


def change(run: RunFolder, **values: Any) -> None:
    rows = read_jsonl(run.predictions)
    for row in rows:
        row.update({name: value(row) for name, value in values.items()})
    write_text(run.predictions, "".join(json.dumps(row) + "\n" for row in rows))


def printed(comparison: compare.Comparison) -> str:
    console = Console(file=io.StringIO(), width=120)
    for table in compare.tables(comparison):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_tuned_models_of_two_runs_are_paired(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "[b]"), write_run(tmp_path / "b")
    change(second, tuned=lambda row: row["tuned"] | {"scores": {"exact_match": 1.0, "edit_similarity": 1.0}})
    result = compare.compare([first, second], paired)
    [entry] = result.against_first["exact_match"]
    assert entry is not None and entry["tuned"] == "100.0%" and entry["verdict"] == "better"
    assert result.metrics["loss"][0] is not None and result.notes == []
    text = printed(result)
    assert "[b]" in text and "Exact match" in text and "better" in text


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"id": lambda row: row["id"] + "x"}, "they share 0"), ({"target": lambda row: "other"}, "another target"),
     ({"tuned": lambda row: row["tuned"] | {"scores": {"bleu": 1.0}}}, "other metrics")],
)  # fmt: skip
def test_other_rows_are_shown_but_not_tested(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    change(second, **changed)
    result = compare.compare([first, second], paired)
    assert why in result.notes[0] and result.against_first["exact_match"] == [None]
    assert "Against" not in printed(result)


def test_one_run_or_one_without_scores_is_the_users_mistake(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with pytest.raises(UserError, match="two or more"):
        compare.compare([run])
    with pytest.raises(UserError, match=r"scores\.json is not there yet"):
        compare.compare([run, write_run(tmp_path / "b", stage="train")])
