"""Encoded rows on disk: one Arrow file a split, written in batches and read memory-mapped.

The stages that write rows and those that read them meet here. Shapes: (num_rows,) and (num_tokens,).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.errors import UserError
from luthier.records import Row

BATCH_ROWS = 1000

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_weights", pa.list_(pa.float32())),
        ("span_ids", pa.list_(pa.int16())),
        ("span_names", pa.list_(pa.string())),
        ("num_prompt_tokens", pa.int32()),
        ("target", pa.string()),
        ("target_bytes", pa.int64()),
        ("lossy", pa.bool_()),
        ("trimmed", pa.string()),
        ("meta", pa.string()),
    ]
)
_PER_TOKEN = {"input_ids": np.int32, "loss_weights": np.float32, "span_ids": np.int16}
_JSON = ("trimmed", "meta")


def to_batch(rows: Sequence[Row]) -> pa.RecordBatch:
    """The rows as one Arrow record batch of ``SCHEMA``."""
    columns: list[pa.Array] = []
    for field in SCHEMA:
        values = [getattr(row, field.name) for row in rows]
        if field.name in _PER_TOKEN:
            arrays = [np.asarray(value, dtype=_PER_TOKEN[field.name]) for value in values]
            offsets = np.cumsum([0, *map(len, arrays)])
            if offsets[-1] > np.iinfo(np.int32).max:
                raise ValueError(f"{offsets[-1]} tokens in one batch; write fewer rows at once")
            flat = np.concatenate(arrays) if arrays else np.empty(0, _PER_TOKEN[field.name])
            columns.append(pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(flat)))
        elif field.name in _JSON:
            columns.append(
                pa.array([json.dumps(dict(value), ensure_ascii=False) for value in values], field.type)
            )
        else:
            columns.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


class RowWriter:
    """Writes record batches to an Arrow file, regrouped so that the bytes depend on the rows alone."""

    def __init__(self, path: Path, schema: pa.Schema = SCHEMA) -> None:
        self._writer = pa.ipc.new_file(str(path), schema)
        self._waiting: list[pa.RecordBatch] = []
        self._num_waiting = 0
        self.num_rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds rows behind those written before."""
        self._waiting.append(batch)
        self._num_waiting += batch.num_rows
        self.num_rows += batch.num_rows
        if self._num_waiting >= BATCH_ROWS:
            whole = pa.concat_batches(self._waiting)
            end = whole.num_rows - whole.num_rows % BATCH_ROWS
            for start in range(0, end, BATCH_ROWS):
                self._writer.write_batch(_compact(whole.slice(start, BATCH_ROWS)))
            self._waiting = [_compact(whole.slice(end))]
            self._num_waiting = whole.num_rows - end

    def close(self) -> None:
        """Writes what waits and ends the file."""
        if self._num_waiting:
            self._writer.write_batch(_compact(pa.concat_batches(self._waiting)))
            self._num_waiting = 0
        self._writer.close()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_batches(path: Path, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file one after the other, read into memory that is free again after each.

    Unlike a memory map this keeps resident memory flat however large the file is.

    Args:
        path: Any Arrow file, not only of ``SCHEMA``.
        columns: Names of those to read; none is all.
    """
    options = pa.ipc.IpcReadOptions()
    if columns:
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
            options = pa.ipc.IpcReadOptions(
                included_fields=[reader.schema.get_field_index(c) for c in columns]
            )
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file, options=options) as reader:
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


def token_hashes(batch: pa.RecordBatch) -> np.ndarray:
    """A 64-bit hash of each row's ``input_ids``, int64, shape (num_rows,); comparable within this process only."""
    column = batch.column("input_ids")
    content, ends = column.values.to_numpy().tobytes(), (4 * column.offsets.to_numpy()).tolist()
    return np.fromiter((hash(content[a:b]) for a, b in pairwise(ends)), np.int64, batch.num_rows)


class Rows(Sequence[Row]):
    """The encoded rows of one split, memory-mapped: opening costs nothing, reading a row copies no tokens.

    Picklable (the file is opened anew), so that it can go to worker processes.

    Args:
        path: ``RunFolder.rows(split)``.

    Raises:
        UserError: Missing or damaged file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self._batches = [self._reader.get_batch(i) for i in range(self._reader.num_record_batches)]
        except FileNotFoundError as error:
            raise UserError(
                f"{self.path.name} is not there yet", str(path), "run `luthier prepare`"
            ) from error
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{self.path.name} is damaged: {error}",
                str(path),
                "delete the folder data/ and run `luthier prepare`",
            ) from error
        if not self._reader.schema.equals(SCHEMA):
            raise UserError(
                f"{self.path.name} has other columns than this version writes",
                str(path),
                "delete the folder data/ and run `luthier prepare`",
            )
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._arrays: dict[int, dict[str, tuple[np.ndarray, np.ndarray]]] = {}

    def __reduce__(self) -> tuple[type[Rows], tuple[Path]]:
        return Rows, (self.path,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.row(i) for i in range(*index.indices(len(self)))]
        return self.row(index)

    def __iter__(self) -> Iterator[Row]:
        return (self.row(i) for i in range(len(self)))

    def row(self, index: int) -> Row:
        """One row; its ids, weights and span ids are read-only numpy views into the file, shape (num_tokens,).

        Raises:
            IndexError: No such row.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        place = index - int(self._starts[number])
        batch = self._batches[number]
        if number not in self._arrays:
            self._arrays[number] = {name: _flat(batch.column(name)) for name in _PER_TOKEN}
        values: dict[str, Any] = {}
        for field in SCHEMA:
            if field.name in _PER_TOKEN:
                offsets, flat = self._arrays[number][field.name]
                values[field.name] = flat[offsets[place] : offsets[place + 1]]
            else:
                value = batch.column(field.name)[place].as_py()
                values[field.name] = json.loads(value) if field.name in _JSON else value
        return Row(**values)

    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64, shape (num_rows,)."""
        return np.concatenate([np.empty(0, np.int64), *(_lengths(batch) for batch in self._batches)])

    def num_trained(self) -> np.ndarray:
        """Tokens with a weight of each row, int64, shape (num_rows,); their sum is the split's."""
        return np.concatenate([np.empty(0, np.int64), *(_num_trained(batch) for batch in self._batches)])

    def labels(self) -> np.ndarray | None:
        """Labels of rows that have any: int64, shape (num_rows,), or with several (num_rows, num_classes); None without."""
        if not len(self) or "label" not in self.row(0).meta:
            return None
        parts = [
            np.array([json.loads(meta)["label"] for meta in batch.column("meta").to_pylist()])
            for batch in self._batches
        ]
        labels: np.ndarray = np.concatenate(parts).astype(np.int64)
        return labels

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column of ``SCHEMA``, zero-copy; ``.to_pylist()`` makes Python values of it."""
        return pa.chunked_array([batch.column(name) for batch in self._batches], SCHEMA.field(name).type)


def _compact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A copy without what a slice drags along: the rest of its buffers in memory, and slack bytes in the file."""
    return batch.take(pa.array(np.arange(batch.num_rows)))


def _flat(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    return column.offsets.to_numpy(), column.values.to_numpy()


def _lengths(batch: pa.RecordBatch) -> np.ndarray:
    return np.diff(_flat(batch.column("input_ids"))[0]).astype(np.int64)


def _num_trained(batch: pa.RecordBatch) -> np.ndarray:
    offsets, weights = _flat(batch.column("loss_weights"))
    counted = np.concatenate([[0], np.cumsum(weights != 0)])
    return np.diff(counted[offsets]).astype(np.int64)
