"""``figures/learning_curve.png``: losses, gradient norm and learning rate over the steps of a run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed, nor looked for
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from luthier.errors import UserError
from luthier.report.history import History, Smoothed, epoch_starts, finite, read, smooth, warmup_end
from luthier.run_folder import RunFolder

# Okabe and Ito's colours, told apart by every kind of colour vision; in grey they differ in lightness too.
_TRAIN, _EVAL, _NORM, _RATE = "#0072B2", "#D55E00", "#007A5A", "#8A4B7D"
_WATCHER = "#A83A00"
_RUNS = ("#0072B2", "#D55E00", "#009E73", "#8A4B7D", "#56B4E9", "#B07500", "#1F2328")
_WARMUP = "#F3EEDF"
_RAW, _INK, _FAINT = "#9CC3DD", "#1F2328", "#6B7280"
COLOURS = {"train": _TRAIN, "eval": _EVAL}
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that the figure is the same everywhere
    "font.size": 12,
    "axes.labelsize": 12,
    "axes.edgecolor": "#B4B9C1",
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E8EB",
    "grid.linewidth": 0.8,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "text.color": _INK,
    "figure.facecolor": "white",
}


def verbatim(name: str) -> str:
    """A name as matplotlib's label of it: what stands between two dollar signs is no formula."""
    return name.replace("$", r"\$")


def save(figure: Figure, path: Path, *, dpi: int) -> Path:
    """The path of a picture, which is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=dpi)
    plt.close(figure)
    return temporary.replace(path)


def draw(run: RunFolder, window: int) -> list[Path]:
    """Paths of the figures drawn; none when there is no history to draw, or a damaged one (the page says so).

    Args:
        run: Folder with ``history.jsonl``.
        window: Steps of the Savitzky-Golay window; a short run gets a shorter one, and the figure says so.
    """
    try:
        history = read(run)
    except UserError:
        return []
    if not history.steps and not history.evals:
        return []
    smoothed = smooth(history.series("loss"), window)
    with plt.rc_context(STYLE):
        figure, (top, norm, rate) = plt.subplots(
            3, 1, figsize=(10, 8), sharex=True, height_ratios=[3.4, 1, 1], layout="constrained"
        )
        _losses(top, history, smoothed)
        _panel(norm, history, "gradient_norm", "gradient norm", _NORM)
        _panel(rate, history, "learning_rate", "learning rate", _RATE)
        rate.set_xlabel("optimizer step")
        rate.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, steps=[1, 2, 5, 10]))
        rate.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        rate.set_xlim(left=0)
        for axes in (top, norm, rate):
            if (warm := warmup_end(history)) > 1:
                axes.axvspan(0, warm, color=_WARMUP, linewidth=0, zorder=0)
            for step in epoch_starts(history):
                axes.axvline(step, color="#B4B9C1", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            for found in history.findings:
                axes.axvline(found["step"], color=_WATCHER, linewidth=1.4, linestyle=(0, (1, 2)), zorder=2)
        if warm > 1:
            rate.annotate("warm-up", (0, 1), xycoords=("data", "axes fraction"), xytext=(4, -3),
                          textcoords="offset points", va="top", fontsize=10, color=_FAINT)  # fmt: skip
        _name_epochs(top, history)
        _name_findings(top, history)
        _token_axis(top, history)
        figure.align_ylabels()
        note = f"pale line: every step; dark line: {smoothed.note}" if smoothed.values else smoothed.note
        figure.supxlabel(note if history.steps else "no training step yet", fontsize=10, color=_FAINT)
        return [save(figure, run.figures / "learning_curve.png", dpi=160)]


def overlay(histories: Mapping[str, History], path: Path) -> bool:
    """Validation bits per byte of several runs over each other, by tokens seen and by time; False if no run has any.

    Bits per byte compare between tokenizers, losses do not.
    """
    lines = {
        name: [
            (row["tokens"], finite(row.get("seconds", 0 if row["step"] == 0 else None)), bits)
            for row in history.evals
            if (bits := finite(row["eval"].get("bits_per_byte"))) is not None
        ]
        for name, history in histories.items()
    }
    if not any(lines.values()):
        return False
    with plt.rc_context(STYLE):
        figure, (by_tokens, by_time) = plt.subplots(
            1, 2, figsize=(10, 4.4), sharey=True, layout="constrained"
        )
        for (name, points), color, mark in zip(lines.items(), cycle(_RUNS), cycle("osD^vPX"), strict=False):
            style: Any = {
                "color": color,
                "marker": mark,
                "markersize": 6,
                "linewidth": 1.8,
                "markeredgecolor": "white",
            }
            by_tokens.plot([p[0] for p in points], [p[2] for p in points], label=verbatim(name), **style)
            timed = [(p[1] / 60, p[2]) for p in points if p[1] is not None]
            by_time.plot([p[0] for p in timed], [p[1] for p in timed], **style)
        by_tokens.set_ylabel("validation bits per byte")
        by_tokens.set_xlabel("tokens seen")
        by_tokens.xaxis.set_major_locator(MaxNLocator(nbins=5))
        by_tokens.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
        by_time.set_xlabel("minutes of training")
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=11)
        save(figure, path, dpi=160)
    return True


def _numbers(values: list[float | None]) -> list[float]:
    """Matplotlib breaks a line at NaN."""
    return [float("nan") if value is None else value for value in values]


def _losses(axes: Axes, history: History, smoothed: Smoothed) -> None:
    steps = [row["step"] for row in history.steps]
    raw = _numbers(history.series("loss"))
    evals = [
        (row["step"], loss) for row in history.evals if (loss := finite(row["eval"].get("loss"))) is not None
    ]
    ends: list[tuple[float, float, str, str]] = []
    if smoothed.values:
        axes.plot(steps, raw, color=_RAW, linewidth=1, alpha=0.8, zorder=2)
        axes.plot(steps, _numbers(smoothed.values), color=_TRAIN, linewidth=2.4, zorder=3)
        label, line = "training,\nsmoothed", smoothed.values
    else:
        axes.plot(steps, raw, color=_TRAIN, linewidth=1.6, marker=".", zorder=3)
        label, line = "training", history.series("loss")
    known = [(step, loss) for step, loss in zip(steps, line, strict=True) if loss is not None]
    if known:
        ends.append((*known[-1], label, _TRAIN))
    if evals:
        xs, ys = zip(*evals, strict=True)
        axes.plot(
            xs, ys, color=_EVAL, linewidth=1.8, marker="o", markersize=7, markeredgecolor="white", zorder=4
        )
        best = min(evals, key=lambda pair: pair[1])
        late = best[0] > max(xs) / 2
        axes.annotate(
            f"lowest validation loss {best[1]:.3f}\nat step {best[0]:,}",
            best,
            xytext=(0, 46),
            textcoords="offset points",
            ha="right" if late else "left",
            fontsize=11,
            color=_EVAL,
            arrowprops={
                "arrowstyle": "-",
                "color": _EVAL,
                "linewidth": 0.8,
                "shrinkB": 6,
                "relpos": (int(late), 0),
            },
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.9},
            zorder=6,
        )
        ends.append((*evals[-1], "validation", _EVAL))
    _label_ends(axes, ends)
    axes.set_ylabel("loss (nats per trained token)")
    axes.set_title("Learning curve", loc="left", fontsize=17, fontweight="bold", pad=12)


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Names beside the ends of lines, moved apart where they would touch."""
    low, high = axes.get_ylim()
    apart = 0.11 * (high - low)
    place = float("-inf")
    for _, y, label, color in sorted(ends, key=lambda end: end[1]):
        place = max(y, place + apart)
        axes.annotate(
            label,
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontweight="bold",
            annotation_clip=False,
        )


def _panel(axes: Axes, history: History, name: str, label: str, color: str) -> None:
    values = _numbers(history.series(name))
    axes.plot([row["step"] for row in history.steps], values, color=color, linewidth=1.4)
    axes.set_ylabel(label.replace(" ", "\n"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda y, _: f"{y:g}" if y == 0 or y >= 1e-3 else f"{y:.1e}".replace("e-0", "e-"))
    )
    if any(value == value for value in values):
        axes.set_ylim(bottom=0)
    else:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=_FAINT)
        axes.set_yticks([])


def _name_epochs(axes: Axes, history: History) -> None:
    starts = epoch_starts(history)
    if not starts or len(starts) > 12:
        return
    for number, step in enumerate([0, *starts], start=1):
        axes.annotate(f"epoch {number}", (step, 1), xycoords=("data", "axes fraction"), xytext=(4, -3),
                      textcoords="offset points", va="top", fontsize=10, color=_FAINT)  # fmt: skip


def _name_findings(axes: Axes, history: History) -> None:
    """Watchers beside the steps at which they spoke."""
    last = max((row["step"] for row in history.steps), default=0)
    for number, found in enumerate(history.findings):
        right = found["step"] < last / 5  # no room to the left
        axes.annotate(found["check"], (found["step"], 1), xycoords=("data", "axes fraction"),
                      xytext=(4 if right else -4, -18 - 14 * number), textcoords="offset points",
                      ha="left" if right else "right", va="top", fontsize=10, color=_WATCHER)  # fmt: skip


def _token_axis(axes: Axes, history: History) -> None:
    """A second axis on top: tokens seen at each tick of the steps, as they were counted, not reckoned."""
    counted = {
        row["step"]: row["tokens"]
        for row in [*history.evals, *history.steps]
        if row.get("tokens") is not None
    }
    if len(counted) < 2:
        return
    last = max(counted)
    ticks = [
        step
        for step in MaxNLocator(integer=True, nbins=7, steps=[1, 2, 5, 10]).tick_values(0, last)
        if step in counted
    ]
    tokens = axes.secondary_xaxis("top")
    tokens.set_xticks(ticks, [_short(counted[int(step)]) for step in ticks])
    tokens.tick_params(labelsize=11)
    tokens.spines["top"].set_visible(False)
    tokens.set_xlabel("tokens seen", fontsize=11, color=_FAINT)


def _short(count: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"
