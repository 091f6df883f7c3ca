from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from luthier.check.context import CheckContext, Skip
from luthier.encoding.batches import collate
from luthier.records import Finding, Row
from luthier.registry import check

NUM_ROWS = 16


@check("padding")
def padding(context: CheckContext) -> Iterator[Finding]:
    """The real collator keeps every real token and its weight, and gives padding none.

    What it does: puts 16 spread training rows through the collator that training uses, padded on the right and on the
    left, with EOS as the padding id, which is how most models are set. Mask, ids, weights and positions must be those
    of the rows, and the last trained token must keep its weight although it may be EOS itself.

    Why is this bad: padding that is masked by token id takes the loss from every real EOS, and the model never stops;
    padding with a weight trains the model to write padding; positions that count padding shift the whole row.

    Example: ``labels[labels == pad_token_id] = -100`` with a padding token that is EOS.

    Fix: this is a defect of the collator, not of your data; report it.

    Catalogue: 5, 51, 56
    """
    context.only_tokens()
    rows = list(context.spread("train", NUM_ROWS))
    if not rows:
        raise Skip("there are no training rows")
    context.looked_at(f"{len(rows)} training rows on either side")
    sides: tuple[Literal["left", "right"], ...] = ("right", "left")
    for side in sides:
        faults = _faults(rows, context.tokenizer.eos_id or 0, side)
        if faults:
            yield Finding(
                "padding",
                "error",
                f"padded on the {side}, {len(faults)} of {len(rows)} rows are not what they were, the first: {faults[0]}",
                "luthier/encoding/batches.py",
                "report this: the collator is wrong, not your data",
                measured=len(faults),
                expected=0,
            )


def _faults(rows: Sequence[Row], pad_id: int, side: Literal["left", "right"]) -> list[str]:
    batch = collate(rows, pad_id, side)
    mask_BT = batch.attention_mask_BT.numpy()
    faults = []
    for row, mask, ids, weights, positions in zip(
        rows,
        mask_BT,
        batch.input_ids_BT.numpy(),
        batch.loss_weights_BT.numpy(),
        batch.position_ids_BT.numpy(),
        strict=True,
    ):
        length, real = len(row.input_ids), mask != 0
        if mask.sum() != length:
            faults.append(f"row {row.id} has {length} tokens, and its mask {mask.sum()}")
        elif not np.array_equal(ids[real], row.input_ids):
            faults.append(f"row {row.id} has other ids")
        elif weights[~real].any():
            faults.append(f"row {row.id} has a loss weight on padding")
        elif not np.array_equal(weights[real], np.asarray(row.loss_weights, np.float32)):
            lost = int((weights[real] != np.asarray(row.loss_weights, np.float32)).sum())
            faults.append(f"row {row.id} has other loss weights on {lost} tokens")
        elif not np.array_equal(positions[real], np.arange(length)):
            faults.append(f"row {row.id} has positions that do not count from 0")
    return faults
