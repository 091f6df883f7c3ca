"""Rows of JSONL, JSON, CSV and Parquet files, of folders that ``datasets`` saved, and of data sets on the Hub."""

from __future__ import annotations

import difflib
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources import Source
from luthier.sources.text_rows import Bad, Rows, is_array, looks_binary, read_rows, unreadable

Format = Literal["auto", "jsonl", "json", "csv", "tsv", "parquet"]
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
# Rows of a columnar file are turned into Python objects this many at a time, or fewer when they are large.
_BATCH_ROWS = 1_000
_BATCH_BYTES = 16 << 20
_MOST_OBJECT_BYTES = 64 << 20


class _Input(NamedTuple):
    """One thing to read: its path, or its name on the Hub, and the name that the ids of its rows begin with."""

    name: str
    path: str
    kind: Literal["file", "saved", "hub"]


@source("files")
class Files(Source):
    """Rows of JSONL, JSON, CSV or Parquet files, of a saved data set, or of one on the Hub.

    A row that cannot be used is counted with its file and line. A file of which no row can be used is an error.
    """

    path: str | list[str] | None = None
    """File, glob (``data/**/*.jsonl.gz``), folder that ``datasets.save_to_disk`` wrote, or a list of these. Files that are named twice are read once."""
    hub: str | None = None
    """Name of a data set on the Hugging Face Hub, instead of ``path``; needs ``split`` and, the first time, a network."""
    config: str | None = None
    """Configuration of the Hub data set."""
    revision: str | None = None
    """Commit or tag of the Hub data set; none means the newest."""
    split: str | None = None
    """Split of a saved ``DatasetDict`` or of the Hub data set, such as ``train``."""
    format: Format = "auto"
    """Format of the files; ``auto`` goes by the suffix. Text formats may end in ``.gz`` or ``.zst`` as well."""
    columns: dict[str, str] = {}
    """What tasks see: field name -> column. Empty: every column under its own name."""
    id_column: str | None = None
    """Column with a unique id; without it a row's id is ``file:line``. A repeated id is dropped as ``duplicate-id``."""
    group_column: str | None = None
    """Column with what must never straddle a split (project, author, document); without it each row is its own group."""
    max_row_bytes: int = Field(16 << 20, ge=1)
    """Longest row of JSONL, CSV and TSV; a longer one is dropped as ``row-too-large`` without being held in memory."""

    @model_validator(mode="after")
    def _one_place(self) -> Files:
        if bool(self.path) == bool(self.hub):
            raise ValueError("give one of path and hub")
        if self.hub and not self.split:
            raise ValueError("hub needs split, for example split: train")
        for name in ("config", "revision"):
            if self.path and getattr(self, name):
                raise ValueError(f"{name} is for hub, not for path")
        if "" in ([self.path] if isinstance(self.path, str) else self.path or []):
            raise ValueError("an empty path")
        return self

    def records(self) -> Iterator[Record | Dropped]:
        """The rows of all files, in the order of ``path``; what a glob matches is sorted."""
        ids: set[bytes] = set()
        for item in self.inputs():
            yield from self._records_of(item, ids)

    def fingerprint(self) -> str:
        """Hash of the names and bytes of all files; of a saved or Hub data set, of its Arrow data."""
        total = hashlib.sha256()
        for item in self.inputs():
            if item.kind == "file":
                try:
                    with open(item.path, "rb") as file:
                        digest = hashlib.file_digest(file, "sha256")
                except OSError as error:
                    raise unreadable(item.path, error) from error
            else:
                digest = hashlib.sha256()
                for table in self._dataset(item).with_format("arrow").iter(_BATCH_ROWS):
                    for batch in table.to_batches():
                        digest.update(batch.serialize())
            total.update(f"{item.name}\0{digest.hexdigest()}\n".encode())
        return total.hexdigest()

    def _records_of(self, item: _Input, ids: set[bytes]) -> Iterator[Record | Dropped]:
        num_good = num_bad = 0
        first_bad: Dropped | None = None
        columns: dict[str, None] = {}
        for position, row in self._rows(item):
            place = f"{item.name}:{position}"
            if isinstance(row, dict):
                if not num_good and len(columns) < _BATCH_ROWS:
                    columns.update(dict.fromkeys(row))
                result = self._record(place, row, ids)
            else:
                result = Dropped(place, row.reason, _short(row.detail))
            if isinstance(result, Record):
                num_good += 1
            else:
                num_bad += 1
                first_bad = first_bad or result
            yield result
        if not num_good:
            if columns:
                self._require_columns(list(columns), item.path)
            raise self._nothing_good(item, num_bad, first_bad)

    def _record(self, place: str, row: Mapping[str, Any], ids: set[bytes]) -> Record | Dropped:
        try:
            fields = {field: row[column] for field, column in self.columns.items()} if self.columns else row
            identity = place if self.id_column is None else row[self.id_column]
            group = identity if self.group_column is None else row[self.group_column]
        except KeyError as error:
            return Dropped(place, "missing-column", f"the row has no {error.args[0]!r}")
        if self.id_column is not None:
            if not _is_name(identity):
                return Dropped(place, "bad-id", _short(f"{identity!r} in the column {self.id_column!r}"))
            digest = hashlib.blake2b(str(identity).encode(), digest_size=16).digest()
            if digest in ids:
                return Dropped(place, "duplicate-id", _short(f"{identity!r} stands in an earlier row"))
            ids.add(digest)
        if self.group_column is not None and not _is_name(group):
            return Dropped(place, "bad-group", _short(f"{group!r} in the column {self.group_column!r}"))
        return Record(str(identity), fields, str(group))

    def _nothing_good(self, item: _Input, num_bad: int, first_bad: Dropped | None) -> UserError:
        fix = "mend the file, or leave it out"
        if first_bad is None:
            empty = item.kind == "file" and not os.path.getsize(item.path)
            return UserError("the file is empty" if empty else "there is no row in it", item.path, fix)
        if self._format(item.path) == "jsonl" and item.path.endswith(".json") and _is_object(item.path):
            return UserError("it holds one object, not an array of rows", item.path, "put it between [ and ]")
        what = f"none of the {num_bad:,} rows can be used; the first: {first_bad.reason}: {first_bad.detail}"
        if item.kind == "file" and self._format(item.path) != "parquet" and looks_binary(item.path):
            what = "the file is binary: it holds NUL bytes and no usable row"
        return UserError(what, item.path, fix)

    def _rows(self, item: _Input) -> Rows:
        if item.kind != "file":
            return self._dataset_rows(item)
        format = self._format(item.path)
        if format == "parquet":
            return self._parquet_rows(item.path)
        rows = read_rows(item.path, format, self.max_row_bytes)
        return self._with_header(rows, item.path) if format in ("csv", "tsv") else rows

    def _with_header(self, rows: Rows, path: str) -> Rows:
        """CSV rows; a column that the header lacks is reported at the first row, not counted at each."""
        checked = False
        for position, row in rows:
            if not checked and isinstance(row, dict):
                self._require_columns(list(row), path)
                checked = True
            yield position, row

    def _parquet_rows(self, path: str) -> Rows:
        import pyarrow as pa
        import pyarrow.parquet as pq

        position = 0
        try:
            with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                self._require_columns(file.schema_arrow.names, path)
                groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
                num_bytes = sum(group.total_byte_size for group in groups)
                size = _batch_size(num_bytes, file.metadata.num_rows)
                for batch in file.iter_batches(size, columns=self._wanted() or None):
                    for row in _python_rows(batch):
                        position += 1
                        yield position, row
        # A file with a damaged page is damaged as a whole: what is left of it is no sample that anyone chose.
        except (pa.ArrowException, OSError) as error:
            raise unreadable(f"{path} (after row {position})" if position else path, error) from error

    def _dataset_rows(self, item: _Input) -> Rows:
        dataset = self._dataset(item)
        self._require_columns(dataset.column_names, item.path)
        dataset = dataset.select_columns(self._wanted() or dataset.column_names).with_format(None)
        position = 0
        try:
            for batch in dataset.iter(_batch_size(dataset.data.nbytes, len(dataset))):
                for values in zip(*batch.values(), strict=True):
                    position += 1
                    yield position, dict(zip(batch, values, strict=True))
        except Exception as error:  # whatever a decoder of images, audio or the like raises
            raise UserError(
                f"the data set cannot be read after row {position}: {type(error).__name__}: {error}",
                item.path,
                "name the columns that you need, without images or audio: columns: {text: text}",
            ) from error

    def _dataset(self, item: _Input) -> Any:
        """The ``datasets.Dataset`` of a saved folder or of the Hub; memory-mapped."""
        import datasets

        try:
            if item.kind == "hub":
                return datasets.load_dataset(item.path, self.config, split=self.split, revision=self.revision)
            dataset = datasets.load_from_disk(item.path)
        except (
            Exception
        ) as error:  # every layer below has its own: HTTP clients, file formats, missing splits
            raise UserError(
                f"the data set cannot be loaded: {type(error).__name__}: {_short(str(error), 300)}",
                item.path,
                "check the name, config, split, revision and the network; offline, use path"
                if item.kind == "hub"
                else "save it anew with save_to_disk",
            ) from error
        if isinstance(dataset, datasets.DatasetDict):
            splits = list(dataset)
            if self.split not in dataset:
                problem = (
                    f"there is no split {self.split!r}" if self.split else "the folder holds several splits"
                )
                raise UserError(problem, item.path, f"set split to one of: {', '.join(splits)}")
            return dataset[self.split]
        if self.split is not None and self.split != str(dataset.split):
            raise UserError(
                f"the folder holds one data set, not a split {self.split!r}", item.path, "leave out split"
            )
        return dataset

    def _wanted(self) -> list[str]:
        """The columns to read; none: all."""
        if not self.columns:
            return []
        return list(
            dict.fromkeys([*self.columns.values(), *filter(None, (self.id_column, self.group_column))])
        )

    def _require_columns(self, present: Sequence[str], path: str) -> None:
        for name in present:
            if present.count(name) > 1:
                raise UserError(f"the column {name!r} stands twice", path, "give each column its own name")
        keys = [(f"columns.{field}", column) for field, column in self.columns.items()]
        keys += [(key, column) for key in ("id_column", "group_column") if (column := getattr(self, key))]
        for key, column in keys:
            if column in present:
                continue
            near = difflib.get_close_matches(column, present, n=1)
            shown = ", ".join(map(repr, present[:20])) + (", ..." if len(present) > 20 else "")
            raise UserError(
                f"there is no column {column!r} ({key}); the columns are: {_short(shown, 1000)}",
                path,
                f"did you mean {near[0]!r}?" if near else f"set {key} to one of the columns",
            )

    def inputs(self) -> list[_Input]:
        """What there is to read, each with the name that the ids of its rows begin with."""
        if self.hub is not None:
            if os.path.exists(self.hub):
                raise UserError(
                    f"{self.hub} is a local path, not a name on the Hub", self.hub, f"path: {self.hub}"
                )
            return [_Input(f"{self.hub}/{self.split}", self.hub, "hub")]
        found: dict[str, str] = {}  # resolved path -> path as it was named
        for pattern in [self.path] if isinstance(self.path, str) else self.path or []:
            for path in _matches(os.path.expanduser(pattern)):
                found.setdefault(os.path.realpath(path), os.path.abspath(path))
        if self.split and not any(os.path.isdir(path) for path in found.values()):
            raise UserError(
                "split is for saved data sets and the Hub, not for files", str(self.path), "leave out split"
            )
        top = os.path.commonpath([os.path.dirname(path) for path in found.values()])
        return [
            _Input(_printable(os.path.relpath(path, top)), path, "saved" if os.path.isdir(path) else "file")
            for path in found.values()
        ]

    def _format(self, path: str) -> Format:
        if self.format != "auto":
            return self.format
        suffix = Path(path.removesuffix(".gz").removesuffix(".zst")).suffix.lower()
        if suffix not in _SUFFIXES:
            known = ", ".join(_SUFFIXES)
            raise UserError(
                f"the suffix {suffix!r} tells no format ({known})",
                path,
                "set format, for example format: jsonl",
            )
        if suffix == ".json" and not is_array(path):
            return "jsonl"
        return _SUFFIXES[suffix]


def _is_object(path: str) -> bool:
    """Whether a small file is a JSON object that goes over several lines."""
    if os.path.getsize(path) > _MOST_OBJECT_BYTES:
        return False
    try:
        return isinstance(json.loads(Path(path).read_bytes()), dict)
    except (OSError, ValueError, RecursionError):
        return False


def _matches(pattern: str) -> list[str]:
    """The files or saved data sets that a path or glob stands for, sorted; never none."""
    if os.path.isfile(pattern) or _is_saved(pattern):
        return [pattern]
    if os.path.isdir(pattern):
        raise UserError(
            "this is a folder, but not one that datasets.save_to_disk wrote",
            pattern,
            f"name its files with a glob: {pattern.rstrip('/')}/*.jsonl",
        )
    if os.path.lexists(pattern):
        raise UserError(
            "this is no regular file, or you may not read it", pattern, "name a file that you may read"
        )
    matches = sorted(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p) or _is_saved(p))
    if not matches:
        folder = os.path.dirname(pattern)
        near = difflib.get_close_matches(os.path.basename(pattern), _names(folder), n=1)
        raise UserError(
            f"no file matches {pattern}" if glob.has_magic(pattern) else f"there is no file {pattern}",
            pattern,
            f"did you mean {os.path.join(folder, near[0])}?"
            if near
            else f"paths are relative to {os.getcwd()}",
        )
    return matches


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder or "."))
    except OSError:
        return []


def _is_saved(path: str) -> bool:
    return any(
        os.path.isfile(os.path.join(path, name)) for name in ("dataset_dict.json", "dataset_info.json")
    )


def _python_rows(batch: Any) -> Iterator[dict[str, Any] | Bad]:
    """The rows of an Arrow record batch; one by one where a value does not convert, so that only its row is lost."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = [_python_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
    yield from rows


def _python_row(batch: Any) -> dict[str, Any] | Bad:
    try:
        row: dict[str, Any] = batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return Bad("not-utf8", str(error))
    except (ValueError, OverflowError) as error:
        return Bad("bad-value", str(error))
    return row


def _batch_size(num_bytes: int, num_rows: int) -> int:
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * num_rows // max(1, num_bytes)))


def _is_name(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""


def _short(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _printable(path: str) -> str:
    """The path with ``/``, and with bytes that are not UTF-8 written out, so that it can stand in any file."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").replace(os.sep, "/")
