from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from luthier.check.columns import Offenders, batches, flat
from luthier.check.context import CheckContext, RunContext
from luthier.records import Finding
from luthier.registry import check

# A pattern is matched in Python, about 20 us a row: two seconds at most.
NUM_PATTERN_ROWS = 100_000


@check("stop-token")
def stop_token(context: CheckContext) -> Iterator[Finding]:
    """Every row's trained part ends with what ends a generation.

    What it does: in all rows of all splits, the last trained token is one of the tokenizer's stop ids; or the task's
    stop pattern matches at the end of the target, up to its last visible character or beyond. The pattern is tried on
    100,000 rows at most.

    Why is this bad: a model that never sees an end never ends. It writes on until the token limit, and every metric of
    generated text is about something else.

    Example: ``response_template`` without the tokenizer's EOS behind it; padding that is EOS and masked by token id.

    Fix: end the target with the stop token (a control span with weight), or give the task a ``stop_pattern``.

    Catalogue: 5, 6, 13, 16
    """
    context.only_tokens()
    pattern = context.task.stop_pattern if isinstance(context, RunContext) else None
    stop_ids = sorted(context.tokenizer.stop_ids)
    endless = Offenders(context)
    num_tried = 0
    for split, batch in batches(context, "id", "input_ids", "loss_weights", "target"):
        offsets, ids = flat(batch.column("input_ids"))
        _, weights = flat(batch.column("loss_weights"))
        # The last trained token of all before each row's end; of an earlier row if this one has none.
        last = np.maximum.accumulate(np.where(weights != 0, np.arange(len(weights)), -1))
        places = last[offsets[1:] - 1] if len(last) else np.full(batch.num_rows, -1)
        trained = (places >= offsets[:-1]) & (np.diff(offsets) > 0)
        open_ = trained & ~np.isin(ids[places], stop_ids)
        if pattern is not None:
            for row in np.flatnonzero(open_).tolist():
                open_[row] = num_tried < NUM_PATTERN_ROWS and not _ends(batch["target"][row].as_py(), pattern)
                num_tried += 1
        endless.add(split, batch.column("id"), open_)
    if endless.count:
        names = [context.tokenizer.decode([i]) for i in stop_ids]
        ends = f"a stop token ({', '.join(names) or 'this tokenizer has none'})"
        if pattern is not None:
            ends += f" or what the stop pattern {pattern} matches"
        yield Finding(
            "stop-token",
            "error",
            f"{endless} do not end with {ends}",
            endless.where,
            "end the target with the stop token: a control span with a weight, behind the text",
            measured=endless.count,
            expected=0,
        )


def _ends(target: str, pattern: str) -> bool:
    """Whether a generation that wrote the target would have ended by its last visible character or behind it."""
    visible = len(target.rstrip())
    return any(match.end() >= visible for match in re.finditer(pattern, target))
