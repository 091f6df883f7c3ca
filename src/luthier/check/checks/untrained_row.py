from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from luthier.check.columns import Offenders, batches, flat
from luthier.check.context import CheckContext
from luthier.records import Finding
from luthier.registry import check


@check("untrained-row")
def untrained_row(context: CheckContext) -> Iterator[Finding]:
    """Every row has a token that is trained and has something before it.

    What it does: counts, in all rows of all splits, the tokens with a loss weight at position 1 or later; the first
    token of a row has nothing that it could be predicted from.

    Why is this bad: the row costs time and teaches nothing. A run of such rows has a loss of 0 or NaN and may well end
    as a success.

    Example: a chat template whose answer marker the masking does not find, so that every weight is 0.

    Fix: look at one of the rows with ``luthier show``; the task gives no span a weight, or trimming took it.

    Catalogue: 2, 3, 4, 12
    """
    context.only_tokens()
    untrained = Offenders(context)
    for split, batch in batches(context, "id", "loss_weights"):
        offsets, weights = flat(batch.column("loss_weights"))
        counted = np.concatenate([[0], np.cumsum(weights != 0)])
        behind_first = np.minimum(offsets[:-1] + 1, offsets[1:])
        untrained.add(split, batch.column("id"), counted[offsets[1:]] == counted[behind_first])
    if untrained.count:
        yield Finding(
            "untrained-row",
            "error",
            f"{untrained} have no trained token behind their first token",
            untrained.where,
            context.fix(
                "look at one of them with `luthier show`: the task gives no span a weight, or trimming took it",
                "drop them, and see why: the answer was cut off, or the mask did not find it",
            ),
            measured=untrained.count,
            expected=0,
        )
