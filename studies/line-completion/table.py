"""The documentation's page about the study, from ``results.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
CURVES = Path(__file__).resolve().parents[2] / "docs" / "images" / "line_completion_curves.png"
MODELS = {
    "bigs": "BiGS, causal",
    "mamba2": "Mamba-2",
    "transformer": "Transformer",
    "embedded": "embedded model, LoRA",
    "bigs-naive": "BiGS, rows cut off at the right",
}
# Metric -> title, whether it is a share.
METRICS = {
    "codexglue_exact_match": ("Exact match", True),
    "codexglue_edit_similarity": ("Edit similarity", True),
    "bits_per_byte": ("Bits per byte", False),
    "loss": ("Loss, nats a token", False),
    "perplexity": ("Perplexity", False),
    "token_accuracy": ("Token accuracy", True),
}
INTRODUCTION = """\
# Line completion: BiGS, Mamba-2 and a Transformer

Two state-space models and a Transformer of about the same size, pretrained on the same code with fill-in-the-middle and tuned to complete lines. One command, in resumable
parts of at most 45 minutes:

```
python studies/line-completion/run.py
```

**Data.** CodeXGLUE's token-level format made of releases on PyPI, pinned by SHA-256: django, sympy and networkx for training, textual for validation, scikit-learn for
the test. No project is in two of them. Lines are cut at a token inside them, as in the published test sets; scores are the official evaluator's. Figures on these files do
not compare with published ones.

**Models.** Random weights around one byte-level BPE of 4,096 tokens. BiGS is the causal form with a short convolution. Pretraining: 3 million tokens, half of the windows with a gap; the
Transformer's windows share batches, those of the state-space models are padded, since a state would run on into the next row. Tuning: 1,600 lines of at most 256 tokens, of files
that pretraining read too, one epoch, three seeds on the same rows, of three learning rates the one with the lowest validation loss at seed 0. The embedded model (135 million
parameters, pretrained by its authors on far more) is a point of reference, tuned with LoRA on the same rows, one seed. Its tokens are others: of its figures
only exact match, edit similarity and bits per byte compare.

**What a larger run would settle.** Models this small, trained for minutes, say nothing of how these architectures compare at size. The study shows that the whole path works, what the
traps cost, and how a comparison is made; the recipes take other sizes.
"""


def page(path: Path = RESULTS) -> str:
    """The whole page as Markdown."""
    results = json.loads(path.read_text())
    figures = results["figures"]
    lines = [INTRODUCTION, "## Scores", ""]
    if "bigs/loss" not in figures:
        lines.append("Not measured yet.")
    else:
        lines += [f"Made on {results['date']}. Mean over seeds (lowest to highest).", "", *scores(figures)]
        lines += ["", f"![Validation bits per byte by tokens and by time](../images/{CURVES.name})", ""]
        lines += ["The runs shared the machine with other work: compare by tokens, not by minutes.", ""]
        lines += [
            "## Differences",
            "",
            "Seed by seed on the same rows; 95% intervals, Student's over three seeds, of the rows cut off a bootstrap over files at one seed.",
            "",
        ]
        lines += differences(figures)
    lines += ["", "## Rows with nothing to learn", "", truncation(figures), ""]
    return "\n".join(lines)


def scores(figures: dict[str, Any]) -> list[str]:
    """A model a line."""
    rows = [["", "parameters", "learning rate", *(title for title, _ in METRICS.values())]]
    for name, title in MODELS.items():
        parameters, rate = figures.get(f"{name}/parameters"), figures.get(f"{name}/learning_rate")
        row = [title, f"{parameters:,}" if parameters else "", f"{rate:g}" if rate else ""]
        for metric, (_, share) in METRICS.items():
            mean, low, high = (shown(value, share) for value in figures[f"{name}/{metric}"])
            row.append(mean if low == high else f"{mean} ({low} to {high})")
        rows.append(row)
    pretraining = [["", "pretraining, bits per byte", "tokens"]]
    for name in ("bigs", "mamba2", "transformer"):
        values = (figures[f"{name}/pretraining_{what}"] for what in ("bits_per_byte", "tokens"))
        pretraining.append([MODELS[name], *(f"{value:,}" for value in values)])
    return [*markdown(rows), "", *markdown(pretraining)]


def differences(figures: dict[str, Any]) -> list[str]:
    """A pair of models a line."""
    chosen = ("codexglue_exact_match", "codexglue_edit_similarity", "bits_per_byte")
    rows = [["", *(METRICS[metric][0] for metric in chosen)]]
    pairs = [name.removesuffix("/loss") for name in figures if "_minus_" in name and name.endswith("/loss")]
    for pair in pairs:
        one, other = pair.split("_minus_")
        row = [f"{MODELS[one]} against {MODELS[other]}"]
        for metric in chosen:
            difference, low, high = (
                shown(value, METRICS[metric][1]) for value in figures[f"{pair}/{metric}"]
            )
            row.append(f"{difference} ({low} to {high})")
        rows.append(row)
    return markdown(rows)


def truncation(figures: dict[str, Any]) -> str:
    """The old failure beside what is done here."""
    text = (
        f"Of {figures['truncation_rows']:,} rows at {figures['truncation_max_length']} tokens, cut off at the right as `tokenizer(text, truncation=True)` does, "
        f"**{figures['untrained_rows_naive']:.1%}** have no token left to learn. With spans, where only the context may be cut: {figures['untrained_rows_ours']:.1%}, and "
        f"{figures['dropped_rows_ours']:.1%} dropped."
    )
    if "naive_untrained_rows_of_study" in figures:
        text += (
            f" Of the 1,600 rows that the models are tuned on (256 tokens) it is {figures['naive_untrained_rows_of_study']:.1%}; BiGS tuned on the others, cut off, "
            "is the last line of the scores."
        )
    return text


def shown(value: float, share: bool) -> str:
    """Shares as per cent."""
    return f"{100 * value:.1f}%" if share else f"{value:.3f}"


def markdown(rows: list[list[str]]) -> list[str]:
    """A table whose first line is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]]


if __name__ == "__main__":
    print(page())
