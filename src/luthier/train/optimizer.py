"""AdamW with decay on matrices only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from luthier.recipe import Train


def adamw(parameters: Iterable[tuple[str, torch.nn.Parameter]], settings: Train) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors (norms, biases) are in a group without decay.

    A parameter with an attribute ``_optim`` gets the ``weight_decay`` that it names, and ``lr_scale`` times the learning
    rate: state-space models need that (the attribute is S4's, arXiv:2111.00396).

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; the update itself is torch's.
    """
    groups = _groups(parameters, settings)
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,
    )


def _groups(parameters: Iterable[tuple[str, torch.nn.Parameter]], settings: Train) -> list[dict[str, Any]]:
    found: dict[tuple[float, float], list[torch.nn.Parameter]] = {
        (1.0, settings.weight_decay): [],
        (1.0, 0.0): [],
    }
    for name, p in parameters:
        if not p.requires_grad:
            continue
        own = getattr(p, "_optim", {})
        # Mamba's A has two dimensions, and is published without decay (state-spaces/mamba).
        decayed = p.ndim >= 2 and not name.endswith("A_log")
        decay = own.get("weight_decay", settings.weight_decay if decayed else 0.0)
        found.setdefault((own.get("lr_scale", 1.0), decay), []).append(p)
    return [
        {"params": ps, "weight_decay": decay, "lr": settings.learning_rate * scale, "lr_scale": scale}
        for (scale, decay), ps in found.items()
        if ps
    ]
