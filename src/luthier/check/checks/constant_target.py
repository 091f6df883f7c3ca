from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luthier.check.columns import Offenders, text_hashes, values_at
from luthier.check.context import CheckContext
from luthier.records import Finding, Severity
from luthier.registry import check
from luthier.rows import Rows, read_batches

# More than half of all answers the same is seldom meant.
MOST_SHARE = 0.5
# With two answers one of them always has half of the rows; a skew of four to one is still usual.
MOST_SHARE_OF_TWO = 0.8
# A share of a half is known to a quarter of a percent from so many rows.
NUM_ROWS = 50_000
# Answers that are little but numbers differ in what matters: sums, years, scores.
FEWEST_LETTERS = 10


@check("constant-target")
def constant_target(context: CheckContext) -> Iterator[Finding]:
    """No single answer makes up most of the training rows.

    What it does: counts equal target texts over all training rows (64-bit hashes); a warning when one has over 50% of
    them, or over 80% where there are only two answers. The same over up to 50,000 rows for texts that differ in nothing
    but case, white space and punctuation; and a note for sentences that differ in their digits as well.

    Why is this bad: always giving that answer is then the easiest way to a low loss, and accuracy looks good without
    anything learned. As a rule the wrong column is the target, or a default stands in for missing answers.

    Example: 9,000 of 10,000 rows with the response ``N/A``, ``n/a`` or ``N/A.``.

    Fix: check the column mapping; balance the data, or weight the rare answers.

    Catalogue: 1, 24, 44
    """
    context.only_tokens()
    rows = context.training_rows(2)
    context.looked_at(f"all {len(rows):,} training rows")
    exact = text_hashes(rows, "target")
    same, index, num_targets = _most(context, exact, np.arange(len(rows)))
    if same.share > _limit(num_targets):
        if (text := rows.row(index).target).strip():  # else checks empty-target and untrained-row say so
            yield _finding("warning", same, text, num_targets, "have the same target")
        return
    step = -(-len(rows) // NUM_ROWS)
    plain, without_digits = _plain_hashes(rows, step)
    places = np.arange(0, len(rows), step)
    found, index, num_targets = _most(context, plain, places)
    if found.share > _limit(num_targets):
        what = "looked at have, but for case, white space and punctuation, the same target"
        yield _finding("warning", found, rows.row(index).target, num_targets, what)
        return
    found, index, num_targets = _most(context, without_digits, places)
    text = rows.row(index).target
    if found.share > _limit(num_targets) and sum(letter.isalpha() for letter in text) >= FEWEST_LETTERS:
        what = "looked at have, but for digits, the same target"
        yield _finding("note", found, text, num_targets, what)


def _limit(num_targets: int) -> float:
    return MOST_SHARE_OF_TWO if num_targets == 2 else MOST_SHARE


def _finding(severity: Severity, found: Offenders, text: str, num_targets: int, what: str) -> Finding:
    return found.finding(
        "constant-target",
        severity,
        f"{found} {what} {text[:60]!r}; there are {num_targets:,} different ones",
        "see whether the right column is the target; else balance the data",
        _limit(num_targets),
    )


def _most(context: CheckContext, hashes: np.ndarray, places: np.ndarray) -> tuple[Offenders, int, int]:
    """The rows with the most frequent of some hashes, index of the first of these, and how many different ones there are.

    Args:
        context: What is checked.
        hashes: Of the rows looked at, shape (num_looked_at,).
        places: The index of each of them, shape (num_looked_at,).
    """
    values, counts = np.unique(hashes, return_counts=True)
    bad = np.flatnonzero(hashes == values[np.argmax(counts)])
    ids = values_at(context.rows["train"], "id", places[bad[:5]])
    return (
        Offenders(context, len(hashes), len(bad), {"train": ids}),
        int(places[bad[0]]),
        len(values),
    )


def _plain_hashes(rows: Rows, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of each ``step``-th row's target in plain letters and digits, and of the same with all numbers alike."""
    parts: tuple[list[int], list[int]] = ([], [])
    start = 0
    for batch in read_batches(rows.path, ["target"]):
        places = pa.array(np.arange(-start % step, batch.num_rows, step))
        texts = batch.column("target").take(places)
        plain = _plain(texts)
        parts[0].extend(map(hash, plain.to_pylist()))
        parts[1].extend(map(hash, pc.replace_substring_regex(plain, r"\pN+", "0").to_pylist()))
        start += batch.num_rows
    return np.array(parts[0], np.int64), np.array(parts[1], np.int64)


def _plain(texts: pa.Array) -> pa.Array:
    """Letters and digits alone, in lower case, words apart by one space; a text without any as it is."""
    plain = pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\pL\pN]+", " ")
    plain = pc.utf8_trim_whitespace(plain)
    return pc.if_else(pc.equal(plain, ""), texts, plain)
