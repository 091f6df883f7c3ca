from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from luthier.check.columns import marked, row_hashes, text_hashes
from luthier.check.context import CheckContext, Skip
from luthier.records import Finding
from luthier.registry import check


@check("split-overlap")
def split_overlap(context: CheckContext) -> Iterator[Finding]:
    """No group and no row stands in two splits.

    What it does: compares 64-bit hashes of the groups and of the token ids of all rows, each pair of splits.

    Why is this bad: what was trained on is remembered, so the evaluation measures memory, chooses the wrong checkpoint
    and promises what new data will not keep.

    Example: two rows of one file, one in the training split and one in the test split.

    Fix: give the records of one file, project or template the same ``group``; look for near duplicates
    (``data.near_duplicates: drop``).

    Catalogue: 22, 23
    """
    if len(context.rows) < 2:
        raise Skip("there is only one split")
    context.looked_at()
    groups = {split: text_hashes(rows, "group") for split, rows in context.rows.items()}
    unknown = np.array([hash("")], np.int64)
    ids = {split: row_hashes(rows) for split, rows in context.rows.items()}
    kinds = (
        (
            "groups",
            groups,
            context.fix(
                "give what belongs together one group in data.source, and prepare anew",
                "split by group, and not by row",
            ),
        ),
        (
            "rows",
            ids,
            context.fix(
                "set data.near_duplicates=drop, or take the copies out of the source",
                "take the copies out of one of the two",
            ),
        ),
    )
    for kind, hashes, fix in kinds:
        for first, second in combinations(context.rows, 2):
            shared = np.setdiff1d(np.intersect1d(hashes[first], hashes[second]), unknown)
            if not len(shared):
                continue
            found = marked(context, {second: np.isin(hashes[second], shared)})
            yield Finding(
                "split-overlap",
                "error",
                f"{len(shared):,} {kind} of the {first} split stand in the {second} split as well: {found}",
                found.where,
                fix,
                measured=len(shared),
                expected=0,
            )
