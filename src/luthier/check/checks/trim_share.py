from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from luthier.check.columns import Offenders, flat
from luthier.check.context import CheckContext
from luthier.records import Finding
from luthier.registry import check
from luthier.rows import read_batches

# Trimming is what a task allows, and some live by it (a whole project as context): worth a note when it is the rule.
MOST_SHARE = 0.5


@check("trim-share")
def trim_share(context: CheckContext) -> Iterator[Finding]:
    """Training rows are as a rule whole.

    What it does: reads the tokens cut from all training rows. A note when over half of the rows lost something; rows
    of other splits are not looked at, since one cut in a long file loses most of that file and should.

    Why is this bad: it need not be. But a ``max_length`` that cuts most rows trains on other text than you think, and
    the cut part may be the question.

    Example: ``max_length`` 512 for conversations of 3,000 tokens.

    Fix: a larger ``data.max_length``, or shorter contexts from the task.

    Catalogue: 2, 17, 18
    """
    rows = context.training_rows()
    max_length = context.recipe.data.max_length
    context.looked_at(f"all {len(rows):,} training rows")
    trimmed, more_than_half = Offenders(context), 0
    for batch in read_batches(rows.path, ["id", "input_ids", "trimmed"]):
        gone = np.array(
            [
                0 if text == "{}" else sum(json.loads(text).values())
                for text in batch.column("trimmed").to_pylist()
            ]
        )
        trimmed.add("train", batch.column("id"), gone > 0)
        more_than_half += int((gone > np.diff(flat(batch.column("input_ids"))[0])).sum())
    if trimmed.share > MOST_SHARE:
        yield trimmed.finding(
            "trim-share",
            "note",
            f"{trimmed} were trimmed to data.max_length {max_length}, "
            f"{more_than_half:,} of them by more than half",
            "raise data.max_length, if what is cut matters",
            MOST_SHARE,
        )
