"""What checks of the data share: columns of the prepared rows as arrays, and the rows that a check objects to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa

from luthier.check.context import CheckContext
from luthier.records import Split
from luthier.rows import Rows, read_batches

_IDS_SHOWN = 5


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

    def __str__(self) -> str:
        return f"{self.count:,} of {self.num_rows:,} rows ({self.share:.2%})"


def batches(context: CheckContext, *columns: str) -> Iterator[tuple[Split, pa.RecordBatch]]:
    """Those columns of all rows of all splits, about a thousand rows at a time, so that memory stays flat."""
    context.looked_at(f"all {sum(map(len, context.rows.values())):,} rows")
    for split, rows in context.rows.items():
        for batch in read_batches(rows.path, columns):
            yield split, batch


def flat(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Where each row of a list column begins (and the last one ends) in the values of all of them, and these values."""
    return column.offsets.to_numpy(), column.values.to_numpy()


def row_hashes(rows: Rows) -> np.ndarray:
    """A 64-bit hash of each row's ``input_ids``, int64, shape (num_rows,); comparable within this process only."""
    parts = [np.empty(0, np.int64)]
    for batch in read_batches(rows.path, ["input_ids"]):
        offsets, ids = flat(batch.column("input_ids"))
        content, places = ids.tobytes(), (offsets * ids.itemsize).tolist()
        hashes = (hash(content[start:end]) for start, end in pairwise(places))
        parts.append(np.fromiter(hashes, np.int64, batch.num_rows))
    return np.concatenate(parts)


def text_hashes(rows: Rows, column: str) -> np.ndarray:
    """A 64-bit hash of each row's text in a column, int64, shape (num_rows,); comparable within this process only."""
    parts = [np.empty(0, np.int64)]
    for batch in read_batches(rows.path, [column]):
        parts.append(np.fromiter(map(hash, batch.column(column).to_pylist()), np.int64, batch.num_rows))
    return np.concatenate(parts)


def marked(context: CheckContext, split: Split, bad: np.ndarray) -> Offenders:
    """The offenders of one split, by a mask over all of its rows, bool, shape (num_rows,)."""
    found = Offenders(context)
    start = 0
    for batch in read_batches(context.rows[split].path, ["id"]):
        found.add(split, batch.column("id"), bad[start : start + batch.num_rows])
        start += batch.num_rows
    return found
