from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from luthier.check.columns import Offenders, batches, count, flat
from luthier.check.context import CheckContext, RunContext
from luthier.records import Finding, Severity
from luthier.registry import check

# Other people's loops pass over a few such rows; from here on most of the time goes into nothing or batches are empty.
ERROR_SHARE = 0.1


@check("untrained-row")
def untrained_row(context: CheckContext) -> Iterator[Finding]:
    """Every row has a token that is trained and has something before it.

    What it does: counts, in all rows of all splits, the tokens with a loss weight at position 1 or later; the first
    token of a row has nothing that it could be predicted from. Says how many of them have the longest length that
    there is, which means that the prompt fills the room. An error in a recipe's run, which never makes such rows, and
    elsewhere from 10% of the rows; below that a warning.

    Why is this bad: the row costs time and teaches nothing. A run of such rows has a loss of 0 or NaN and may well end
    as a success.

    Example: a chat template whose answer marker the masking does not find, so that every weight is 0.

    Fix: look at one of the rows with ``luthier show``; the task gives no span a weight, or trimming took it.

    Catalogue: 2, 3, 4, 12
    """
    context.only_tokens()
    untrained = Offenders(context)
    longest = max((int(rows.lengths().max(initial=0)) for rows in context.rows.values()), default=0)
    num_full = 0
    for split, batch in batches(context, "id", "loss_weights"):
        offsets, weights = flat(batch.column("loss_weights"))
        bad = count(weights != 0, np.minimum(offsets[:-1] + 1, offsets[1:]), offsets[1:]) == 0
        untrained.add(split, batch.column("id"), bad)
        num_full += int((bad & (np.diff(offsets) == longest)).sum())
    if not untrained.count:
        return
    ours = isinstance(context, RunContext)
    severity: Severity = "error" if ours or untrained.share >= ERROR_SHARE else "warning"
    why = ""
    cut = not ours and num_full > 1
    if cut:
        why = f"; {num_full:,} of them have {longest:,} tokens, the longest length there is: the prompt fills it"
    elif untrained.share == 1:
        why = ": the mask finds no answer in any row"
    yield untrained.finding(
        "untrained-row",
        severity,
        f"{untrained} have no trained token behind their first token{why}",
        context.fix(
            "look at one of them with `luthier show`: the task gives no span a weight, or trimming took it",
            f"a max_length over {longest}, or cut the beginning of the prompt"
            if cut
            else "drop them, and see why: the answer was cut off, or the mask did not find it",
        ),
    )
