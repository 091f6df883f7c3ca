"""What a learning curve shows, in sentences: each is said only where measurements support it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from luthier.report.history import History, Smoothed, finite, warmup_end

# Relative changes of a loss that count as none, and as some. Below five evaluations there is no course to speak of.
_FLAT, _SOME = 0.01, 0.02
_FEWEST_EVALS = 4
_NOISES = 2.0


@dataclass(frozen=True, slots=True)
class Observation:
    """Something that a curve shows.

    Attributes:
        kind: ``warm-up``, ``noise``, ``validation-below``, ``plateau``, ``over-fitting``, ``divergence``, ``still-falling`` or ``gap``.
        text: It in a sentence or two.
    """

    kind: str
    text: str


def observations(history: History, smoothed: Smoothed) -> list[Observation]:
    """What can be said of a run's curves, in the order of the run.

    Args:
        history: The run's.
        smoothed: Its training loss, smoothed; without it nothing is said of training loss, since single steps are noise.
    """
    steps = [row["step"] for row in history.steps]
    line = {step: loss for step, loss in zip(steps, smoothed.values, strict=False) if loss is not None}
    evals = [
        (row["step"], loss) for row in history.evals if (loss := finite(row["eval"].get("loss"))) is not None
    ]
    noise = _noise(history, smoothed)
    found = [
        _warmup(history, line, noise),
        _scatter(line, noise),
        _validation_below(line, evals, noise),
        diverged := _divergence(history, line, noise),
    ]
    if diverged is None:
        rose = _overfitting(line, evals, noise)
        found += [
            rose,
            None if rose else _plateau(evals) or _still_falling(evals),
            _gap(history, line, evals, noise),
        ]
    return [observation for observation in found if observation is not None]


def _noise(history: History, smoothed: Smoothed) -> float:
    """Standard deviation of single steps around the smoothed line, in nats."""
    rest = [
        raw - value
        for raw, value in zip(history.series("loss"), smoothed.values, strict=False)
        if raw is not None and value is not None
    ]
    return float(np.std(rest)) if rest else 0.0


def _warmup(history: History, line: dict[int, float], noise: float) -> Observation | None:
    end = warmup_end(history)
    reached = max((step for step in line if step <= end), default=None)
    if reached is None or len([step for step in line if step <= end]) < 3:
        return None
    first, then, best = line[min(line)], line[reached], min(line.values())
    if first - then <= _NOISES * noise or first <= best:
        return None
    share = min(1.0, (first - then) / (first - best))
    return Observation(
        "warm-up",
        f"During the warm-up, the first {end:,} steps, training loss fell from {first:.3f} to {then:.3f}: {share:.0%} of all "
        "that it fell by.",
    )


def _scatter(line: dict[int, float], noise: float) -> Observation | None:
    if not line or not noise:
        return None
    return Observation(
        "noise",
        f"Single steps scatter around the smoothed training loss with a standard deviation of {noise:.3f} nats: what differs by "
        "less than twice that from one step to another is chance.",
    )


def _validation_below(
    line: dict[int, float], evals: list[tuple[int, float]], noise: float
) -> Observation | None:
    early = [(step, loss, line[step]) for step, loss in evals if step in line and step <= max(line) / 2]
    below = [step for step, loss, train in early if loss < train - noise]
    if not below:
        return None
    until = f"Up to step {max(below):,}" if len(below) > 1 else f"At step {below[0]:,}"
    return Observation(
        "validation-below",
        f"{until} validation loss is below training loss. That is no fault by itself: training loss is taken before each update, "
        "with dropout if there is any, and on other rows, which may be harder; validation loss after it and without dropout.",
    )


def _divergence(history: History, line: dict[int, float], noise: float) -> Observation | None:
    lost = next((row["step"] for row in history.steps if finite(row.get("loss")) is None), None)
    if lost is not None:
        return Observation(
            "divergence",
            f"At step {lost:,} the training loss is no finite number any more: the run diverged.",
        )
    if not line:
        return None
    lowest = min(line, key=lambda step: line[step])
    last = line[max(line)]
    if last - line[lowest] <= max(_NOISES * noise, 0.2 * line[lowest]):
        return None
    return Observation(
        "divergence",
        f"Training loss was lowest at step {lowest:,} ({line[lowest]:.3f}) and rose to {last:.3f} at the end: the run diverged. A lower "
        "learning rate, a longer warm-up or a lower train.max_gradient_norm are what to try first.",
    )


def _overfitting(line: dict[int, float], evals: list[tuple[int, float]], noise: float) -> Observation | None:
    if len(evals) < _FEWEST_EVALS:
        return None
    best, lowest = min(evals, key=lambda pair: pair[1])
    after = [(step, loss) for step, loss in evals if step > best]
    last_step, last = evals[-1]
    if len(after) < 2 or last - lowest <= _SOME * lowest or after[-2][1] <= lowest * (1 + _FLAT / 2):
        return None
    near = min(line, key=lambda step: abs(step - best), default=None)
    if near is None or line[max(line)] >= line[near] - noise / 2:
        return None
    return Observation(
        "over-fitting",
        f"Validation loss is lowest at step {best:,} ({lowest:.3f}) and rises to {last:.3f} by step {last_step:,}, while training loss goes on "
        f"falling from {line[near]:.3f} to {line[max(line)]:.3f}: over-fitting sets in near step {best:,}. Fewer epochs, more rows or a "
        "smaller adapter are what to try.",
    )


def _plateau(evals: list[tuple[int, float]]) -> Observation | None:
    if len(evals) < _FEWEST_EVALS:
        return None
    last_step = evals[-1][0]
    for place, (step, loss) in enumerate(evals):
        rest = [later for _, later in evals[place:]]
        if max(rest) - min(rest) <= _FLAT * loss and len(rest) >= 3 and last_step - step >= 0.25 * last_step:
            if evals[0][1] - loss <= _FLAT * loss:
                return Observation(
                    "plateau",
                    f"Validation loss moves by less than {_FLAT:.0%} over the whole run: on these rows nothing measurable was learned.",
                )
            return Observation(
                "plateau",
                f"From step {step:,} on validation loss moves by less than {_FLAT:.0%} ({loss:.3f} to {evals[-1][1]:.3f}): a plateau. More steps "
                "of the same training are not likely to help.",
            )
    return None


def _still_falling(evals: list[tuple[int, float]]) -> Observation | None:
    if len(evals) < _FEWEST_EVALS:
        return None
    last_step, last = evals[-1]
    earlier = [(step, loss) for step, loss in evals if step <= 0.75 * last_step]
    if not earlier or last > min(loss for _, loss in evals):
        return None
    since, before = earlier[-1]
    if before - last <= _FLAT * last:
        return None
    return Observation(
        "still-falling",
        f"Validation loss was still falling at the end, by {1 - last / before:.1%} since step {since}: longer training may help.",
    )


def _gap(
    history: History, line: dict[int, float], evals: list[tuple[int, float]], noise: float
) -> Observation | None:
    if not evals or evals[-1][0] not in line:
        return None
    step, loss = evals[-1]
    gap = loss - line[step]
    if gap <= noise:
        return None
    seen_again = history.steps[-1].get("epoch", 0) > 1
    why = (
        "part of what was learned holds for the training rows alone."
        if seen_again
        else "no training row was seen twice, so the validation rows are harder to predict by that much."
    )
    return Observation(
        "gap",
        f"At the end validation loss is {gap:.3f} nats above training loss, more than single steps scatter: {why}",
    )
