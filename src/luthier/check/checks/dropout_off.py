from __future__ import annotations

from collections.abc import Iterator

import torch

from luthier.check.as_before import evaluating
from luthier.check.context import CheckContext, Skip
from luthier.check.model_rows import losses, short_rows
from luthier.records import Finding
from luthier.registry import check

NUM_ROWS = 2
MAX_TOKENS = 64
# The same sums give the same bits on a CPU; on a GPU atomic additions come in any order. Dropout changes nats, not digits.
MOST_DIFFERENCE = 1e-3


@check("dropout-off")
def dropout_off(context: CheckContext) -> Iterator[Finding]:
    """Evaluating the same rows twice gives the same losses.

    What it does: two forward passes in evaluation mode over 2 training rows (cut to 64 tokens each); the losses of all
    tokens agree to 0.001 nats.

    Why is this bad: dropout that stays on makes every evaluation a draw: the best checkpoint is chosen by luck, and the
    model looks worse than it is.

    Example: a layer that calls ``dropout(x, training=True)``.

    Fix: the model's code must switch everything random off in ``model.eval()``.

    Catalogue: 79
    """
    rows = short_rows(context, NUM_ROWS, MAX_TOKENS)
    with evaluating(context.model):
        first, second = (losses(context, rows)[0] for _ in range(2))
    if not torch.isfinite(torch.stack([first, second])).all():
        raise Skip("losses are not finite (see weights and initial-loss)")
    difference = float((first - second).abs().max())
    if not difference <= MOST_DIFFERENCE:
        yield Finding(
            "dropout-off",
            "error",
            f"a token's loss differs by {difference:.4f} nats between two evaluations of the same rows",
            f"model {context.model_name}",
            "switch dropout and noise off in the model's evaluation mode",
            measured=round(difference, 6),
            expected=f"at most {MOST_DIFFERENCE}",
        )
