from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from luthier.check.columns import Offenders, marked, values_at
from luthier.check.context import CheckContext, Skip
from luthier.records import Finding
from luthier.registry import check
from luthier.rows import Rows

# Tukey 1977 calls "far out" what lies three interquartile ranges outside of the quartiles. Lengths are skewed, so it is
# done on their logarithms: of log-normal lengths one in 400,000 is far out. Where nearly all are equally long, a factor.
RANGES = 3.0
SMALLEST_FACTOR = 8.0
# Each token counts the same, so rows that hold a tenth of all trained tokens have a tenth of the gradient.
MOST_TOKENS, WORTH_A_NOTE = 0.1, 0.01
# Short answers are usual among long ones; the same one in most of them is a stand-in for a missing answer.
MOST_SHORT, MOST_OF_THEM = 0.01, 0.5
FEWEST_ROWS = 30
_NUM_TEXTS = 10_000


@check("target-length")
def target_length(context: CheckContext) -> Iterator[Finding]:
    """No target is far longer or far shorter than the rest.

    What it does: counts the trained tokens of all training rows and looks for rows that are far out of the quartiles of
    their logarithms (Tukey's outer fences, and a factor of eight at least). A warning when such long rows hold 10% of all
    trained tokens, or when over 1% of the rows are such short ones and most of these say the same; a note when long rows
    hold 1%, or short ones are over 1% of the rows.

    Why is this bad: the loss is a mean over tokens, so a few endless targets (a pasted log, a file without line ends)
    outweigh hundreds of rows. Short ones among long ones are as a rule what stands for a missing answer.

    Example: ``nan`` where a CSV had no answer; one answer of 30,000 tokens that holds the whole web page.

    Fix: take them out, or cut them at the source.

    Catalogue: 1, 30
    """
    context.only_tokens()
    rows = context.training_rows(FEWEST_ROWS)
    lengths = rows.num_trained()
    trained = lengths[lengths > 0]
    if len(trained) < FEWEST_ROWS:
        raise Skip(f"fewer than {FEWEST_ROWS} training rows have a trained token")
    context.looked_at(f"the trained tokens of all {len(rows):,} training rows")
    usual = _Usual.of(trained)
    long = marked(context, {"train": lengths > usual.most})
    if long.count:
        yield from _long(long, lengths[lengths > usual.most], int(trained.sum()), usual)
    few = (lengths > 0) & (lengths < usual.fewest)
    short = marked(context, {"train": few})
    if short.share > MOST_SHORT:
        yield from _short(rows, short, np.flatnonzero(few), usual)


@dataclass(frozen=True)
class _Usual:
    """Lengths that are not far out: the median, the fewest and the most trained tokens."""

    median: float
    fewest: float
    most: float

    @classmethod
    def of(cls, lengths: np.ndarray) -> _Usual:
        """From the lengths of all targets, each over 0."""
        low, median, high = np.percentile(np.log(lengths), (25, 50, 75))
        reach = max(RANGES * (high - low), np.log(SMALLEST_FACTOR))
        return cls(float(np.exp(median)), float(np.exp(low - reach)), float(np.exp(high + reach)))


def _long(long: Offenders, lengths: np.ndarray, num_trained: int, usual: _Usual) -> Iterator[Finding]:
    share = float(lengths.sum() / num_trained)
    if share < WORTH_A_NOTE:
        return
    yield Finding(
        "target-length",
        "warning" if share > MOST_TOKENS else "note",
        f"{long} have targets of over {usual.most:,.0f} tokens, up to {lengths.max():,}, where half of all have "
        f"{usual.median:,.0f} at most: they hold {share:.2%} of all trained tokens",
        long.where,
        "take these rows out, or cut their targets at the source",
        measured=round(share, 4),
        expected=f"at most {MOST_TOKENS}",
    )


def _short(rows: Rows, short: Offenders, places: np.ndarray, usual: _Usual) -> Iterator[Finding]:
    texts = values_at(rows, "target", places[:: -(-len(places) // _NUM_TEXTS)])
    text, count = Counter(text.strip().casefold() for text in texts).most_common(1)[0]
    if not text:
        return  # check empty-target says so
    same = count / len(texts)
    stand_in = same > MOST_OF_THEM
    said = f", and {same:.0%} of these say {text[:40]!r}" if stand_in else ""
    yield short.finding(
        "target-length",
        "warning" if stand_in else "note",
        f"{short} have targets of under {usual.fewest:,.1f} tokens, where half of all have {usual.median:,.0f} and "
        f"more{said}",
        "take rows without an answer out at the source"
        if stand_in
        else "see whether these answers are whole",
        MOST_SHORT,
    )
