from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from luthier.check.columns import marked, text_hashes
from luthier.check.context import CheckContext, Skip
from luthier.records import Finding
from luthier.registry import check

# More than half of all answers the same is seldom meant.
MOST_SHARE = 0.5
# With two answers one of them always has half of the rows; a skew of four to one is still usual.
MOST_SHARE_OF_TWO = 0.8


@check("constant-target")
def constant_target(context: CheckContext) -> Iterator[Finding]:
    """No single answer makes up most of the training rows.

    What it does: counts equal target texts over all training rows (64-bit hashes); a warning when one has over 50% of
    them, or over 80% where there are only two answers.

    Why is this bad: always giving that answer is then the easiest way to a low loss, and accuracy looks good without
    anything learned. As a rule the wrong column is the target, or a default stands in for missing answers.

    Example: 9,000 of 10,000 rows with the response ``N/A``.

    Fix: check the column mapping; balance the data, or weight the rare answers.

    Catalogue: 1, 24, 44
    """
    rows = context.rows.get("train")
    if not rows or len(rows) < 2:
        raise Skip("there are fewer than two training rows")
    context.looked_at(f"all {len(rows):,} training rows")
    hashes = text_hashes(rows, "target")
    values, counts = np.unique(hashes, return_counts=True)
    same = marked(context, "train", hashes == values[np.argmax(counts)])
    limit = MOST_SHARE_OF_TWO if len(values) == 2 else MOST_SHARE
    if same.share > limit:
        text = rows.row(int(np.argmax(hashes == values[np.argmax(counts)]))).target
        yield Finding(
            "constant-target",
            "warning",
            f"{same} have the same target {text[:60]!r}; there are {len(values):,} different ones",
            same.where,
            "see whether the right column is the target; else balance the data",
            measured=round(same.share, 4),
            expected=f"at most {limit}",
        )
