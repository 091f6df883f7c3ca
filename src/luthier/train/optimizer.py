"""AdamW with decay on matrices only."""

from __future__ import annotations

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
