"""What the page shows of a classifier: figures beside the baseline's, calibration, classes one by one, confusions, errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from luthier.errors import UserError
from luthier.report.curves import COLOURS, STYLE, save, verbatim
from luthier.report.history import History, finite
from luthier.report.sections import number
from luthier.run_folder import RunFolder, read_json

FIGURES = ("classes", "calibration", "confusion")
# More names than this cannot be read beside a picture.
_MOST_NAMES = 40
_WORST = 15
_MOST_CLASSES = 2000
_ROWS = (
    ("accuracy", "Accuracy", "share"),
    ("top_5_accuracy", "Top-5 accuracy", "share"),
    ("macro_f1", "Macro F1", "share"),
    ("micro_f1", "Micro F1", "share"),
    ("weighted_f1", "Weighted F1", "share"),
    ("matthews", "Matthews correlation", ""),
    ("log_loss", "Log loss, calibrated", "nats"),
    ("expected_calibration_error", "Calibration error", "share"),
    ("uncalibrated_error", "Calibration error before the temperature", "share"),
    ("temperature", "Temperature", ""),
)


def view(scores: Mapping[str, Any] | None, past: History) -> dict[str, Any] | None:
    """The values of the section; None for a run that has classified nothing."""
    found = (scores or {}).get("classification")
    if not found:
        return None
    classes = sorted(found["classes"], key=lambda c: (c["test_rows"] == 0, c["f1"], c["name"]))
    before = next((row["eval"].get("loss") for row in past.evals if row["step"] == 0), None)
    figures = found["figures"]
    return {
        "confusions": [],
        "errors": [],
        **found,
        "figures": [
            (label, number(figures["base"][name], unit), number(figures["tuned"][name], unit))
            for name, label, unit in _ROWS
            if name in figures["tuned"]
        ],
        "worst": classes[:_WORST],
        "classes": classes[:_MOST_CLASSES],
        "num_classes": len(classes),
        "first_loss": finite(before),
        "uniform": _uniform(found),
        "smallest": min(c["train_rows"] for c in classes),
        "largest": max(c["train_rows"] for c in classes),
        "untrained": sum(c["train_rows"] == 0 for c in classes),
    }


def _uniform(found: Mapping[str, Any]) -> str:
    """Where the loss of guessing evenly comes from."""
    choices = 2 if found["several"] else len(found["classes"])
    said = f"ln {choices}{' a class' if found['several'] else ''}"
    if found["uniform_loss"] < math.log(choices) * (1 - 1e-6):
        said += "; less by the levels above the class, or the focal factor"
    return said


def draw(run: RunFolder) -> list[Path]:
    """Paths of the figures drawn; none for a run that has classified nothing."""
    try:
        scores = read_json(run.scores) if run.scores.is_file() else {}
    except UserError:  # damaged, which the page says
        return []
    found = scores.get("classification")
    if not found:
        return []
    paths = []
    with plt.rc_context(STYLE):
        for name, picture in zip(FIGURES, (_sizes, _calibration, _confusion), strict=True):
            if name == "confusion" and "confusion" not in found:
                continue
            paths.append(save(picture(found), run.figures / f"{name}.png", dpi=130))
    return paths


def _sizes(found: Mapping[str, Any]) -> Figure:
    """Class balance, and what it does to F1."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    sizes = np.array([c["train_rows"] for c in found["classes"]])
    left.bar(np.arange(len(sizes)), np.sort(sizes)[::-1], width=1.0, color=COLOURS["train"])
    left.set(title="Training rows of each class", xlabel="classes, largest first", ylabel="rows")
    tested = [c for c in found["classes"] if c["test_rows"]]
    for key, label, colour, marker in (
        ("f1_base", "baseline", COLOURS["eval"], "x"),
        ("f1", "tuned", COLOURS["train"], "o"),
    ):
        xs, ys = [max(c["train_rows"], 0.5) for c in tested], [c[key] for c in tested]
        right.scatter(xs, ys, s=18, color=colour, marker=marker, alpha=0.6, linewidths=1, label=label)
    right.set(title="F1 by size of the class", xlabel="training rows", ylabel="F1", ylim=(-0.03, 1.03))
    right.set_xscale("log")
    right.legend(frameon=False, loc="best")
    return figure


def _calibration(found: Mapping[str, Any]) -> Figure:
    """Share of right answers by confidence, of both."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharey=True)
    for side, title, panel in zip(("base", "tuned"), ("Baseline", "Tuned"), axes, strict=True):
        _reliability(panel, found["calibration"][side])
        figures = found["figures"][side]
        error, raw = figures["expected_calibration_error"], figures["uncalibrated_error"]
        before = "" if figures["temperature"] == 1 else f" (before: {raw:.3f})"
        panel.set_title(f"{title}: error {error:.3f}{before}", loc="left", fontsize=12)
    axes[0].set_ylabel("share of right answers")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _reliability(axes: Axes, bins: Sequence[Mapping[str, float]]) -> None:
    axes.plot([0, 1], [0, 1], color="#B4B9C1", linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    total = sum(b["count"] for b in bins)
    widths = [b["high"] - b["low"] for b in bins]
    lefts = [b["low"] for b in bins]
    axes.bar(lefts, [b["count"] / total for b in bins], width=widths, align="edge", color="#E6E8EB", zorder=0,
             label="share of all answers")  # fmt: skip
    axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], color=COLOURS["train"], marker="o",
              linewidth=1.6, zorder=3, clip_on=False, label="right answers")  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence")


def _confusion(found: Mapping[str, Any]) -> Figure:
    """Answers by class as shares of the class's rows; classes that are taken for each other stand side by side."""
    names = [c["name"] for c in found["classes"]]
    table = np.zeros((len(names), len(names)))
    for label, answer, count in found["confusion"]:
        table[label, answer] = count
    rows = table.sum(1, keepdims=True)
    shares = np.divide(table, rows, out=np.zeros_like(table), where=rows > 0)
    order = _by_likeness(shares)
    size = 9 if len(names) > _MOST_NAMES else max(4.5, 2.5 + 0.16 * len(names))
    figure, axes = plt.subplots(figsize=(size + 0.8, size), layout="constrained")
    picture = axes.imshow(
        np.sqrt(shares[np.ix_(order, order)]), cmap="Blues", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.grid(visible=False)
    axes.set(xlabel="answer", ylabel="class")
    if len(names) <= _MOST_NAMES:
        axes.set_xticks(range(len(names)), [_brief(names[i]) for i in order], rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), [_brief(names[i]) for i in order], fontsize=8)
    else:
        axes.set(xticks=[], yticks=[])
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, label="share of the class's rows")
    ticks = np.array([0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.set_ticks(np.sqrt(ticks), labels=[f"{100 * t:g}%" for t in ticks])
    return figure


def _by_likeness(shares: np.ndarray) -> np.ndarray:
    if len(shares) < 3:
        return np.arange(len(shares))
    alike = shares + shares.T
    np.fill_diagonal(alike, 0)
    distance = 1 - alike / max(alike.max(), 1e-9)
    np.fill_diagonal(distance, 0)
    return np.asarray(leaves_list(linkage(squareform(distance, checks=False), "average")))


def _brief(name: str) -> str:
    return verbatim(name if len(name) <= 24 else name[:23] + "…")
