"""The section of the page that shows an ontology: predicted against true, its scores, the sweep, frequent against rare edges."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from luthier.display.text import plain
from luthier.report.history import finite
from luthier.report.safe import json_for_script
from luthier.run_folder import RunFolder, read_json

_HERE = Path(__file__).parent
_MOST_DOCUMENTS = 12
_RIGHT, _WRONG, _MISSING = 0, 1, 2
_METRICS = (
    ("literal", "Literal F1"),
    ("fuzzy", "Fuzzy F1"),
    ("continuous", "Continuous F1"),
    ("graph", "Graph F1"),
    ("motif", "Motif distance"),
)
_KINDS = (
    ("head", "head: more often than the mean"),
    ("tail", "tail: rarer"),
    ("unseen", "never in training"),
)


def view(run: RunFolder) -> dict[str, Any] | None:
    """What the template shows; None where no ontology was scored.

    Raises:
        UserError: A file of it is missing or damaged.
    """
    if not (run.ontology / "scores.json").is_file():
        return None
    scores = read_json(run.ontology / "scores.json")
    predicted = read_json(run.ontology / "tuned" / "ontology.json")
    truth = read_json(run.ontology / "truth.json")
    sweep_file = run.ontology / "tuned-sweep.json"
    graph = _graph(predicted, truth)
    script = (_HERE / "ontology.js").read_text(encoding="utf-8")
    counts = [sum(edge[2] == status for edge in graph["edges"]) for status in (_RIGHT, _WRONG, _MISSING)]
    return {
        "systems": [_system(name, judged) for name, judged in scores["systems"].items()],
        "metrics": [label for _, label in _METRICS],
        "measured": f"titles compared by {scores['embedding_model']} ({scores['embedding_sha256'][:12]}), "
        f"threshold {scores['threshold']}, {scores['num_convolutions']} convolutions",
        "tuned": scores["systems"]["tuned"],
        "truth": scores["truth"],
        "overlap": scores["overlap"],
        "kinds": _kinds(scores),
        "masks": scores["masks"],
        "counts": dict(zip(("right", "wrong", "missing"), counts, strict=True)),
        "sweep": _sweep(read_json(sweep_file, list)) if sweep_file.is_file() else None,
        "graph": json_for_script(graph),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _graph(predicted: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Any]:
    """Both graphs as one over titles: ``titles``, and ``edges`` as [parent, child, status, weight, log-probability, documents, attached]."""
    places: dict[str, int] = {}
    edges: dict[tuple[int, int], list[Any]] = {}

    def add(graph: Mapping[str, Any], status: int) -> None:
        titles = {node["id"]: node["title"] for node in graph["nodes"]}
        places.setdefault(titles[graph["graph"]["root"]], len(places))
        for link in graph["links"]:
            pair = tuple(places.setdefault(titles[link[end]], len(places)) for end in ("source", "target"))
            u, v = pair
            if (u, v) in edges:
                if edges[u, v][2] == _WRONG and status == _MISSING:
                    edges[u, v][2] = _RIGHT
                continue
            documents = [plain(str(name)[:80]) for name in link["documents"][:_MOST_DOCUMENTS]]
            log = finite(link["log_probability"])
            edges[u, v] = [u, v, status, link["weight"], log, documents, int(link["attached"])]

    add(predicted, _WRONG)
    add(truth, _MISSING)
    return {"titles": list(map(plain, places)), "edges": list(edges.values())}


def _system(name: str, judged: Mapping[str, Any]) -> dict[str, Any]:
    values = []
    for metric, _ in _METRICS:
        entry = judged["scores"][metric]
        bounds = entry.get("f1_bounds")
        shown = f"{entry['f1'] if 'f1' in entry else entry['distance']:.3f}"
        values.append(shown if not bounds else f"{bounds[0]:.3f} to {bounds[1]:.3f}")
    return {
        "name": name,
        "values": values,
        "alpha": judged["alpha"],
        "beta": judged["beta"],
        "num_nodes": judged["pruned"]["num_nodes"],
        "num_edges": judged["pruned"]["num_edges"],
    }


def _kinds(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Frequent, rare and unseen edges: losses of both models, and how many were found."""
    rows = []
    for kind, label in _KINDS:
        losses = {which: scores["edge_losses"]["test"][which].get(kind, {}) for which in ("base", "tuned")}
        found = scores["systems"]["tuned"]["recall_by_count"][kind]
        rows.append(
            {
                "label": label,
                "num": losses["tuned"].get("num_edges", 0),
                "base": losses["base"].get("nats"),
                "tuned": losses["tuned"].get("nats"),
                "train": scores["edge_losses"]["train"]["tuned"].get(kind, {}).get("nats"),
                "accuracy": losses["tuned"].get("accuracy"),
                "num_true": found["num_edges"],
                "recall": found["recall"],
            }
        )
    return rows


def _sweep(points: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The heat map: cells with place, strength in [0, 1] and what they say; alpha from top to bottom, beta from left to right."""
    values = [point["continuous_f1"] for point in points]
    low, high = min(values), max(values)
    size = round(len(points) ** 0.5)
    best = values.index(high)
    cells = [
        {
            "x": place % size,
            "y": place // size,
            "strength": round((value - low) / (high - low), 3) if high > low else 0.5,
            "says": f"alpha {points[place]['alpha']:.4f}, beta {points[place]['beta']:.3f}: {value:.4f}",
            "best": place == best,
        }
        for place, value in enumerate(values)
    ]
    return {"cells": cells, "size": size, "low": low, "high": high, "best": cells[best]["says"]}
