"""Several finished runs side by side, and how sure the differences between them are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from luthier.display.text import plain
from luthier.errors import UserError
from luthier.report import history, sections
from luthier.run_folder import RunFolder, read_json, read_jsonl

# From predictions, each with "base" and "tuned", to the content of scores.json (luthier.evaluate.significance.compare).
Paired = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]
_STYLES = {"better": "green", "worse": "red", "unclear": "dim", "untested": "dim"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side.

    Attributes:
        names: Folder of each run, in the order given.
        facts: What the runs are, by name of the fact; one text a run.
        metrics: Entries of ``sections.metrics``, by name of the metric; one a run, none where a run lacks it.
        against_first: The same entries for run against first run on the same rows, by name of the metric; one
            for each run but the first, none where the pair could not be tested.
        notes: Why a pair could not be tested.
    """

    names: list[str]
    facts: dict[str, list[str]]
    metrics: dict[str, list[dict[str, Any] | None]]
    against_first: dict[str, list[dict[str, Any] | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def compare(runs: Sequence[RunFolder], paired: Paired | None = None) -> Comparison:
    """The scores of several runs, and paired tests of each against the first.

    Args:
        runs: Two or more evaluated runs.
        paired: Makes scores with intervals of predictions; without it nothing is tested between runs.

    Raises:
        UserError: Fewer than two runs, or one that is not evaluated yet.
    """
    if len(runs) < 2:
        raise UserError(
            f"{len(runs)} run given, but a comparison takes two or more",
            "command line",
            "name another run folder",
        )
    scores = [read_json(run.scores) for run in runs]
    entries = [{row["name"]: row for row in sections.metrics(score)} for score in scores]
    names = list(dict.fromkeys(name for each in entries for name in each))
    result = Comparison(
        names=[str(run.path) for run in runs],
        facts=_facts(runs, scores),
        metrics={name: [each.get(name) for each in entries] for name in names},
    )
    if paired is None:
        return result
    tests: list[dict[str, dict[str, Any]]] = []
    for run in runs[1:]:
        tested, problem = paired_scores(runs[0], run, paired)
        if problem:
            result.notes.append(f"{run.path} is not tested against {runs[0].path}: {problem}")
        tests.append({row["name"]: row for row in sections.metrics(tested)})
    result.against_first.update({name: [test.get(name) for test in tests] for name in names})
    return result


def paired_scores(first: RunFolder, run: RunFolder, paired: Paired) -> tuple[Mapping[str, Any], str | None]:
    """Scores in the form of ``scores.json`` with the first run's tuned model as ``base``; or why there are none.

    Args:
        first: An evaluated run.
        run: Another one.
        paired: Makes scores with intervals of predictions.
    """
    of_first, of_run = ({row["id"]: row for row in read_jsonl(each.predictions)} for each in (first, run))
    problem = _unpaired(of_first, of_run)
    if problem:
        return {"metrics": {}}, problem
    # The bootstrap knows a base and a tuned model; here they are the tuned models of two runs.
    rows = [
        {**row, "base": row["tuned"], "tuned": of_run[row_id]["tuned"]} for row_id, row in of_first.items()
    ]
    return paired(rows), None


def _unpaired(first: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Why two sets of predictions are not of the same rows; none if they are."""
    if not first or not other:
        return "predictions.jsonl is missing"
    if first.keys() != other.keys():
        shared = len(first.keys() & other.keys())
        return f"of {len(first):,} and {len(other):,} test rows they share {shared:,}"
    changed = sum(first[key]["target"] != other[key]["target"] for key in first)
    if changed:
        return f"{changed:,} rows have the same id but another target"
    scored = {
        frozenset((row["tuned"].get("scores") or {}).keys()) for row in (*first.values(), *other.values())
    }
    return "they were scored by other metrics" if len(scored) > 1 else None


def _facts(runs: Sequence[RunFolder], scores: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    facts: dict[str, list[str]] = {"test rows": [f"{score['num_rows']:,}" for score in scores]}
    for run in runs:
        past = history.read(run)
        key = history.key_figures(past, history.smooth(past.series("loss"), 21))
        facts.setdefault("best validation loss", []).append(sections.number(key.eval_best, "nats"))
        facts.setdefault("steps", []).append("–" if key.last_step is None else f"{key.last_step:,}")
        facts.setdefault("tokens", []).append(sections.short(key.tokens))
        facts.setdefault("training time", []).append(sections.duration(key.seconds))
    return facts


def tables(comparison: Comparison) -> list[Table]:
    """The comparison for the terminal: scores against each run's own base, then each run against the first."""
    scores = Table(title="Tuned models, and the gain over their base (95% interval)", title_justify="left")
    scores.add_column("")
    for name in comparison.names:
        scores.add_column(Text(plain(name)), justify="right")
    for entries in comparison.metrics.values():
        label = next(entry["label"] for entry in entries if entry)
        scores.add_row(Text(plain(label)), *(cell(entry, value=True) for entry in entries))
    scores.add_section()
    for fact, values in comparison.facts.items():
        scores.add_row(Text(fact, style="dim"), *(Text(value, style="dim") for value in values))
    if not any(entry for entries in comparison.against_first.values() for entry in entries):
        return [scores]
    differences = Table(
        title=Text(f"Against {plain(comparison.names[0])}, on the same rows"), title_justify="left"
    )
    differences.add_column("")
    for name in comparison.names[1:]:
        differences.add_column(Text(plain(name)), justify="right")
    for name, entries in comparison.against_first.items():
        label = next((entry["label"] for entry in entries if entry), sections.label(name))
        differences.add_row(Text(plain(label)), *(cell(entry, value=False) for entry in entries))
    return [scores, differences]


def cell(entry: Mapping[str, Any] | None, *, value: bool) -> Text:
    """An entry of ``sections.metrics`` as difference, interval and verdict, with the value before them if wanted."""
    if entry is None:
        return Text("–", style="dim")
    verdict = {
        "better": "better",
        "worse": "worse",
        "unclear": "no clear difference",
        "untested": "not tested",
    }[entry["verdict"]]
    change = (
        f"{entry['difference']} ({entry['interval']})"
        if entry["interval"]
        else f"{entry['difference']} (no interval)"
    )
    lead = Text(entry["tuned"] + "\n", style="bold") if value else Text("")
    return lead + Text(change + "\n") + Text(verdict, style=_STYLES[entry["verdict"]])
