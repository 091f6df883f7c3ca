"""The study of the masked loss as a page of the documentation, from results.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
METRICS = {
    "literal": "Literal F1",
    "fuzzy": "Fuzzy F1",
    "continuous": "Continuous F1",
    "graph": "Graph F1",
    "motif": "Motif distance",
}
CLAIM = ("fuzzy", "continuous", "graph")


def page() -> str:
    """Tables of all metrics with spread, of losses by frequency, and what became of the claim."""
    lines = [
        "# Masked loss",
        "",
        "The claim of Lo et al. (2024): trained with frequent edges masked in proportion, a model writes a better ontology of concepts that",
        "it has never seen than one trained with the plain loss, by Fuzzy, Continuous and Graph F1. Tried on WordNet's artifacts with the",
        "embedded model: `python studies/masked-loss/run.py`.",
    ]
    if not RESULTS.is_file():
        return "\n".join([*lines, "", "It was not run yet."]) + "\n"
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines += [
        "",
        "| | " + " | ".join(METRICS.values()) + " |",
        "|---|" + "--:|" * len(METRICS),
        *(
            f"| {name} | " + " | ".join(shown(scores[metric]) for metric in METRICS) + " |"
            for name, scores in results["systems"].items()
        ),
        "",
        "Mean ± standard deviation over seeds; lower is better for the motif distance. "
        + claim(results["systems"]),
        "",
        "## Frequent and rare edges",
        "",
        "Loss of a whole node in nats given the true path before it, by how often training has seen the edge: seen ones on training",
        "documents, others on test documents; in brackets the share of nodes whose tokens are all the most likely ones.",
        "",
        "| | more often than the mean | rarer | never (test) |",
        "|---|--:|--:|--:|",
    ]
    for loss, kinds in results["edge_losses"].items():
        cells = [
            f"{shown(kinds[kind]['nats'], 2)} ({kinds[kind]['accuracy']['mean']:.0%})"
            if kind in kinds
            else "–"
            for kind in ("head", "tail", "unseen")
        ]
        lines.append(f"| {loss} | " + " | ".join(cells) + " |")
    truth = results["truth"]["test"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines += [
        "",
        f"The true graph of the test documents has {truth['num_nodes']:,} nodes and {truth['num_edges']:,} edges, of which training has seen "
        f"{results['overlap']['nodes']:.0%} and {results['overlap']['edges']:.0%}. The masks left out {results['mask_share']['mean']:.0%} of the "
        f"nodes. {results['notes']} Which top-level nodes are for training, validation and test is the same for all seeds (part seed "
        f"{results['settings']['part_seed']}), so that the spread says nothing of other parts of the graph. {results['date']}, {versions}.",
    ]
    return "\n".join(lines) + "\n"


def shown(entry: dict[str, Any], digits: int = 3) -> str:
    """Mean and spread."""
    spread = entry["standard_deviation"]
    return f"{entry['mean']:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def claim(systems: dict[str, Any]) -> str:
    """By which of the three metrics the masked loss was ahead, on the mean and in every seed."""
    parts = []
    for metric in CLAIM:
        masked, plain = systems["masked"][metric], systems["plain"][metric]
        ahead = sum(m > p for m, p in zip(masked["values"], plain["values"], strict=True))
        difference = masked["mean"] - plain["mean"]
        verb = "ahead" if difference > 0 else "behind" if difference < 0 else "level"
        parts.append(f"{METRICS[metric]} {verb} ({ahead} of {len(plain['values'])} seeds ahead)")
    return "Masked against plain loss: " + ", ".join(parts) + "."
