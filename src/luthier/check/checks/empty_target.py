from __future__ import annotations

from collections.abc import Iterator

import pyarrow.compute as pc

from luthier.check.columns import Offenders, batches, count, flat
from luthier.check.context import CheckContext, RunContext
from luthier.records import Finding
from luthier.registry import check


@check("empty-target")
def empty_target(context: CheckContext) -> Iterator[Finding]:
    """Every row's target has a visible character.

    What it does: reads the target text of all rows of all splits and looks for empty and white-space-only ones. Where
    the text is that of the trained tokens, rows without any are left to untrained-row.

    Why is this bad: such a row teaches the model to say nothing, or nothing at all; as a rule a wrong column is mapped,
    or answers are missing in the data. Averages over rows are diluted by it.

    Example: ``{"prompt": "Sort this list", "response": ""}``.

    Fix: correct the column mapping in ``data.source`` or ``task``, or take these records out of the source.

    Catalogue: 1
    """
    empty = Offenders(context)
    for split, batch in batches(context, "id", "target", "loss_weights"):
        visible = pc.utf8_length(pc.utf8_trim_whitespace(batch.column("target")))
        bad = visible.to_numpy(zero_copy_only=False) == 0
        if not isinstance(context, RunContext):
            offsets, weights = flat(batch.column("loss_weights"))
            bad &= count(weights != 0, offsets[:-1], offsets[1:]) > 0
        empty.add(split, batch.column("id"), bad)
    if empty.count:
        yield empty.finding(
            "empty-target",
            "error",
            f"{empty} have a target without a visible character",
            context.fix(
                "correct the columns that data.source or task maps, or take these records out of the source",
                "take these rows out, or see which column the answers come from",
            ),
        )
