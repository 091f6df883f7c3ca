"""Raw records on disk: what the sources gave, as one Arrow file that chunks are encoded from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from luthier.errors import UserError
from luthier.recipe import build
from luthier.records import Dropped, Record, Split
from luthier.rows import read_batches

_CHUNK_RECORDS = 500
_CHUNK_BYTES = 8_000_000
_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "group", "fields", "split", "neighbourhood")])


class RawWriter:
    """Writes records to the raw Arrow file in chunks that are bounded in records and in bytes."""

    def __init__(self, path: Path) -> None:
        self._writer = pa.ipc.new_file(str(path), _SCHEMA)
        self._rows: list[tuple[str | None, ...]] = []
        self._texts: list[str] = []
        self._num_chars = 0

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def __enter__(self) -> RawWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self,
        record: Record,
        fields: str,
        text: str,
        split: Split | None = None,
        neighbourhood: str | None = None,
    ) -> bool:
        """Takes one record; True when the chunk is full.

        Args:
            record: The record.
            fields: Its fields as JSON.
            text: By which copies of it are found.
            split: Of whose own source it is; None: of the one that is split by shares.
            neighbourhood: What the task wants it to be seen together with.
        """
        self._rows.append((record.id, record.group, fields, split, neighbourhood))
        self._texts.append(text)
        self._num_chars += len(fields)
        return len(self._rows) >= _CHUNK_RECORDS or self._num_chars >= _CHUNK_BYTES

    def flush(self) -> list[str]:
        """Writes the chunk; the texts of its records by which copies are found."""
        texts, rows = self._texts, self._rows
        if rows:
            columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))
        self._texts, self._rows, self._num_chars = [], [], 0
        return texts


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns a system error of a source, apart from those of writing, into one that says so."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot read: {error.strerror or error}", str(error.filename or where), "name what can be read"
        ) from error


def read_records(options: dict[str, Any], where: str) -> Iterator[Record | Dropped]:
    """The records of the source that a recipe key describes."""
    with reading(where):
        yield from build("source", options, where).records()


def column(files: list[Path], name: str) -> Iterator[str]:
    """The values of a text column of several Arrow files, one after the other."""
    for file in files:
        for batch in read_batches(file, [name]):
            yield from batch.column(name).to_pylist()
