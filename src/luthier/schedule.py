"""How long a run is and what its learning rate does: arithmetic on the recipe alone, for training and for checking."""

from __future__ import annotations

import math

from luthier.recipe import Train


def total_steps(settings: Train, num_rows: int, num_tokens: int) -> int:
    """Optimizer steps of a run.

    Args:
        settings: The recipe's.
        num_rows: Training rows.
        num_tokens: Tokens of all of them.
    """
    steps = max(1, round(settings.epochs * num_rows / settings.batch_size))
    if settings.max_tokens:
        steps = min(steps, max(1, round(settings.max_tokens * num_rows / (num_tokens * settings.batch_size))))
    return min(steps, settings.max_steps or steps)


def eval_interval(settings: Train, total_steps: int) -> int:
    """Steps from one evaluation to the next: as given, or ten evaluations a run."""
    return settings.eval_every_steps or max(1, math.ceil(total_steps / 10))


def num_warmup_steps(settings: Train, total_steps: int) -> int:
    """Warm-up steps of a run: as given, or as a share of all steps."""
    if settings.warmup_steps is not None:
        return settings.warmup_steps
    return round(settings.warmup_share * total_steps)


def learning_rate(step: int, total_steps: int, settings: Train) -> float:
    """The learning rate of an optimizer step.

    Args:
        step: 1 for the first optimizer step.
        total_steps: Steps of the whole run.
        settings: The recipe's.

    Returns:
        A linear rise that reaches the peak at the last warm-up step (the first step, if there is no warm-up), then the
        schedule, which is at its end value at the last step.
    """
    # Without warm-up the first step is at the peak; it would else be lower, and 0 in a run of a single step.
    warmup = max(1, num_warmup_steps(settings, total_steps))
    if step <= warmup:
        return settings.learning_rate * step / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - warmup) / max(1, total_steps - warmup)
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    floor = settings.final_learning_rate_share
    return settings.learning_rate * (floor + (1 - floor) * left)
