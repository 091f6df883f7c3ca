"""AdamW with decay on matrices only, and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from luthier.recipe import Train


def adamw(parameters: Iterable[tuple[str, torch.nn.Parameter]], settings: Train) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors (norms, biases) are in a group without decay.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; the update itself is torch's.
    """
    trainable = [p for _, p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,
    )


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
        A linear rise that reaches the peak at the last warm-up step, then the schedule, which is at its end value at
        the last step.
    """
    warmup = num_warmup_steps(settings, total_steps)
    if step <= warmup:
        return settings.learning_rate * step / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - warmup) / max(1, total_steps - warmup)
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    floor = settings.final_learning_rate_share
    return settings.learning_rate * (floor + (1 - floor) * left)
