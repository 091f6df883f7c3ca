"""Rows of files: what is kept, what is dropped where, and what is refused. Every format, and hostile input."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard
from pydantic import ValidationError

from luthier import registry
from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.sources.files import Files

ROWS = [{"text": f"row {i} é\n", "n": i, "tags": ["a", {"b": None}]} for i in range(5)]


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read(path: object, **options: Any) -> tuple[list[Record], list[tuple[str, str]]]:
    """The records, and (id, reason) of what was dropped."""
    everything = list(Files(path=path if isinstance(path, list) else str(path), **options).records())
    return (
        [r for r in everything if isinstance(r, Record)],
        [(r.id, r.reason) for r in everything if isinstance(r, Dropped)],
    )


def write_csv(delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["text", "n"])
    writer.writerows([row["text"], row["n"]] for row in ROWS)
    return out.getvalue().encode()


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv"])
def test_each_text_format_gives_the_rows_that_were_written(tmp_path: Path, suffix: str, packed: str) -> None:
    plain = {
        ".jsonl": jsonl(ROWS),
        ".ndjson": jsonl(ROWS),
        ".json": json.dumps(ROWS, indent=2).encode(),
        ".csv": write_csv(","),
        ".tsv": write_csv("\t"),
    }[suffix]
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packed]
    records, dropped = read(write(tmp_path / f"rows{suffix}{packed}", pack(b"\xef\xbb\xbf" + plain)))
    assert not dropped
    texts = suffix in (".csv", ".tsv")
    assert [r.fields for r in records] == [
        {"text": row["text"], "n": str(row["n"])} if texts else row for row in ROWS
    ]
    # A CSV row here spans two lines, after a header: its id is the line that it begins on.
    assert [r.id for r in records] == [
        f"rows{suffix}{packed}:{2 * i + 2 if texts else i + 1}" for i in range(5)
    ]
    assert [r.group for r in records] == [r.id for r in records]


def test_json_suffix_with_an_object_a_line_is_jsonl(tmp_path: Path) -> None:
    assert len(read(write(tmp_path / "rows.json", jsonl(ROWS)))[0]) == 5


def test_parquet_and_saved_data_sets(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    datasets.disable_progress_bars()
    rows = [{"text": row["text"], "n": row["n"]} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=2)
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": data, "test": data.select([3])}).save_to_disk(tmp_path / "splits")

    for path in ("rows.parquet", "saved"):
        records, dropped = read(tmp_path / path)
        assert not dropped
        assert [(r.id, r.fields) for r in records] == [(f"{path}:{i + 1}", row) for i, row in enumerate(rows)]
        records, _ = read(tmp_path / path, columns={"code": "text"}, group_column="n")
        assert [(r.fields, r.group) for r in records] == [({"code": r["text"]}, str(r["n"])) for r in rows]
        with pytest.raises(UserError, match="did you mean 'text'"):
            read(tmp_path / path, columns={"code": "txt"})
    assert [r.fields["n"] for r in read(tmp_path / "splits", split="test")[0]] == [3]
    for split in (None, "eval"):
        with pytest.raises(UserError, match="train, test"):
            read(tmp_path / "splits", split=split)
    with pytest.raises(UserError, match="leave out split"):
        read(tmp_path / "rows.parquet", split="train")

    before = Files(path=str(tmp_path / "saved")).fingerprint()
    data.map(lambda row: {"n": row["n"] + 1}).save_to_disk(tmp_path / "changed" / "saved")
    assert Files(path=str(tmp_path / "saved")).fingerprint() == before
    assert Files(path=str(tmp_path / "changed" / "saved")).fingerprint() != before

    # A file that is damaged behind its intact footer is refused, not read in part.
    damaged = bytearray((tmp_path / "rows.parquet").read_bytes())
    damaged[4:60] = bytes(56)
    with pytest.raises(UserError, match="cannot be read"):
        read(write(tmp_path / "damaged.parquet", bytes(damaged)))


def test_a_parquet_row_with_bad_utf8_is_dropped_alone(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    offsets = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 2, 3, 5)))
    text = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"ok\xffok"))
    pq.write_table(pa.table({"text": text}), tmp_path / "rows.parquet")
    records, dropped = read(tmp_path / "rows.parquet")
    assert [r.id for r in records] == ["rows.parquet:1", "rows.parquet:3"]
    assert dropped == [("rows.parquet:2", "not-utf8")]


def test_each_bad_jsonl_row_is_dropped_in_its_place(tmp_path: Path) -> None:
    good = b'{"text": "x"}'
    lines = {
        "bad-json": [
            b"{oops}",
            b"[" * 100_000,
            b'{"text": ' + b"9" * 5000 + b"}",
            b"\0",
            b'{"text": "x"} {}',
        ],
        "not-an-object": [b"[1]", b'"text"', b"null", b"1"],
        "not-utf8": [b'{"text": "\xff"}'],
        "lone-surrogate": [b'{"text": "x", "more": ["\\ud83d"]}', b'{"text": "\\uDC00"}'],
        "missing-column": [b'{"txt": "x"}', b"{}"],
        "row-too-large": [b'{"text": "' + b"x" * 200_000 + b'"}'],
    }
    content, expected = [good], []
    for reason, bad in lines.items():
        for line in bad:
            content += [line, b"", good]
            expected.append((f"rows.jsonl:{len(content) - 2}", reason))
    content.append(
        b'{"text": "\\ud83d\\ude00"}'
    )  # a whole pair is an emoji; and no newline after the last line
    path = write(tmp_path / "rows.jsonl", b"\n".join(content))
    records, dropped = read(path, columns={"text": "text"}, max_row_bytes=120_000)
    assert dropped == expected
    assert len(records) == 1 + len(expected) + 1
    assert records[-1].fields == {"text": "\U0001f600"}


def test_each_bad_csv_row_is_dropped_in_its_place(tmp_path: Path) -> None:
    content = (
        b'a,b\r\n1,"two\r\nlines"\r\n1\r\n1,2,3\r\n\r\n\xff,2\r\n1,"x"y\r\n'
        + b"x" * 300_000
        + b',2\r\n3,4\r\n5,"open\r\n6,7\r\n'
    )
    records, dropped = read(write(tmp_path / "rows.csv", content), max_row_bytes=200_000)
    assert [(r.id, r.fields) for r in records] == [
        ("rows.csv:2", {"a": "1", "b": "two\r\nlines"}),
        ("rows.csv:10", {"a": "3", "b": "4"}),
    ]
    assert dropped == [
        ("rows.csv:4", "wrong-field-count"),
        ("rows.csv:5", "wrong-field-count"),
        ("rows.csv:7", "not-utf8"),
        ("rows.csv:8", "bad-csv"),
        ("rows.csv:9", "row-too-large"),
        ("rows.csv:11", "bad-csv"),  # the quote that is never closed, and the row that it swallowed
        ("rows.csv:12", "bad-csv"),
    ]


def test_an_open_quote_costs_at_most_max_row_bytes(tmp_path: Path) -> None:
    content = b'a,b\n1,"open\n' + b"1,2\n" * 1000
    records, dropped = read(write(tmp_path / "rows.csv", content), max_row_bytes=100)
    assert len(records) + len(dropped) == 1001
    assert 20 < len(dropped) < 30


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_rows_before_a_break_in_a_compressed_file_are_kept(tmp_path: Path, packed: str, damage: str) -> None:
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}[packed]
    first, second = pack(jsonl(ROWS)), pack(jsonl(ROWS * 200))
    broken = first + (second[: len(second) // 2] if damage == "cut" else b"garbage garbage garbage")
    records, dropped = read(write(tmp_path / f"rows.jsonl{packed}", broken))
    assert [r.fields for r in records[:5]] == ROWS
    assert dropped == [(f"rows.jsonl{packed}:{len(records) + 1}", "broken-compression")]
    # Several whole streams one after another are one file, as gzip and zstd have it.
    assert len(read(write(tmp_path / f"two.jsonl{packed}", first + second))[0]) == 1005


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b"\n \n", "no row"),
        ("a.csv", b"", "empty"),
        ("a.csv", b"text,n\n", "no row"),
        ("a.csv", b"text,text\n1,2\n", "stands twice"),
        ("a.csv", b"te\0xt,n\n1,2\n", "binary"),
        ("a.csv", b"te\xffxt,n\n1,2\n", "not UTF-8"),
        ("a.json", b"[1, 2", "not valid JSON"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.jsonl", b"oops\noops\n", "none of the 2 rows can be used; the first: bad-json"),
        ("a.jsonl", bytes(range(256)) * 50, "binary"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "give it the suffix .gz"),
        ("a.jsonl", '{"text": 1}'.encode("utf-16"), "UTF-16"),
        ("a.jsonl.gz", b'{"text": "not gzip"}\n', "broken-compression"),
        ("a.jsonl.zst", b'{"text": "not zstd"}\n', "broken-compression"),
        ("a.json.gz", gzip.compress(b"[{}]", mtime=0)[:-9], "broken-compression"),
        ("a.parquet", b"PAR1 not really PAR1", "cannot be read"),
        ("a.parquet", b"", "cannot be read"),
        ("a.txt", b"{}", "set format"),
        ("a", b"{}", "set format"),
    ],
)
def test_a_file_without_a_usable_row_is_refused_by_its_path(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in caught.value.where
    # The same file among good ones is refused as well.
    good = write(tmp_path / "good.jsonl", jsonl(ROWS))
    with pytest.raises(UserError):
        read([str(good), str(path)])


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_missing_column_names_the_file_the_columns_and_the_nearest(tmp_path: Path, suffix: str) -> None:
    content = {".jsonl": jsonl(ROWS), ".json": json.dumps(ROWS).encode(), ".csv": write_csv(",")}[suffix]
    path = write(tmp_path / f"rows{suffix}", content)
    for options in ({"columns": {"code": "texts"}}, {"id_column": "texts"}, {"group_column": "texts"}):
        with pytest.raises(UserError) as caught:
            read(path, **options)
        assert "'texts'" in caught.value.what and "'n'" in caught.value.what
        assert caught.value.where == str(path)
        assert "'text'" in caught.value.fix


def test_ids_and_groups_from_columns(tmp_path: Path) -> None:
    rows = [
        {"key": "a", "project": "p", "x": None},
        {"key": 7, "project": 1},
        {"key": "a", "project": "p"},
        {"key": None, "project": "p"},
        {"key": "b", "project": ["p"]},
    ]
    path = write(tmp_path / "rows.jsonl", jsonl(rows))
    records, dropped = read(path, id_column="key", group_column="project")
    assert [(r.id, r.group) for r in records] == [("a", "p"), ("7", "1")]
    assert records[0].fields == rows[0]
    assert [reason for _, reason in dropped] == ["duplicate-id", "bad-id", "bad-group"]
    with pytest.raises(UserError, match="duplicate-id"):  # ids are unique over all files
        read([str(path), str(write(tmp_path / "more.jsonl", jsonl(rows[:1])))], id_column="key")


def test_globs_lists_and_names(tmp_path: Path) -> None:
    for place in ("b", "a"):
        write(tmp_path / place / "rows.jsonl", jsonl(ROWS[:1]))
    (tmp_path / "c" / "rows.jsonl").mkdir(parents=True)  # a folder with a file's name
    write(tmp_path / "data[1].jsonl", jsonl(ROWS[:1]))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a" / "rows.jsonl")

    assert [r.id for r in read(tmp_path / "*" / "rows.jsonl")[0]] == ["a/rows.jsonl:1", "b/rows.jsonl:1"]
    both = [
        str(tmp_path / "b" / "rows.jsonl"),
        str(tmp_path / "**" / "rows.jsonl"),
        str(tmp_path / "link.jsonl"),
    ]
    assert [r.id for r in read(both)[0]] == ["b/rows.jsonl:1", "a/rows.jsonl:1"]
    assert [r.id for r in read(tmp_path / "data[1].jsonl")[0]] == ["data[1].jsonl:1"]
    for path, message in {
        "c/rows.jsonl": "*.jsonl",
        "c/*.jsonl": "no file matches",
        "a/row.jsonl": "did you mean",
        "a\0b": "there is no file",
        "x" * 5000: "there is no file",
    }.items():
        with pytest.raises(UserError) as caught:
            read(f"{tmp_path}/{path}")
        assert message in str(caught.value) and path in caught.value.where


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="no regular file"):
        read(tmp_path / "rows.jsonl")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", jsonl(ROWS))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    # Tests may run as root, whom no permission bits stop.
    monkeypatch.setattr("builtins.open", refuse)
    for use in (lambda: read(path), Files(path=str(path)).fingerprint):
        with pytest.raises(UserError, match="Permission denied"):
            use()


def test_the_fingerprint_follows_contents_and_names(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b"{}")
    write(tmp_path / "b.jsonl", b"{}")
    seen = set()
    for change in (None, ("a.jsonl", b"{ }"), ("c.jsonl", b"{}")):
        if change:
            write(tmp_path / change[0], change[1])
        source = Files(path=str(tmp_path / "*.jsonl"))
        assert source.fingerprint() == source.fingerprint()
        seen.add(source.fingerprint())
    assert len(seen) == 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"path": []},
        {"path": ""},
        {"path": ["a", ""]},
        {"path": "a", "hub": "b", "split": "train"},
        {"hub": "b"},
        {"path": "a", "revision": "main"},
        {"path": "a", "format": "xml"},
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Files(**options)


def test_hub_rows_have_ids_by_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    asked: list[object] = []

    def load_dataset(*arguments: object, **options: object) -> datasets.Dataset:
        asked.append((arguments, options))
        return datasets.Dataset.from_list([{"text": "x"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = Files(hub="who/what", split="train", revision="v1", config="en")
    assert [r.id for r in source.records()] == ["who/what/train:1"]
    assert asked == [(("who/what", "en"), {"split": "train", "revision": "v1"})]

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match="no network"):
        list(source.records())
    (tmp_path / "local").mkdir()
    with pytest.raises(UserError, match="local path"):
        list(Files(hub=str(tmp_path / "local"), split="train").records())


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv"])
def test_memory_does_not_grow_with_rows_or_with_a_huge_line(tmp_path: Path, suffix: str) -> None:
    name, _, packed = suffix[1:].partition(".")
    pack = {"": bytes, "gz": gzip.compress, "zst": zstandard.compress}[packed]
    line = b'{"text": "' + b"x" * 500 + b'"}\n' if name == "jsonl" else b"x" * 500 + b"\n"
    content = (b"" if name == "jsonl" else b"text\n") + line * 20_000 + b"x" * 20_000_000 + b"\n" + line
    path = write(tmp_path / f"rows{suffix}", pack(content))
    del content
    tracemalloc.start()
    num_records = num_dropped = 0
    for result in Files(path=str(path), max_row_bytes=10_000).records():
        num_records += isinstance(result, Record)
        num_dropped += isinstance(result, Dropped)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (num_records, num_dropped) == (20_001, 1)
    assert peak < 8 << 20  # bytes; the file's text has 30 million


def test_a_json_file_of_one_object_over_several_lines_is_named_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n "text": "a",\n "more": [1, 2]\n}\n')
    with pytest.raises(UserError, match="holds one object, not an array"):
        list(Files(path=str(tmp_path / "a.json")).records())


def test_home_folders_are_known_by_all_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("git-fixes", "diffs", "planted-bugs", "repair-rounds", "graph-file", "wordnet"):
        options = {"path": "~/x", **({"top": "artifact"} if name == "wordnet" else {})}
        assert registry.lookup("source", name, "here")(**options).path == str(tmp_path / "x"), name
