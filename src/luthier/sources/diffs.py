"""Fixes out of unified diffs, as a version control system writes them: Megadiff's files, or any others."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from luthier.encoding.lexer import split_lines
from luthier.encoding.repair import Hunk, hunks
from luthier.encoding.syntax import PARSED, Parsed, functions, parses
from luthier.errors import UserError
from luthier.recipe import UserPath
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.run_folder import hash_file
from luthier.sources.pairs import SUFFIXES, Pairs, changed_functions

_USUAL_CONTEXT = 3  # lines, of diff and git


@source("diffs")
class Diffs(Pairs):
    """Functions that changed, out of unified diffs whose context holds the whole function.

    A change of a file has to be one hunk with enough context around it (``git diff -U1000``, or Megadiff's files as they
    are): of a function that is cut off nobody knows the rest. ``---`` and ``+++`` are headers only before a hunk.
    """

    path: UserPath
    """File or glob, such as ``megadiff/**/*.diff``."""

    def pairs(self) -> Iterator[Record | Dropped]:
        """One for each function that a diff changes."""
        paths = self._paths()
        top = os.path.commonpath(map(os.path.dirname, paths)) or os.curdir
        for path in paths:
            name = path if len(paths) == 1 else os.path.relpath(path, top)
            try:
                text = Path(path).read_bytes().decode("utf-8")  # with its line ends
            except UnicodeDecodeError as error:
                yield Dropped(name, "not-utf8", f"byte {error.start + 1}: {error.reason}")
                continue
            changes = list(changed_files(text))
            if not changes:
                yield Dropped(name, "no-diff", "no hunk in it")
            for number, (file, found) in enumerate(changes):
                yield from _functions(f"{name}#{number}", file, found)

    def own_fingerprint(self) -> str:
        """Hash of the files."""
        return hashlib.sha256("".join(hash_file(Path(path)) for path in self._paths()).encode()).hexdigest()

    def _paths(self) -> list[str]:
        paths = sorted(path for path in glob.glob(self.path, recursive=True) if Path(path).is_file())
        if not paths:
            raise UserError("no file matches", self.path, "name a file or a glob such as diffs/**/*.diff")
        return paths


def changed_files(text: str) -> Iterator[tuple[str, list[Hunk]]]:
    """The files that a diff changes: the new name of each, and its hunks."""
    lines = split_lines(text)
    name, place = "", 0
    while place < len(lines):
        line = lines[place]
        if line.startswith("@@ "):
            found, after = hunks(lines, place)
            if found:
                yield name, found
            place = max(after, place + 1)
            continue
        if line.startswith("+++ "):
            name = line[4:].partition("\t")[0].strip()
        place += 1


def _functions(name: str, file: str, found: list[Hunk]) -> Iterator[Record | Dropped]:
    language = SUFFIXES.get(Path(file).suffix.lower())
    if language is None:
        yield Dropped(name, "unknown-language", f"the suffix of {file!r}", budgeted=False)
    elif len(found) > 1:
        yield Dropped(
            name, "several-hunks", f"{len(found)} in {file}; write diffs with more context (-U1000)"
        )
    else:
        old, new = ("".join(side).encode() for side in (found[0].old, found[0].new))
        cut = _cut_off(found[0], old, new, language) if language in PARSED else set()
        for item in changed_functions(name, old, new, language):
            if item.id.removeprefix(f"{name}:") in cut:
                said = (
                    "nothing tells that the diff holds it to its end; write diffs with more context (-U1000)"
                )
                item = Dropped(item.id, "cut-off", said)
            yield item


def _cut_off(hunk: Hunk, old: bytes, new: bytes, language: Parsed) -> set[str]:
    """Names of functions that go on, or may go on, behind the hunk.

    Those of a language with braces do not parse then. A function of Python may end anywhere: it is whole if the file ends with the
    hunk, which shows where fewer lines of context stand behind the change than before it, or a newline is missing.
    """
    pairs = list(zip(hunk.old, hunk.new, strict=False))
    before = next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))
    behind = zip(reversed(hunk.old[before:]), reversed(hunk.new[before:]), strict=False)
    after = sum(1 for _ in takewhile(lambda both: both[0] == both[1], behind))
    usual = before if hunk.start else _USUAL_CONTEXT  # at the top of a file there may be no more lines
    ended = not old.endswith(b"\n") or not new.endswith(b"\n") or after != usual
    names = set()
    for text in (old, new):
        for function in functions(text, language):
            if function.end < len(text.rstrip()):
                continue
            own = text[function.start : function.end].decode("utf-8", "replace")
            if not ended if language == "python" else not parses(own, language):
                names.add(function.name)
    return names
