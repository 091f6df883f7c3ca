from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from luthier.check.columns import marked
from luthier.check.context import CheckContext, Skip
from luthier.check.row_ends import cut_lengths, pile, row_ends
from luthier.records import Finding, Severity
from luthier.registry import check

# With every second answer a stub, the model learns stubs; up to one in twenty it sees enough whole ones.
ERROR_SHARE = 0.5
WARNING_SHARE = 0.05


@check("truncation")
def truncation(context: CheckContext) -> Iterator[Finding]:
    """Rows are not cut off at one length, which takes the end of their answers.

    What it does: looks in all rows of all splits for many that have exactly the longest length (at least five, and five
    times as many as the lengths just below it have), and compares how many of them lack a stop token at the end of
    what is trained with how many of the shorter ones do. A note, from 5% of all rows a warning, from 50% an error. Rows
    of which nothing trained is left are counted by untrained-row. Rows that are labelled as a whole have no such end:
    there the pile alone is a note, and from 50% a warning.

    Why is this bad: answers are cut in the middle and have no stop token, so the model learns to write half answers; the
    run shows nothing. As a rule ``max_length`` has a default that nobody chose (1024 in TRL).

    Example: 412 rows of exactly 1,024 tokens, of which 409 have no end, where all shorter ones have one.

    Fix: a larger ``max_length``; or cut the beginning of the prompt, or drop rows that are too long.

    Catalogue: 2, 16, 17, 18
    """
    if context.objective == "tags":
        raise Skip("each token has a label of its own here, so that nothing shows where a row should end")
    if context.objective == "classes":
        yield from _classes(context)
        return
    context.only_tokens()
    ends = row_ends(context)
    lengths = cut_lengths(ends)
    if not lengths:
        return
    full = {split: e.lengths == lengths.get(split, -1) for split, e in ends.items()}
    stubs = marked(context, {s: full[s] & e.trained & ~e.stopped & ~e.mislabelled for s, e in ends.items()})
    shorter = sum(int((e.trained & ~full[s]).sum()) for s, e in ends.items() if s in lengths)
    good = sum(int((e.stopped & ~full[s]).sum()) for s, e in ends.items() if s in lengths)
    all_at = sum(int(marks.sum()) for marks in full.values())
    length = max(lengths.values())
    compared = f"of the {shorter:,} shorter ones {good:,} do" if shorter else "no row is shorter"
    severity: Severity = "note"
    if stubs.share >= WARNING_SHARE:
        severity = "error" if stubs.share >= ERROR_SHARE else "warning"
    yield Finding(
        "truncation",
        severity,
        f"{stubs} are cut off at {length:,} tokens: {all_at:,} rows have exactly that length, and {stubs.count:,} of "
        f"them do not end with a stop token, {compared}",
        stubs.where,
        context.fix(
            f"data.max_length over {length}",
            f"a max_length over {length}, or cut the beginning of the prompt, or drop rows that are longer",
        ),
        measured=round(stubs.share, 4),
        expected=0,
    )


def _classes(context: CheckContext) -> Iterator[Finding]:
    lengths = {split: rows.lengths() for split, rows in context.rows.items()}
    context.looked_at()
    joined = np.concatenate([*lengths.values(), np.empty(0, np.int64)])
    length = pile(joined)
    others = np.bincount(joined)[:length].max(initial=0)
    # Texts made by a pattern have few lengths, and many rows of each.
    if length is None or not others or (joined == length).sum() < 2 * others:
        return
    full = marked(context, {split: n == length for split, n in lengths.items()})
    yield Finding(
        "truncation",
        "warning" if full.share >= ERROR_SHARE else "note",
        f"{full} have exactly {length:,} tokens, the longest there is, as rows do that are cut off there",
        full.where,
        f"see whether what decides the label may lie behind token {length}; if so, a larger max_length",
        measured=round(full.share, 4),
    )
