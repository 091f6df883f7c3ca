"""How rows begin and end: what checks of stop tokens, BOS and truncation share.

Shapes: (num_rows,) of one split, unless said otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa

from luthier.check.columns import count, flat, noted
from luthier.check.context import CheckContext, RunContext
from luthier.records import Split
from luthier.rows import Rows, read_batches

# A pattern is matched in Python, about 20 us a row: two seconds at most.
NUM_PATTERN_ROWS = 100_000
# Fewer rows of one length than these are chance.
FEWEST_CUT = 5
# Lengths of texts spread out: where rows are cut, the longest length has many times the rows of those just below it.
PILE = 5


@dataclass(frozen=True, slots=True)
class RowEnds:
    """The ends of all rows of a split.

    Attributes:
        lengths: Tokens.
        trained: Whether any token is trained.
        stopped: Whether the last trained token is a stop id (or the task's stop pattern matches there).
        last_id: The last trained token, -1 without one.
        next_id: The token behind it in the row, -1 without one.
        has_stop: Whether a stop id stands anywhere in the row.
        stop_inside: Whether one stands before the last token.
        trained_stop: Whether one is trained anywhere in it.
        whole: Whether every token behind the first is trained, stop ids aside, which some collators leave out.
        first_id: The first token, -1 without one.
        mislabelled: Whether labels are other tokens than the row's, so that nothing follows from where they end.
    """

    lengths: np.ndarray
    trained: np.ndarray
    stopped: np.ndarray
    last_id: np.ndarray
    next_id: np.ndarray
    has_stop: np.ndarray
    stop_inside: np.ndarray
    trained_stop: np.ndarray
    whole: np.ndarray
    first_id: np.ndarray
    mislabelled: np.ndarray


# A look at ten million tokens takes a second, and several checks ask.
_known: WeakKeyDictionary[Rows, dict[Any, RowEnds]] = WeakKeyDictionary()


def row_ends(context: CheckContext) -> dict[Split, RowEnds]:
    """The ends of all rows of all splits; of each file they are found once."""
    context.looked_at()
    stop_ids = context.tokenizer.stop_ids
    pattern = context.task.stop_pattern if isinstance(context, RunContext) else None
    found: dict[Split, RowEnds] = {}
    for split, rows in context.rows.items():
        known = _known.setdefault(rows, {})
        if (stop_ids, pattern) not in known:
            known[stop_ids, pattern] = _read(rows, np.array(sorted(stop_ids), dtype=np.int64), pattern)
        found[split] = known[stop_ids, pattern]
    return found


def _read(rows: Rows, stops: np.ndarray, pattern: str | None) -> RowEnds:
    parts: list[dict[str, np.ndarray]] = []
    num_tried = 0
    columns = ["input_ids", "loss_weights", "meta", *(["target"] if pattern is not None else [])]
    for batch in read_batches(rows.path, columns):
        part = _ends(batch, stops)
        if pattern is not None:
            for row in np.flatnonzero(part["trained"] & ~part["stopped"]).tolist():
                if num_tried == NUM_PATTERN_ROWS:
                    part["stopped"][row] = True
                    continue
                part["stopped"][row] = _ends_by(batch["target"][row].as_py(), pattern)
                num_tried += 1
        parts.append(part)
    return RowEnds(
        **({n: np.concatenate([part[n] for part in parts]) for n in parts[0]} if parts else _none())
    )


def _ends(batch: pa.RecordBatch, stops: np.ndarray) -> dict[str, np.ndarray]:
    offsets, ids = flat(batch.column("input_ids"))
    _, weights = flat(batch.column("loss_weights"))
    begin, end = offsets[:-1].astype(np.int64), offsets[1:].astype(np.int64)
    lengths = end - begin
    if not len(ids):
        return {**_none(batch.num_rows), "lengths": lengths}
    weighted, stop = weights != 0, np.isin(ids, stops)
    # The last trained token of all before each row's end; of an earlier row if this one has none.
    last = np.maximum.accumulate(np.where(weighted, np.arange(len(weights)), -1))[np.maximum(end - 1, 0)]
    trained = (last >= begin) & (lengths > 0)
    behind = np.minimum(last + 1, len(ids) - 1)
    first = np.minimum(begin, len(ids) - 1)
    after_first = np.minimum(begin + 1, end)
    return {
        "lengths": lengths,
        "trained": trained,
        "stopped": trained & stop[last],
        "last_id": np.where(trained, ids[last], -1),
        "next_id": np.where(trained & (last + 1 < end), ids[behind], -1),
        "has_stop": count(stop, begin, end) > 0,
        "stop_inside": count(stop, begin, np.maximum(end - 1, begin)) > 0,
        "trained_stop": count(stop & weighted, begin, end) > 0,
        "whole": trained & (count(~weighted & ~stop, after_first, end) == 0),
        "first_id": np.where(lengths > 0, ids[first], -1),
        "mislabelled": noted(batch, "other_labels"),
    }


def _none(num_rows: int = 0) -> dict[str, np.ndarray]:
    """The ends of rows without tokens."""
    numbers = ("lengths", "last_id", "next_id", "first_id")
    flags = ("trained", "stopped", "has_stop", "stop_inside", "trained_stop", "whole", "mislabelled")
    return {n: np.full(num_rows, -1, np.int64) for n in numbers} | {
        n: np.zeros(num_rows, bool) for n in flags
    }


def _ends_by(target: str, pattern: str) -> bool:
    """Whether a generation that wrote the target would have ended by its last visible character or behind it."""
    visible = len(target.rstrip())
    return any(match.end() >= visible for match in re.finditer(pattern, target))


def is_stream(ends: Mapping[Split, RowEnds]) -> bool:
    """Whether rows are blocks of one stream of texts, so that where they begin and end means nothing.

    Nearly all are of one length, begin with any token, and are trained as a whole or hold trained ends inside.
    """
    lengths, whole, inside, first = (
        np.concatenate([getattr(e, name) for e in ends.values()] or [np.empty(0, np.int64)])
        for name in ("lengths", "whole", "trained_stop", "first_id")
    )
    full = lengths == lengths.max(initial=0)
    if full.sum() < max(FEWEST_CUT, 0.95 * len(lengths)):
        return False
    begins_alike = int(np.unique(first, return_counts=True)[1].max()) > 0.5 * len(first)
    return bool((whole | inside).mean() > 0.5 and not begins_alike)


def pile(lengths: np.ndarray) -> int | None:
    """The longest length, if far more rows have it than lengths just below it; None if they thin out towards it."""
    longest = int(lengths.max(initial=0))
    at = int((lengths == longest).sum())
    below = int(((lengths >= 0.9 * longest) & (lengths < longest)).sum())
    usual = below / max(1.0, 0.1 * longest)
    return longest if at >= FEWEST_CUT and at >= PILE * usual else None


def cut_lengths(ends: Mapping[Split, RowEnds]) -> dict[Split, int]:
    """The length at which the rows of each split are cut off; without the splits where they are not.

    Rows pile up there, and they lack their end far oftener than shorter ones. Rows that are all of one length are cut
    too, if most have no end: no texts are all of one length.
    """
    found: dict[Split, int] = {}
    if is_stream(ends):
        return found
    for split, e in ends.items():
        longest = pile(e.lengths)
        if longest is None:
            continue
        known = e.trained & ~e.mislabelled
        at, below = known & (e.lengths == longest), known & (e.lengths < longest)
        endless = float((~e.stopped[at]).mean()) if at.any() else 0.0
        usual = float((~e.stopped[below]).mean()) if below.any() else 0.0
        if endless >= max(0.5, usual + 0.3):
            found[split] = longest
    return found
