"""Bug fixes: a function before and after, with what keeps copies of it in one split and benchmarks out of training."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

from luthier.encoding.lexer import LANGUAGES, Language, normalised
from luthier.encoding.syntax import PARSED, Function, functions, outside
from luthier.errors import UserError
from luthier.recipe import build
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources import Source
from luthier.sources.files import Files, Format

SUFFIXES: dict[str, Language] = {
    ".py": "python", ".java": "java", ".c": "c", ".h": "c", ".cc": "c", ".cpp": "c", ".cxx": "c", ".hpp": "c",
}  # fmt: skip


class Pairs(Source):
    """Base of the sources of bug fixes.

    Fields of a record: ``before``, ``after``, ``language``, and ``context`` where the rest of the file is known. Functions
    that are equal but for white space and comments, on either side of any fix, are one group with all their fixes: a chain
    of fixes of one function never straddles a split. Nor do fixes to which
    a source gives one group.
    """

    benchmarks: list[dict[str, Any]] = []
    """Sources (``type`` and options) of what the model will be judged on: a fix is left out as ``in-benchmark`` if either side of it is either side of a bug there."""

    @abstractmethod
    def pairs(self) -> Iterator[Record | Dropped]:
        """The fixes as they are; those of one group stay together, whatever else joins them."""

    def rewritten(self, item: Record) -> Record | Dropped:
        """What a fix is given as; itself, unless the source changes its text. Benchmarks are compared with what it was."""
        return item

    def records(self) -> Iterator[Record | Dropped]:
        """The fixes in two passes: the first finds which belong together."""
        held = _sides(self.benchmarks)
        components = Components()
        roots, kept = array("Q"), array("b")
        for raw in self.pairs():
            item = self.rewritten(raw) if isinstance(raw, Record) else raw
            if isinstance(raw, Record) and isinstance(item, Record):
                sides = _hashes(raw)
                kept.append(not held & set(sides))
                roots.append(sides[0])
                for other in sides if item is raw else (*sides, *_hashes(item)):
                    components.join(sides[0], other)
                if item.group != item.id:
                    components.join(sides[0], _hash(f"group {item.group}"))
        place = 0
        for raw in self.pairs():
            item = self.rewritten(raw) if isinstance(raw, Record) else raw
            if isinstance(item, Record):
                group = f"{components.root(roots[place]):016x}"
                inside = not kept[place]
                place += 1
                if inside:
                    yield Dropped(
                        item.id, "in-benchmark", "a function of it is one of the benchmarks'", budgeted=False
                    )
                    continue
                item = Record(item.id, item.fields, group)
            yield item

    def fingerprint(self) -> str:
        """Hash of the fixes and of the benchmarks."""
        prints = [
            build("source", options, "recipe key data.source.benchmarks").fingerprint()
            for options in self.benchmarks
        ]
        return hashlib.sha256("\n".join([self.own_fingerprint(), *prints]).encode()).hexdigest()

    @abstractmethod
    def own_fingerprint(self) -> str:
        """Hash of what the fixes are made of."""


class Components:
    """Which of some numbers belong together, by pairs that do; the root is the smallest."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def root(self, node: int) -> int:
        """The smallest number of a component."""
        parent = self._parent
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    def join(self, one: int, other: int) -> None:
        """Makes two components one."""
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low


def fix(record_id: str, before: Any, after: Any, language: Any, **others: Any) -> Record | Dropped:
    """A fix as a record, or why it is none."""
    if not isinstance(before, str) or not isinstance(after, str):
        return Dropped(
            record_id, "no-text", f"before is {type(before).__name__}, after {type(after).__name__}"
        )
    if language not in LANGUAGES:
        return Dropped(record_id, "unknown-language", f"{language!r} is none of {', '.join(LANGUAGES)}")
    if before == after:
        return Dropped(record_id, "unchanged", "both sides are the same", budgeted=False)
    return Record(record_id, {"before": before, "after": after, "language": language, **others}, record_id)


def changed_functions(name: str, old: bytes, new: bytes, language: Language) -> Iterator[Record | Dropped]:
    """The functions that stand in both versions of a file and differ, innermost ones only."""
    if language not in PARSED:
        yield Dropped(
            name,
            "no-functions",
            f"functions of {language} are not found in files; give them as pairs",
            budgeted=False,
        )
        return
    pairs, unpaired = _same_functions(functions(old, language), functions(new, language))
    for key in unpaired:
        yield Dropped(
            f"{name}:{key}",
            "overloads-differ",
            "both versions have functions of this name, and their parameters do not tell which belong together",
            budgeted=False,
        )
    changed = [key for key, (f, g) in pairs.items() if old[f.start : f.end] != new[g.start : g.end]]
    changed = [key for key in changed if not any(other.startswith(f"{key}.") for other in changed)]
    if not changed and not unpaired:
        yield Dropped(
            name,
            "no-function-changed",
            "what changed is outside of the functions of both versions",
            budgeted=False,
        )
    for key in changed:
        sides = []
        for text, f in zip((old, new), pairs[key], strict=True):
            try:
                sides.append(text[f.start : f.end].decode("utf-8"))
            except UnicodeDecodeError:
                yield Dropped(f"{name}:{key}", "not-utf8", "the function has bytes that are not UTF-8")
                break
        else:
            yield fix(
                f"{name}:{key}",
                sides[0],
                sides[1],
                language,
                context=outside(old, language, pairs[key][0]),
                name=key,
            )


def _same_functions(
    old: Sequence[Function], new: Sequence[Function]
) -> tuple[dict[str, tuple[Function, Function]], list[str]]:
    """The functions that stand in both versions of a file, by name in the old one; and those that cannot be told.

    Where a name stands more than once in a version, parameters decide, and the order only among functions of equal
    parameters of which there are as many in both.
    """
    sides: list[dict[str, list[Function]]] = [{}, {}]
    for side, found in zip(sides, (old, new), strict=True):
        for function in found:
            side.setdefault(function.name.partition("#")[0], []).append(function)
    pairs: dict[str, tuple[Function, Function]] = {}
    unpaired: list[str] = []
    for name, ones in sides[0].items():
        others = sides[1].get(name, [])
        if len(ones) == len(others) == 1:
            pairs[ones[0].name] = (ones[0], others[0])
        elif others:
            for parameters in dict.fromkeys(f.parameters for f in ones):
                left = [f for f in ones if f.parameters == parameters]
                right = [f for f in others if f.parameters == parameters]
                if len(left) == len(right):
                    pairs.update((f.name, (f, g)) for f, g in zip(left, right, strict=True))
                else:
                    unpaired += [f.name for f in left]
    return pairs, unpaired


def _hashes(item: Record) -> tuple[int, int]:
    language = cast(Language, item.fields["language"])
    one, other = (normalised(str(item.fields[side]), language) for side in ("before", "after"))
    return _hash(one), _hash(other)


def _hash(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def _sides(benchmarks: list[dict[str, Any]]) -> set[int]:
    held: set[int] = set()
    for options in benchmarks:
        where = "recipe key data.source.benchmarks"
        found = 0
        source = build("source", options, where)
        for item in source.pairs() if isinstance(source, Pairs) else source.records():
            if isinstance(item, Record) and {"before", "after", "language"} <= set(item.fields):
                held.update(_hashes(item))
                found += 1
        if not found:
            raise UserError(
                f"the benchmark {options.get('type')!r} gives no record with before and after",
                where,
                "name a source of bugs or fixes, such as humaneval-pack or repair-pairs",
            )
    return held


@source("repair-pairs")
class RepairPairs(Pairs):
    """Fixes from JSONL, JSON, CSV or Parquet files: a column with the function before, and one after."""

    path: str | list[str]
    """File, glob, or a list of these."""
    before: str = "before"
    """Column with the buggy function."""
    after: str = "after"
    """Column with the fixed function."""
    language: Literal["python", "java", "c", "column", "path"] = "java"
    """Language of the functions (``c`` is C and C++); ``column`` reads it from the column ``language``, ``path`` goes by the suffix of the file name in ``path_column``."""
    path_column: str = "path"
    """Column with a file's name, for ``language: path``."""
    id_column: str | None = None
    """Column with a unique id; without it a row's id is ``file:line``."""
    format: Format = "auto"
    """Format of the files; ``auto`` goes by the suffix."""

    def pairs(self) -> Iterator[Record | Dropped]:
        """One for each row."""
        for item in self._files().records():
            if isinstance(item, Record):
                fields = item.fields
                language: Any = self.language
                if language == "column":
                    language = fields["language"]
                elif language == "path":
                    suffix = "." + str(fields["path"]).rpartition(".")[2]
                    language = SUFFIXES.get(suffix.lower(), suffix)
                yield fix(item.id, fields["before"], fields["after"], language)
            else:
                yield item

    def own_fingerprint(self) -> str:
        """Hash of the files."""
        return self._files().fingerprint()

    def _files(self) -> Files:
        columns = {"before": self.before, "after": self.after}
        if self.language == "column":
            columns["language"] = "language"
        if self.language == "path":
            columns["path"] = self.path_column
        return Files(path=self.path, columns=columns, id_column=self.id_column, format=self.format)
