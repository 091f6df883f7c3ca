from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from luthier.check.context import CheckContext
from luthier.check.model_rows import cut, evaluating, is_fp32, short_rows
from luthier.encoding.batches import collate
from luthier.models.forward import base_model, token_scores
from luthier.records import Finding, Row
from luthier.registry import check

# Of different lengths, so that there is something to pad.
LENGTHS = (128, 96, 64)
# Sums in another order differ in the last digits: 1e-6 in fp32. In bf16 a product has 3 digits; 0.6% was measured on
# SmolLM2-135M. Positions or masks that are wrong change losses by a tenth and more.
MOST_DIFFERENCE = {True: 1e-4, False: 0.03}


@check("padding-invariance")
def padding_invariance(context: CheckContext) -> Iterator[Finding]:
    """A row has the same loss alone, and beside longer rows with padding on either side.

    What it does: the mean losses of 3 training rows (cut to 128, 96 and 64 tokens) are the same one at a time, together
    padded on the right, and together padded on the left: relative to 1e-4 in fp32, 3% in bf16.

    Why is this bad: otherwise a row's loss depends on its neighbours in the batch. Generation pads on the left and
    training on the right, so the model would be used otherwise than it was trained.

    Example: positions that count from the beginning of the padding; an attention implementation that ignores the mask.

    Fix: ``model.attention=eager`` shows whether the implementation is at fault; else the model's code ignores
    ``position_ids`` or ``attention_mask``.

    Catalogue: 51, 52, 55
    """
    model = context.model
    rows = [
        cut(row, length) for row, length in zip(short_rows(context, 3, LENGTHS[0]), LENGTHS, strict=False)
    ]
    if len({len(row.input_ids) for row in rows}) == 1:  # nothing to pad: add the beginning of one
        rows.append(cut(rows[0], max(2, len(rows[0].input_ids) // 2)))
    limit = MOST_DIFFERENCE[is_fp32(context)]
    with evaluating(model):
        alone = torch.cat([_losses(context, [row], "right") for row in rows])
        sides: tuple[Literal["right", "left"], ...] = ("right", "left")
        padded = {side: _losses(context, rows, side) for side in sides}
    for side, losses in padded.items():
        differences = ((losses - alone).abs() / alone.abs().clamp(min=1e-3)).tolist()
        worst = max(differences)
        if not worst <= limit:
            row = differences.index(worst)
            yield Finding(
                "padding-invariance",
                "error",
                f"padded on the {side} the loss of a row is {losses[row]:.4f}, and alone {alone[row]:.4f} ({worst:.2%} apart)",
                f"data/train.arrow: {rows[row].id}",
                "try model.attention=eager; else the model ignores position_ids or attention_mask",
                measured=worst if worst == worst else "nan",
                expected=f"at most {limit}",
            )


def _losses(context: CheckContext, rows: list[Row], side: Literal["right", "left"]) -> torch.Tensor:
    """Mean loss of each row, fp32, shape (num_rows,)."""
    batch = collate(rows, context.tokenizer.eos_id or 0, side).to(base_model(context.model).device)
    scores = token_scores(context.model, batch, plain=context.plain_forward)
    sums = torch.zeros(len(rows), device=scores.nll_N.device).index_add_(0, scores.rows_N, scores.nll_N)
    return (sums / torch.bincount(scores.rows_N, minlength=len(rows))).cpu()
