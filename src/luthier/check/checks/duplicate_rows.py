from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from luthier.check.columns import marked, row_hashes
from luthier.check.context import CheckContext
from luthier.records import Finding
from luthier.registry import check

# Exact copies of records are dropped when preparing; what is left beyond this comes from rows that lost their difference.
MOST_SHARE = 0.01


@check("duplicate-rows")
def duplicate_rows(context: CheckContext) -> Iterator[Finding]:
    """Training rows differ from each other.

    What it does: compares 64-bit hashes of the token ids of all training rows; a warning from 1% of copies.

    Why is this bad: a row that stands there ten times is trained ten times in each pass: the model learns it by heart,
    and the loss looks better than it is.

    Example: a template that leaves out the column in which the records differ.

    Fix: use all columns that matter in the template; drop copies in the source.

    Catalogue: 22
    """
    rows = context.training_rows()
    context.looked_at(f"all {len(rows):,} training rows")
    hashes = row_hashes(rows)
    first = np.zeros(len(hashes), dtype=bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    copies = marked(context, {"train": ~first})
    if copies.share > MOST_SHARE:
        yield copies.finding(
            "duplicate-rows",
            "warning",
            f"{copies} are copies of an earlier training row, token for token",
            context.fix(
                "use the columns in which the records differ in the task's templates, or drop the copies in the source",
                "drop the copies, or use the columns in which they differ",
            ),
            MOST_SHARE,
        )
