"""Several finished runs side by side, and how sure the differences between them are."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from luthier.display.text import plain
from luthier.errors import UserError, UserErrors
from luthier.records import Progress
from luthier.report import history, sections
from luthier.run_folder import RunFolder, read_json, read_jsonl

# From predictions, each with "base" and "tuned", to the content of scores.json (luthier.evaluate.significance.compare).
Paired = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]
Predictions = dict[str, dict[str, Any]]
"""Objects of ``predictions.jsonl`` by id."""
_BY_TOKEN = (
    "loss",
    "perplexity",
    "token_accuracy",
)  # what changes when the same text is cut into other tokens
_MOST_VALUES = 12  # of a field whose every value is a stratum
_NUM_LENGTHS = 4
_NUM_EXAMPLES = 5
_STYLES = {"better": "green", "worse": "red", "unclear": "dim", "untested": "dim"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side.

    Attributes:
        names: Folder of each run, in the order given.
        num_rows: Test rows of each run.
        facts: What the runs are, by name of the fact; one text a run.
        metrics: Entries of ``sections.metrics`` with their ``figures``, by name of the metric; one a run, none where a
            run lacks it.
        against_first: The same entries for run against first run on the same rows, by name of the metric; one
            for each run but the first, none where the pair could not be tested.
        strata: For each run but the first, the same entries on parts of the rows: by name of the field, then by its
            value; ``rows`` counts them.
        examples: For each run but the first, the rows where it wins or loses most.
        notes: Why a pair could not be tested.
    """

    names: list[str]
    num_rows: list[int]
    facts: dict[str, list[str]]
    metrics: dict[str, list[dict[str, Any] | None]]
    against_first: dict[str, list[dict[str, Any] | None]] = field(default_factory=dict)
    strata: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    examples: list[list[dict[str, Any]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(
    runs: Sequence[RunFolder],
    paired: Paired,
    by: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """The scores of several runs, and paired tests of each against the first.

    Args:
        runs: Two or more evaluated runs.
        paired: Makes scores with intervals of predictions.
        by: Fields whose values part the rows into strata: names of ``meta``, of its ``strata``, ``group`` or ``length``.
            By default ``length`` and all that have a few values.
        progress: Called with a label, how many tests of a pair are done, and of how many.

    Raises:
        UserError: Fewer than two runs, one that is not evaluated yet, or a field that the rows do not have.
    """
    if len(runs) < 2:
        raise UserError(
            f"{len(runs)} run given, but a comparison takes two or more",
            "command line",
            "name another run folder",
        )
    if missing := [_missing(run) for run in runs if not run.scores.is_file()]:
        raise UserErrors(missing)
    scores = [read_json(run.scores) for run in runs]
    entries = [_shown(score) for score in scores]
    names = list(dict.fromkeys(name for each in entries for name in each))
    result = Comparison(
        names=[str(run.path) for run in runs],
        num_rows=[score["num_rows"] for score in scores],
        facts=_facts(runs, scores),
        metrics={name: [each.get(name) for each in entries] for name in names},
    )
    predictions = [_predictions(run) for run in runs]
    tests: list[dict[str, dict[str, Any]]] = []
    for run, others in zip(runs[1:], predictions[1:], strict=True):
        problem = _unpaired(predictions[0], others)
        rows = [] if problem else _joined(predictions[0], others)
        if problem:
            result.notes.append(f"{run.path} is not tested against {runs[0].path}: {problem}")
        elif not _same_tokens(rows):
            result.notes.append(
                f"{run.path} has other tokens than {runs[0].path}, so figures per token do not compare: "
                "look at bits per byte"
            )
        strata = _strata(rows, by)
        parts = [rows, *(part for values in strata.values() for part in values.values())]
        entries_of = []
        for done, part in enumerate(parts):
            if progress is not None:
                progress(f"testing {run.path.name}", done, len(parts))
            entries_of.append(_entries(part, paired))
        tests.append(entries_of.pop(0))
        result.strata.append(
            {
                name: {
                    value: {"rows": len(part), "metrics": entries_of.pop(0)} for value, part in values.items()
                }
                for name, values in strata.items()
            }
        )
        result.examples.append(_examples(rows))
    result.against_first.update({name: [test.get(name) for test in tests] for name in names})
    return result


def _missing(run: RunFolder) -> UserError:
    """Why a folder cannot be compared: it is no run, or not evaluated."""
    if not run.recipe.is_file():
        return UserError(
            "there is no run in this folder", str(run.path), "name the folder of an evaluated run"
        )
    return UserError(
        "this run is not evaluated yet, so there is nothing to compare",
        str(run.scores),
        f"luthier evaluate {shlex.quote(str(run.path))}",
    )


def paired_scores(first: RunFolder, run: RunFolder, paired: Paired) -> tuple[Mapping[str, Any], str | None]:
    """Scores in the form of ``scores.json`` with the first run's tuned model as ``base``; or why there are none.

    Args:
        first: An evaluated run.
        run: Another one.
        paired: Makes scores with intervals of predictions.
    """
    of_first, of_run = _predictions(first), _predictions(run)
    if problem := _unpaired(of_first, of_run):
        return {"metrics": {}}, problem
    return _scores(_joined(of_first, of_run), paired), None


def _predictions(run: RunFolder) -> Predictions:
    return {row["id"]: row for row in read_jsonl(run.predictions)}


def _joined(first: Predictions, other: Predictions) -> list[dict[str, Any]]:
    """The bootstrap knows a base and a tuned model; here they are the tuned models of two runs."""
    return [{**row, "base": row["tuned"], "tuned": other[row_id]["tuned"]} for row_id, row in first.items()]


def _same_tokens(rows: Sequence[Mapping[str, Any]]) -> bool:
    return all(row["base"]["num_tokens"] == row["tuned"]["num_tokens"] for row in rows)


def _scores(rows: Sequence[Mapping[str, Any]], paired: Paired) -> Mapping[str, Any]:
    """What two runs score on the same rows; figures per token only where both have the same tokens."""
    scores = paired([{**row, "meta": {}} for row in rows])  # parts of the rows are found here, not there
    if _same_tokens(rows):
        return scores
    comparable = {name: entry for name, entry in scores["metrics"].items() if name not in _BY_TOKEN}
    return {**scores, "metrics": comparable}


def _entries(rows: Sequence[Mapping[str, Any]], paired: Paired) -> dict[str, dict[str, Any]]:
    """Entries of ``sections.metrics`` by name of the metric."""
    if not rows:
        return {}
    scores = _scores(rows, paired)
    tests = scores.get("mcnemar") or {}
    return {name: entry | {"mcnemar": tests.get(name)} for name, entry in _shown(scores).items()}


def _shown(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Entries of ``sections.metrics`` by name, each with its ``figures`` as numbers."""
    return {
        row["name"]: row | {"figures": scores["metrics"][row["name"]]} for row in sections.metrics(scores)
    }


def _unpaired(first: Predictions, other: Predictions) -> str | None:
    """Why two sets of predictions are not of the same rows; none if they are."""
    if not first or not other:
        return "predictions.jsonl is missing"
    if first.keys() != other.keys():
        shared = len(first.keys() & other.keys())
        alone = ", ".join(sorted(first.keys() ^ other.keys())[:3])
        return (
            f"of {len(first):,} and {len(other):,} test rows they share {shared:,}; not in both: {alone}, ..."
        )
    changed = [key for key in first if first[key]["target"] != other[key]["target"]]
    if changed:
        return f"{len(changed):,} rows have the same id but another target: {', '.join(changed[:3])}"
    scored = {
        frozenset((row["tuned"].get("scores") or {}).keys()) for row in (*first.values(), *other.values())
    }
    return "they were scored by other metrics" if len(scored) > 1 else None


def _strata(
    rows: Sequence[dict[str, Any]], by: Sequence[str] | None
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Parts of the rows, by field and value."""
    if not rows:
        return {}
    values = {"length": _lengths(rows), "group": [row["group"] for row in rows]}
    fields = [_fields(row["meta"]) for row in rows]
    for name in dict.fromkeys(name for each in fields for name in each):
        values[name] = [_value(each.get(name)) for each in fields]
    if by is None:
        by = [name for name, of_row in values.items() if 1 < len(set(of_row)) <= _MOST_VALUES]
    if unknown := [name for name in by if name not in values]:
        raise UserError(f"the rows have no field {unknown[0]!r}", "--by", f"one of: {', '.join(values)}")
    return {
        name: {
            value: [row for row, own in zip(rows, values[name], strict=True) if own == value]
            for value in sorted(set(values[name]))
        }
        for name in by
    }


def _fields(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a row is told apart by: its ``meta``, with the strata that its task names there in their place."""
    fields = {**meta, **meta.get("strata", {})}
    fields.pop("strata", None)
    return fields


def _value(value: Any) -> str:
    return value if isinstance(value, str) else "none" if value is None else f"{value}".lower()


def _lengths(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The quarter of the rows that each prompt's length falls into, named by its bounds in characters."""
    lengths = [len(row["prompt"]) for row in rows]
    edges = sorted(set(np.quantile(lengths, np.arange(1, _NUM_LENGTHS) / _NUM_LENGTHS).astype(int).tolist()))
    width = len(f"{max(lengths)}")
    bounds = [0, *edges, max(lengths)]
    names = [
        f"{low + (place > 0):{width}}-{high} characters" for place, (low, high) in enumerate(pairwise(bounds))
    ]
    return [names[min(int(np.searchsorted(edges, length)), len(names) - 1)] for length in lengths]


def _examples(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows where two models differ most: as many wins as losses of the second, none where they are equal.

    Differences are of generated text by its first metric, else of the loss in nats a byte; equal ones are ordered by a hash
    of the id, so that nobody picks them.
    """

    def gain(row: Mapping[str, Any]) -> float:
        base, tuned = ((row[side].get("scores") or {}) for side in ("base", "tuned"))
        if tuned:
            name = next(iter(tuned))
            return float(tuned[name]) - float(base[name])
        return float((row["base"]["loss_nats"] - row["tuned"]["loss_nats"]) / max(row["target_bytes"], 1))

    ordered = sorted(
        rows, key=lambda row: hashlib.sha256(row["id"].encode("utf-8", "surrogatepass")).digest()
    )
    ordered.sort(key=gain, reverse=True)
    wins = [row for row in ordered[:_NUM_EXAMPLES] if gain(row) > 0]
    losses = [row for row in ordered[::-1][:_NUM_EXAMPLES] if gain(row) < 0]
    return [{**row, "gain": gain(row)} for row in (*wins, *losses)]


def _facts(runs: Sequence[RunFolder], scores: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    facts: dict[str, list[str]] = {"test rows": [f"{score['num_rows']:,}" for score in scores]}
    for run in runs:
        past = history.read(run)
        key = history.key_figures(past)
        facts.setdefault("best validation loss", []).append(sections.number(key.eval_best, "nats"))
        facts.setdefault("steps", []).append("–" if key.last_step is None else f"{key.last_step:,}")
        facts.setdefault("tokens", []).append(sections.short(key.tokens))
        facts.setdefault("training time", []).append(sections.duration(key.seconds))
        facts.setdefault("training tokens/s", []).append(sections.short(key.tokens_per_s))
        peak = "–" if key.peak_memory_gib is None else f"{key.peak_memory_gib:.2f} GiB"
        facts.setdefault("peak memory", []).append(peak)
        known = read_json(run.environment) if run.environment.is_file() else {}
        for name, entry in (("parameters", "parameters"), ("of them trained", "trained_parameters")):
            facts.setdefault(name, []).append(sections.short(known.get(entry)))
    for which in ("base", "tuned"):
        seconds = [score.get("seconds", {}).get(which) for score in scores]
        facts[f"evaluating {which}"] = [sections.duration(value) for value in seconds]
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
    said = lead + Text(change + "\n") + Text(verdict, style=_STYLES[entry["verdict"]])
    if test := entry.get("mcnemar"):
        said += Text(
            f"\n+{test['only_tuned']:,} −{test['only_base']:,} rows, McNemar p = {test['p_value']:.2g}"
        )
    return said
