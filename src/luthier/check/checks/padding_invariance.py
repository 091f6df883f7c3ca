from __future__ import annotations

from collections.abc import Iterator

import torch

from luthier.check.context import CheckContext
from luthier.check.model_rows import Side, cut, evaluating, row_losses, short_rows
from luthier.records import Finding
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
    limit = MOST_DIFFERENCE[context.is_exact]
    with evaluating(model):
        alone = torch.cat([row_losses(context, [row]) for row in rows])
        sides: tuple[Side, ...] = ("right", "left")
        padded = {side: row_losses(context, rows, side) for side in sides}
    for side, beside in padded.items():
        differences = ((beside - alone).abs() / alone.abs().clamp(min=1e-3)).tolist()
        worst = max(differences)
        if not worst <= limit:
            row = differences.index(worst)
            yield Finding(
                "padding-invariance",
                "error",
                f"padded on the {side} the loss of a row is {beside[row]:.4f}, and alone {alone[row]:.4f} ({worst:.2%} apart)",
                f"{context.place('train')}: {rows[row].id}",
                "try model.attention=eager; else the model ignores position_ids or attention_mask",
                measured=worst if worst == worst else "nan",
                expected=f"at most {limit}",
            )
