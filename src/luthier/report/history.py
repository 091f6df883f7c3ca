"""The course of a run as ``history.jsonl`` tells it: series, smoothed loss and key figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.signal import savgol_filter

from luthier.run_folder import RunFolder, read_jsonl

_POLYNOMIAL_ORDER = 2
_SHORTEST_WINDOW = 5  # a parabola through fewer points follows the noise


@dataclass(frozen=True, slots=True)
class History:
    """Optimizer steps and evaluations of a run, in order of their step.

    Attributes:
        steps: Objects of ``history.jsonl`` that have a training loss.
        evals: Objects of ``history.jsonl`` that have an evaluation, step 0 included.
    """

    steps: list[dict[str, Any]]
    evals: list[dict[str, Any]]

    def series(self, name: str) -> list[float | None]:
        """One value a training step; what is missing or not finite is none."""
        return [finite(step.get(name)) for step in self.steps]

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What watchers found while the run trained, each with its step."""
        return [{**found, "step": row["step"]} for row in self.steps for found in row.get("findings", ())]


def read(run: RunFolder) -> History:
    """The history of a run; empty before training."""
    return from_rows(read_jsonl(run.history))


def from_rows(rows: Iterable[dict[str, Any]]) -> History:
    """The history of the objects of ``history.jsonl``. Of a step written twice (a resumed run) the later one counts."""
    by_step = {row["step"]: row for row in rows if isinstance(row.get("step"), int)}
    ordered = [by_step[step] for step in sorted(by_step)]
    return History([row for row in ordered if "loss" in row], [row for row in ordered if row.get("eval")])


def finite(value: Any) -> float | None:
    """The value as a number, or none if it is missing, no number, infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Smoothed:
    """A smoothed line.

    Attributes:
        values: One a step, none where the raw value is not finite; empty if there are too few steps.
        window: Steps of the window that was used, odd; 0 without smoothing.
        note: How it was smoothed, for the caption.
    """

    values: list[float | None]
    window: int
    note: str


def smooth(losses: Sequence[float | None], window: int) -> Smoothed:
    """The Savitzky-Golay line through training losses.

    Args:
        losses: One a step; none where not finite. Gaps are bridged by straight lines and left out again.
        window: Steps wanted. A run of fewer than three windows gets a window of a third of its steps,
            since a parabola as long as the run would hide its course.

    Source: Savitzky and Golay 1964, Analytical Chemistry 36(8); scipy.signal.savgol_filter.
    """
    known = [index for index, loss in enumerate(losses) if loss is not None]
    fitting = min(window, len(known) // 3)
    used = fitting - 1 + fitting % 2  # odd, so that it has a middle
    if used < _SHORTEST_WINDOW:
        return Smoothed([], 0, f"not smoothed: {len(known)} steps are too few")
    filled = np.interp(range(len(losses)), known, [losses[index] for index in known])
    line = savgol_filter(filled, used, _POLYNOMIAL_ORDER)
    note = f"Savitzky–Golay, window {used} steps"
    if used < window - 1:
        note += f" instead of {window}, as the run has {len(known)}"
    return Smoothed(
        [float(y) if loss is not None else None for y, loss in zip(line, losses, strict=True)], used, note
    )


@dataclass(frozen=True, slots=True)
class KeyFigures:
    """The figures that a run is told by; none where there is nothing to tell. Losses in nats per trained token."""

    train_first: float | None
    train_last: float | None
    """Smoothed where there are enough steps, since a single step is noise."""
    train_best: float | None
    train_improvement: float | None
    """Share by which the last training loss is below the first one, both as shown."""
    eval_first: float | None
    eval_last: float | None
    eval_best: float | None
    best_step: int | None
    best_epoch: float | None
    improvement: float | None
    """Share by which the best evaluation loss is below the first one; negative if it rose."""
    generalisation_gap: float | None
    """Last evaluation loss minus training loss at that step."""
    last_step: int | None
    epochs: float | None
    tokens: int | None
    trained_tokens: int | None
    seconds: float | None
    peak_memory_gib: float | None
    tokens_per_s: float | None
    """Median over steps."""


def key_figures(history: History, smoothed: Smoothed | None = None) -> KeyFigures:
    """First, last and best losses, improvement, generalisation gap, duration and tokens of a run.

    Args:
        history: The run's.
        smoothed: Its training loss, smoothed; without it training losses are those of single steps.
    """
    raw = history.series("loss")
    line = (smoothed.values if smoothed else []) or raw
    train = [loss for loss in line if loss is not None]
    evals = [(row, loss) for row in history.evals if (loss := finite(row["eval"].get("loss"))) is not None]
    best = min(evals, key=lambda pair: pair[1], default=None)
    marked = [pair for pair in evals if pair[0]["eval"].get("best")]
    if marked:  # training says which one it kept; that need not be the lowest loss
        best = marked[-1]
    gap = None
    if evals and line:
        at = dict(zip((row["step"] for row in history.steps), line, strict=True)).get(evals[-1][0]["step"])
        gap = evals[-1][1] - at if at is not None else None
    first_eval = evals[0][1] if evals else None
    first_train = next((loss for loss in raw if loss is not None), None)
    last = (history.steps or history.evals or [{}])[-1]
    speeds = [speed for speed in history.series("tokens_per_s") if speed is not None]
    peaks = history.series("peak_memory_gib") + history.series("memory_gib")
    return KeyFigures(
        train_first=first_train,
        train_last=train[-1] if train else None,
        train_best=min(train, default=None),
        train_improvement=1 - train[-1] / first_train if train and first_train else None,
        eval_first=first_eval,
        eval_last=evals[-1][1] if evals else None,
        eval_best=best[1] if best else None,
        best_step=best[0]["step"] if best else None,
        best_epoch=finite(best[0].get("epoch")) if best else None,
        improvement=1 - best[1] / first_eval if best and first_eval else None,
        generalisation_gap=gap,
        last_step=last.get("step"),
        epochs=finite(last.get("epoch")),
        tokens=last.get("tokens"),
        trained_tokens=last.get("trained_tokens"),
        seconds=finite(last.get("seconds")),
        peak_memory_gib=max((gib for gib in peaks if gib is not None), default=None),
        tokens_per_s=float(np.median(speeds)) if speeds else None,
    )


def warmup_end(history: History) -> int:
    """The step at which the learning rate has risen to its peak for the first time; 0 where it does not begin with a rise."""
    rates = [(row["step"], rate) for row in history.steps if (rate := finite(row.get("learning_rate")))]
    if len(rates) < 2 or rates[1][1] <= rates[0][1]:
        return 0
    peak = max(rate for _, rate in rates)
    return int(next(step for step, rate in rates if rate >= peak * (1 - 1e-9)))


def epoch_starts(history: History) -> list[int]:
    """Steps after which a new epoch begins, inside the run."""
    starts = []
    for before, after in zip(history.steps, history.steps[1:], strict=False):
        done, now = finite(before.get("epoch")), finite(after.get("epoch"))
        # The step that reaches a whole number ends its epoch; 1e-6 allows for sums of floats.
        if done is not None and now is not None and math.floor(done + 1e-6) < math.floor(now + 1e-6):
            reached = abs(now - round(now)) < 1e-6
            starts.append(after["step"] if reached else before["step"])
    last = history.steps[-1]["step"] if history.steps else 0
    return [step for step in starts if step < last]
