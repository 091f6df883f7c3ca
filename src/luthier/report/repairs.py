"""Judged patches on the page: figures, candidates by rank or by round, and each bug with its fix, its candidates and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.report.safe import code, differences
from luthier.report.sections import label, number
from luthier.run_folder import RunFolder

_SIDES = ("tuned", "base", "given")
_IN_ROUNDS = ("tuned-rounds", "base-rounds", "server-rounds")
_RIGHT = {"passed": "hit"}


def view(
    run: RunFolder,
    load: Callable[[Path], Any],
    load_lines: Callable[[Path], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """What the page shows of each result in ``repair/``; empty where there is none.

    Args:
        run: The run's folder.
        load: Reads a JSON file, or gives None.
        load_lines: Reads the objects of a JSONL file.
    """
    shown = []
    for side in _SIDES:
        results = load(run.repair / side / "repair.json")
        if results is None:
            continue
        rows = load_lines(run.repair / side / "verdicts.jsonl")
        ranks = list(range(1, results["num_candidates"] + 1))
        shown.append(
            {
                "name": side,
                "num_bugs": results["num_bugs"],
                "num_judged": results["num_judged"],
                "left_out": [
                    (reason, len(names), ", ".join(names[:5]))
                    for reason, names in results["left_out"].items()
                ],
                "ranks": ranks,
                "verdicts": [
                    (name, counts) for name, counts in results["verdicts_by_rank"].items() if any(counts)
                ],
                "metrics": [
                    (label(name), number(one["value"], "share"), _interval(one))
                    for name, one in results["metrics"].items()
                ],
                "orders": [
                    (name, number(value, "share"))
                    for name, value in results["plausible_at_1_by_order"].items()
                    if value is not None
                ],
                "fences": ", ".join(results["fences"]),
                "bugs": _bugs(results["bugs"], rows),
            }
        )
    return shown


def view_rounds(
    run: RunFolder,
    load: Callable[[Path], Any],
    load_lines: Callable[[Path], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """What the page shows of each result in rounds in ``repair/``; arguments as of ``view``."""
    shown = []
    for side in _IN_ROUNDS:
        folder = run.repair / side
        results = load(folder / "rounds.json")
        if results is None:
            continue
        shown.append(
            {
                "name": side,
                "num_bugs": results["num_bugs"],
                "num_judged": results["num_judged"],
                "metrics": [
                    (name, number(one["value"], "share"), _interval(one))
                    for name, one in results["metrics"].items()
                ],
                "rounds": [
                    {**one, **{key: _counts(one[key]) for key in ("verdicts", "extraction")}}
                    for one in results["rounds"]
                ],
                "ends": [(reason, len(names)) for reason, names in results["ends"].items()],
                "bugs": [
                    _talk(name, bug, load_lines(folder / "conversations" / bug["file"]))
                    for name, bug in results["bugs"].items()
                ],
            }
        )
    return shown


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _talk(name: str, bug: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A bug with what was shown and written in each round, as far as its file goes."""
    written = [line for line in lines if "round" in line]
    judged = {line["judged"]: line["verdicts"] for line in lines if "judged" in line}
    return {
        "id": name,
        "path": bug["path"],
        "repaired": bug["repaired"],
        "end": bug["end"],
        "fix": differences(bug["fixed"], bug["buggy"]),
        "rounds": [
            {
                "number": line["round"],
                "prompt": code(line["prompt"]),
                "candidates": [
                    {
                        "verdict": said["verdict"],
                        "kind": _RIGHT.get(said["verdict"], "miss"),
                        "step": row["step"],
                        "patch": code(row["output"])
                        if row["function"] is None
                        else differences(row["function"], bug["buggy"]),
                    }
                    for row, said in zip(
                        line["candidates"], judged.get(line["round"], ()), strict=False
                    )  # one that is being judged has none yet
                ],
            }
            for line in written
        ],
    }


def _bugs(bugs: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    of: dict[str, list[Mapping[str, Any]]] = {name: [] for name in bugs}
    for row in rows:
        if row["bug"] in of:
            of[row["bug"]].append(row)
    return [
        {
            "id": name,
            "path": bug["path"],
            "repaired": bug["repaired"],
            "symptom": code(bug["symptom"]),
            "failing": ", ".join(bug["failing"]),
            "fix": differences(bug["fixed"], bug["buggy"]),
            "candidates": [_candidate(row, bug["buggy"]) for row in of[name]],
        }
        for name, bug in bugs.items()
    ]


def _candidate(row: Mapping[str, Any], buggy: str) -> dict[str, Any]:
    notes = [
        word
        for word, said in (("exact", row["exact"]), ("same tree", row["ast"] and not row["exact"]))
        if said
    ]
    if row["duplicate_of"] is not None:
        notes.append(f"as #{row['duplicate_of']}")
    return {
        "rank": row["rank"],
        "verdict": row["verdict"],
        "kind": _RIGHT.get(row["verdict"], "miss"),
        "notes": ", ".join(notes),
        "logprob": number(row["logprob"]),
        "failing": row["failing"],
        "message": code(row["message"]) if row["message"] else None,
        "patch": None if row["function"] is None else differences(row["function"], buggy),
    }


def _interval(one: Mapping[str, Any]) -> str:
    return "" if one["interval"] is None else " – ".join(number(end, "share") for end in one["interval"])
