"""A bug to be repaired and judged: the file with its buggy function, the fixed function, and how the tests are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from luthier.encoding.lexer import LANGUAGES, Language
from luthier.records import Dropped, Record

_FIELDS: dict[str, Any] = {
    "before": str, "after": str, "path": str, "tests": Mapping, "files": Mapping | None, "tree": str | None, "start": int | None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bug:
    """One buggy function of a program with tests.

    Attributes:
        id: Unique.
        group: Project or problem, for intervals.
        language: Of the function.
        path: The file that it stands in, inside of the program.
        source: The bytes of that file.
        start, end: Bytes of the function there.
        fixed: The fixed function.
        context: What stands outside of it, for prompts.
        files: Files of the program by name, beside or in place of those of ``tree``.
        tree: Folder that holds the program.
        tests: ``type`` of an adapter and its options.
    """

    id: str
    group: str
    language: Language
    path: str
    source: bytes
    start: int
    end: int
    fixed: str
    tests: Mapping[str, Any]
    context: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    tree: Path | None = None

    @property
    def buggy(self) -> str:
        """The buggy function."""
        return self.source[self.start : self.end].decode("utf-8", "surrogateescape")

    def patched(self, function: str) -> str:
        """The file with another function in the place of the buggy one: by its bytes, whatever else looks like it."""
        middle = function.encode("utf-8", "surrogateescape")
        return (self.source[: self.start] + middle + self.source[self.end :]).decode(
            "utf-8", "surrogateescape"
        )


def bug_of(record: Record) -> Bug | Dropped:
    """The bug that a record describes, or why it is none.

    Fields: ``before``, ``after``, ``language``, ``path``, ``tests``; ``files`` (names to texts) or ``tree`` (a folder);
    ``start``, the byte of the file that the function begins at, needed only where its text stands there more than once.
    """
    fields = record.fields
    for name, kinds in _FIELDS.items():
        if not isinstance(fields.get(name), kinds):
            return Dropped(record.id, "no-bug", f"the field {name!r} holds {type(fields.get(name)).__name__}")
    if fields.get("language") not in LANGUAGES:
        return Dropped(record.id, "unknown-language", repr(fields.get("language")))
    if not isinstance(fields["tests"].get("type"), str):
        return Dropped(record.id, "no-bug", "tests has no type")
    files = dict(fields.get("files") or {})
    if strange := [name for name, text in files.items() if not isinstance(text, str)]:
        return Dropped(record.id, "no-bug", f"of files, {strange[0]} is no text")
    tree = Path(fields["tree"]) if fields.get("tree") else None
    path, before = fields["path"], fields["before"].encode("utf-8", "surrogateescape")
    if path in files:
        source = files[path].encode("utf-8", "surrogateescape")
    elif tree is not None and (tree / path).is_file():
        source = (tree / path).read_bytes()
    else:
        return Dropped(record.id, "no-file", f"{path} is neither in files nor in tree")
    start = fields.get("start")
    if start is None:
        if source.count(before) != 1:
            return Dropped(
                record.id,
                "place-unknown",
                f"the function stands {source.count(before)} times in {path}; give start",
            )
        start = source.index(before)
    if source[start : start + len(before)] != before:
        return Dropped(record.id, "not-in-file", f"byte {start} of {path} begins another text")
    return Bug(
        record.id, record.group, cast(Language, fields["language"]), path, source, start, start + len(before),
        fields["after"], dict(fields["tests"]), str(fields.get("context") or ""), files, tree,
    )  # fmt: skip
