"""What checks of the data share: columns of the prepared rows as arrays, and the rows that a check objects to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luthier.check.context import CheckContext
from luthier.records import Finding, Row, Severity, Split
from luthier.rows import Rows, read_batches, token_hashes

_IDS_SHOWN = 5
_CHUNK = 1 << 15  # ids hashed at once: what fits into the processor's cache is three times as fast
_MIX, _BASE = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9  # odd, with bits set all over


@dataclass
class Offenders:
    """How many of the rows looked at a check objects to, and the first five by name."""

    context: CheckContext
    num_rows: int = 0
    count: int = 0
    ids: dict[Split, list[str]] = field(default_factory=dict)

    def add(self, split: Split, ids: pa.Array | Sequence[str], bad: np.ndarray | Sequence[bool]) -> None:
        """Counts some rows of a split; ``bad`` says which of them are objected to, shape (num_rows,)."""
        places = np.flatnonzero(np.asarray(bad, dtype=bool)).tolist()
        self.num_rows += len(ids)
        self.count += len(places)
        for place in places[: max(0, _IDS_SHOWN - sum(map(len, self.ids.values())))]:
            self.ids.setdefault(split, []).append(str(ids[place]))

    @property
    def share(self) -> float:
        """Share of the rows looked at, in [0, 1]."""
        return self.count / self.num_rows if self.num_rows else 0.0

    @property
    def where(self) -> str:
        """Files and row ids."""
        return "; ".join(f"{self.context.place(split)}: {', '.join(ids)}" for split, ids in self.ids.items())

    def finding(
        self, check: str, severity: Severity, what: str, fix: str, most_share: float | None = None
    ) -> Finding:
        """A finding of these rows: of their number, which should be 0, or of their share, if one is allowed."""
        if most_share is None:
            return Finding(check, severity, what, self.where, fix, self.count, 0)
        return Finding(check, severity, what, self.where, fix, round(self.share, 4), f"at most {most_share}")

    def __str__(self) -> str:
        return f"{self.count:,} of {self.num_rows:,} rows ({self.share:.2%})"


def batches(context: CheckContext, *columns: str) -> Iterator[tuple[Split, pa.RecordBatch]]:
    """Those columns of all rows of all splits, about a thousand rows at a time, so that memory stays flat."""
    context.looked_at()
    for split, rows in context.rows.items():
        for batch in read_batches(rows.path, columns):
            yield split, batch


def flat(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Where each row of a list column begins (and the last one ends) in the values of all of them, and these values."""
    return column.offsets.to_numpy(), column.values.to_numpy()


def count(marks: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How many marks are set from each ``begin`` to before each ``end``, int64, shape as theirs.

    With the offsets of a list column ``count(marks, offsets[:-1], offsets[1:])`` is that of each row.
    """
    counted = np.concatenate([[0], np.cumsum(marks)])
    return np.asarray(counted[end] - counted[begin])


def noted(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """Whether each row's ``meta`` holds a name that begins so (``to_rows`` notes there what is odd); bool, shape (num_rows,)."""
    found: np.ndarray = pc.match_substring(batch.column("meta"), f'"{name}').to_numpy(zero_copy_only=False)
    return found


def sampled(context: CheckContext, most: int, what: str = "") -> Iterator[tuple[Split, list[Row]]]:
    """At most so many rows of each split, spread over it; ``what`` says before their number what is looked at."""
    for split in context.rows:
        rows = list(context.spread(split, most))
        context.looked_at(f"{what}{len(rows):,} {split} rows")
        yield split, rows


def row_hashes(rows: Rows) -> np.ndarray:
    """A 64-bit hash of each row's ``input_ids``, int64, shape (num_rows,); comparable within this process only."""
    batches = read_batches(rows.path, ["input_ids"])
    return np.concatenate([np.empty(0, np.int64), *map(token_hashes, batches)])


def text_hashes(rows: Rows, column: str) -> np.ndarray:
    """A 64-bit hash of each row's text in a column, int64, shape (num_rows,); comparable within this process only."""
    parts = [np.empty(0, np.int64)]
    for batch in read_batches(rows.path, [column]):
        parts.append(np.fromiter(map(hash, batch.column(column).to_pylist()), np.int64, batch.num_rows))
    return np.concatenate(parts)


def marked(context: CheckContext, bad: Mapping[Split, np.ndarray]) -> Offenders:
    """The offenders of some splits, by a mask over all rows of each, bool, shape (num_rows,)."""
    found = Offenders(context)
    for split, marks in bad.items():
        if not marks.any():
            found.num_rows += len(marks)
            continue
        start = 0
        for batch in read_batches(context.rows[split].path, ["id"]):
            found.add(split, batch.column("id"), marks[start : start + batch.num_rows])
            start += batch.num_rows
    return found


def ngram_hashes(ids: np.ndarray, length: int) -> np.ndarray:
    """A 64-bit hash of each run of ``length`` ids, uint64, shape (num_ids - length + 1,); always the same numbers.

    Row ends are not known here: runs that reach over one are the caller's to leave out.

    Source: Karp and Rabin 1987, "Efficient randomized pattern-matching algorithms", as a polynomial over mixed ids;
    runs are put together from runs of half the length, so that 13 ids take five products.
    """
    parts = [np.empty(0, np.uint64)]
    for start in range(0, len(ids) - length + 1, _CHUNK):
        parts.append(_hashes_of_runs(ids[start : start + _CHUNK + length - 1], length))
    return np.concatenate(parts)


def _hashes_of_runs(ids: np.ndarray, length: int) -> np.ndarray:
    runs = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_MIX)  # an id of 0 counts as well
    runs ^= runs >> np.uint64(29)
    width, found, have = 1, None, 0  # of ``runs``, and of what is put together so far
    while True:
        if length & width:
            if found is None:
                found = runs
            else:
                found = found[: len(ids) - have - width + 1] * np.uint64(pow(_BASE, width, 1 << 64))
                found += runs[have : have + len(found)]
            have += width
        if 2 * width > length:
            break
        longer = runs[: len(runs) - width] * np.uint64(pow(_BASE, width, 1 << 64))
        longer += runs[width:]
        runs, width = longer, 2 * width
    return np.empty(0, np.uint64) if found is None else found


def whole_ngrams(offsets: np.ndarray, length: int) -> np.ndarray:
    """Which runs of ``length`` ids lie within one row, bool, shape (num_ids - length + 1,).

    Args:
        offsets: Where each row begins, and the last one ends; the first one being 0, shape (num_rows + 1,).
        length: Ids of a run.
    """
    whole = np.ones(max(0, int(offsets[-1]) - length + 1), dtype=bool)
    for back in range(1, length):
        places = offsets[1:-1] - back
        whole[places[(places >= 0) & (places < len(whole))]] = False
    return whole


def values_at(rows: Rows, column: str, indices: np.ndarray) -> list[Any]:
    """A column's values at some rows, in the order of the indices; reads one batch after the other."""
    order = np.argsort(indices, kind="stable")
    found: dict[int, Any] = {}
    start, place = 0, 0
    for batch in read_batches(rows.path, [column]):
        end = place
        while end < len(order) and indices[order[end]] < start + batch.num_rows:
            end += 1
        if end > place:
            wanted = indices[order[place:end]]
            values = batch.column(column).take(pa.array(wanted - start)).to_pylist()
            found.update(zip(wanted.tolist(), values, strict=True))
        start, place = start + batch.num_rows, end
    return [found[index] for index in indices.tolist()]


def num_alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
