"""Rows of JSONL, JSON and CSV files, compressed or not, as a stream. A broken row comes as ``Bad``, in its place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import zstandard

from luthier.errors import UserError


class Bad(NamedTuple):
    """A row that cannot be used: a short kebab-case reason to count by, and what exactly is wrong."""

    reason: str
    detail: str


Rows = Iterator[tuple[int, dict[str, Any] | Bad]]

# How a stream that was cut off or damaged shows itself while it is read.
_BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)
# A JSON array is parsed as a whole, so its text must fit into memory several times over.
_MAX_JSON_BYTES = 1 << 30
# First bytes that no UTF-8 text has.
_NOT_TEXT = {
    b"\x1f\x8b": ("gzip data", "give it the suffix .gz"),
    b"\x28\xb5\x2f\xfd": ("zstd data", "give it the suffix .zst"),
    b"\xff\xfe": ("UTF-16 text", "iconv -f utf-16 -t utf-8 OLD > NEW"),
    b"\xfe\xff": ("UTF-16 text", "iconv -f utf-16 -t utf-8 OLD > NEW"),
}
_BOM = b"\xef\xbb\xbf"


def read_rows(path: str, format: str, max_row_bytes: int) -> Rows:
    """The rows of a text file with their positions: the line that a row begins on, or its number in a JSON array.

    Blank lines are no rows. Rows before a break in a compressed stream are given; the break is ``Bad``.

    Args:
        path: A regular file; ``.gz`` and ``.zst`` are decompressed.
        format: ``jsonl``, ``json`` (one array of objects), ``csv`` or ``tsv`` (a header line, CSV quoting).
        max_row_bytes: A longer row is ``Bad`` and is never held in memory. Not for ``json``.

    Raises:
        UserError: The file cannot be read, is no text, is no JSON array, or has no usable CSV header.
    """
    position = 0
    try:
        with _open(path) as stream:
            _refuse_binary(stream, path)
            if format == "jsonl":
                rows = _jsonl_rows(stream, max_row_bytes)
            elif format == "json":
                rows = _json_rows(stream, path)
            else:
                rows = _csv_rows(stream, path, "\t" if format == "tsv" else ",", max_row_bytes)
            for position, row in rows:
                yield position, row
    except _BROKEN as error:
        yield position + 1, Bad("broken-compression", f"what follows is lost: {error}")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: Exception) -> UserError:
    """The error for a file that the system or a library will not read."""
    problem = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
    return UserError(
        f"the file cannot be read: {problem}", path, "check that it is whole and that you may read it"
    )


def is_array(path: str) -> bool:
    """Whether the text of a ``.json`` file begins with ``[``; many that are called so hold an object a line."""
    try:
        with _open(path) as stream:
            return _peek(stream).removeprefix(_BOM).lstrip().startswith(b"[")
    except OSError as error:
        raise unreadable(path, error) from error


def looks_binary(path: str) -> bool:
    """Whether the first kilobytes hold a NUL, which text does not."""
    with _open(path) as stream:
        return b"\0" in _peek(stream)


class _ZstdReader(io.RawIOBase):
    """A zstd file as a stream, which raises where zstandard's own reader takes a cut-off frame for the end."""

    # Small, because a block of 4 bytes may stand for 128 KiB: what one step decompresses stays under 2 MiB.
    _STEP_BYTES = 64

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._file.read(self._STEP_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the zstd data ends in the middle of a frame")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: str) -> BinaryIO:
    if path.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdReader(path), 1 << 16)
    return open(path, "rb")


def _peek(stream: BinaryIO) -> bytes:
    try:
        return cast(io.BufferedReader, stream).peek(4096)[:4096]
    except _BROKEN:
        return b""  # comes again, and is counted, when the rows are read


def _refuse_binary(stream: BinaryIO, path: str) -> None:
    head = _peek(stream)
    for magic, (kind, fix) in _NOT_TEXT.items():
        if head.startswith(magic):
            raise UserError(f"the file holds {kind}, not UTF-8 text", path, fix)


def _lines(stream: BinaryIO, max_bytes: int) -> Iterator[bytes | None]:
    """Lines with their newlines; None for one that is longer than ``max_bytes``, which is passed over in pieces."""
    first = True
    while line := stream.readline(max_bytes + 1):
        if first:
            line, first = line.removeprefix(_BOM), False
        if len(line) > max_bytes and not line.endswith(b"\n"):
            while (rest := stream.readline(1 << 16)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield line


def _jsonl_rows(stream: BinaryIO, max_row_bytes: int) -> Rows:
    for number, line in enumerate(_lines(stream, max_row_bytes), 1):
        if line is None:
            yield (
                number,
                Bad("row-too-large", f"the line has more than {max_row_bytes:,} bytes (max_row_bytes)"),
            )
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield number, Bad("not-utf8", f"byte {error.start + 1} of the line: {error.reason}")
        except RecursionError:
            yield number, Bad("bad-json", "nested too deeply")
        except ValueError as error:  # also a number with more digits than Python converts
            yield number, Bad("bad-json", str(error))
        else:
            yield number, _object(row, b"\\ud" in line or b"\\uD" in line)


def _json_rows(stream: BinaryIO, path: str) -> Rows:
    data = stream.read(_MAX_JSON_BYTES + 1)
    fix = "write an array of objects, or JSONL (an object a line) with format: jsonl"
    if len(data) > _MAX_JSON_BYTES:
        raise UserError(
            f"a JSON array is loaded whole, and this one has more than {_MAX_JSON_BYTES:,} bytes", path, fix
        )
    if not data.strip():
        return
    escaped = b"\\ud" in data or b"\\uD" in data
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON: {error}", path, fix) from error
    if not isinstance(rows, list):
        raise UserError(f"the file holds one {_kind(rows)}, not an array", path, fix)
    for number, row in enumerate(rows, 1):
        yield number, _object(row, escaped)


def _object(row: Any, escaped_surrogates: bool) -> dict[str, Any] | Bad:
    if not isinstance(row, dict):
        return Bad("not-an-object", f"the row is a JSON {_kind(row)}")
    if escaped_surrogates:  # half of a pair is a string that no UTF-8 file, and so no tokenizer, can hold
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return Bad("lone-surrogate", "an escape such as \\ud800 without its other half")
    return row


def _kind(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


class _RowTooLarge(csv.Error):
    pass


class _CsvLines:
    """Feeds ``csv.reader`` with lines, and watches the row that it is reading.

    An iterator that can go on after it raised, which a generator cannot. ``num_bytes`` and ``not_utf8`` are of the
    current row; the loop that reads the rows resets them.
    """

    def __init__(self, stream: BinaryIO, max_row_bytes: int) -> None:
        self._lines = _lines(stream, max_row_bytes)
        self._max_row_bytes = max_row_bytes
        self.number = 0
        self.num_bytes = 0
        self.not_utf8 = False

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self.num_bytes += len(line or b"")
        if line is None or self.num_bytes > self._max_row_bytes:
            raise _RowTooLarge(
                f"the row has more than {self._max_row_bytes:,} bytes (max_row_bytes), or a quote is not closed"
            )
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError:
            self.not_utf8 = True  # the row is read to its end, so that the next one begins where it should
            return line.decode("utf-8", "surrogateescape")


def _csv_rows(stream: BinaryIO, path: str, delimiter: str, max_row_bytes: int) -> Rows:
    # A limit of the whole process, only ever widened; the size of rows is watched by _CsvLines.
    csv.field_size_limit(max(csv.field_size_limit(), max_row_bytes))
    lines = _CsvLines(stream, max_row_bytes)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        first, lines.num_bytes, lines.not_utf8 = lines.number + 1, 0, False
        problem = None
        last = first
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = Bad("row-too-large" if isinstance(error, _RowTooLarge) else "bad-csv", str(error))
            last = (
                lines.number
            )  # a quote that is never closed swallows good rows: each line that is lost counts
        else:
            if not cells:
                continue
            if lines.not_utf8:
                problem = Bad("not-utf8", "the row has bytes that are not UTF-8")
        if header is None:
            header = _header(problem or cells, path)
        elif problem:
            for number in range(first, last + 1):
                yield number, problem
        elif len(cells) != len(header):
            yield first, Bad("wrong-field-count", f"{len(cells)} fields, but the header has {len(header)}")
        else:
            yield first, dict(zip(header, cells, strict=True))


def _header(cells: list[str] | Bad, path: str) -> list[str]:
    fix = "the first line must hold the names of the columns, in UTF-8"
    if isinstance(cells, Bad):
        raise UserError(f"the header cannot be read: {cells.detail}", path, fix)
    if any("\0" in cell for cell in cells):
        raise UserError(
            "the file is binary: its first line holds NUL bytes", path, "name a CSV file in UTF-8"
        )
    if twice := sorted({cell for cell in cells if cells.count(cell) > 1}):
        raise UserError(
            f"the column {twice[0]!r} stands twice in the header", path, "give each column its own name"
        )
    return cells
