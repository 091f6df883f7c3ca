"""What a release added to the one before it, with that as context: rows that no earlier training data can hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator

from luthier.errors import UserError
from luthier.recipe import Options
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources.project_files import ProjectFiles, hash_of, refuse_nothing
from luthier.sources.sdists import PINNED, fetch

_MOVED = 0.6


class Pair(Options):
    """Two releases of one package."""

    old: str
    """``name==version`` of the release that is the context."""
    old_sha256: str
    """SHA-256 of its ``.tar.gz``."""
    new: str
    """``name==version`` of the release whose new files are completed."""
    new_sha256: str
    """SHA-256 of its ``.tar.gz``."""

    @property
    def key(self) -> str:
        """What the pair is called: the package and its two versions."""
        return f"{self.old} -> {self.new.partition('==')[2]}"

    @field_validator("old", "new")
    @classmethod
    def _named(cls, name: str) -> str:
        if not PINNED.fullmatch(name):
            raise ValueError(f"{name} is not name==version")
        return name

    @field_validator("old_sha256", "new_sha256")
    @classmethod
    def _hashed(cls, digest: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"{digest} is not a SHA-256 (64 hexadecimal digits)")
        return digest


@source("release-pair")
class ReleasePair(ProjectFiles):
    """Files that a release of a package added, with the files of an earlier release as their project.

    The old release's files have the role ``context``; files that only the new one has and that ``complete`` takes are
    ``added``; its other new files and those whose text it changed are ``changed``. A new file most of whose lines stood in
    one that is gone is left out as ``moved``. Fields of a record as of ``sdists``, and ``lines``, how many lines a file has.
    """

    pairs: list[Pair] = Field(min_length=1)
    """The releases."""
    min_lines: int = Field(1, ge=1)
    """Shorter new files give no rows."""
    max_lines: int = Field(1_000_000, ge=1)
    """Longer new files give no rows."""

    def records(self) -> Iterator[Record | Dropped]:
        """The old files of each pair, then the new and changed ones."""
        return refuse_nothing(self._files(), "source release-pair")

    def fingerprint(self) -> str:
        """Hash of the pinned hashes."""
        return hash_of([pair.model_dump() for pair in self.pairs])

    def _files(self) -> Iterator[Record | Dropped]:
        groups = self._groups()
        seen: set[str] = set()
        for pair in self.pairs:
            project = pair.old.partition("==")[0]
            if pair.new.partition("==")[0] != project:
                raise UserError(
                    f"{pair.old} and {pair.new} are not of one package",
                    "recipe key data.*source.pairs",
                    "name two releases of one package",
                )
            key, group = pair.key, groups[pair.old]
            begins = {name: f"{key}/{name}" if name in seen else name for name in (pair.old, pair.new)}
            seen.update(begins)
            old: dict[str, str] = {}
            for item in self._project(fetch(pair.old, pair.old_sha256), key, begins[pair.old], group):
                if isinstance(item, Record):
                    old[item.fields["path"]] = item.fields["text"]
                    item = _with(item, role="context")
                yield item
            new = list(self._project(fetch(pair.new, pair.new_sha256), key, begins[pair.new], group))
            paths = {item.fields["path"] for item in new if isinstance(item, Record)}
            gone: dict[str, list[int]] = {}
            for number, text in enumerate(text for path, text in old.items() if path not in paths):
                for line in _lines(text):
                    gone.setdefault(line, []).append(number)
            for item in new:
                if isinstance(item, Dropped):
                    yield item
                elif item.fields["path"] not in old:
                    yield self._added(item, gone)
                elif item.fields["text"] != old[item.fields["path"]]:
                    yield _with(item, role="changed")

    def _groups(self) -> dict[str, str]:
        """The group of each release: one for pairs that share releases, for what one completes another one shows."""
        groups: dict[str, str] = {}
        for pair in self.pairs:
            joined = [groups.get(pair.old, pair.key), groups.get(pair.new, pair.key)]
            own = next((group for group in groups.values() if group in joined), pair.key)
            groups = {name: own if group in joined else group for name, group in groups.items()}
            groups |= {pair.old: own, pair.new: own}
        return groups

    def _added(self, item: Record, gone: dict[str, list[int]]) -> Record | Dropped:
        """A new file; ``gone`` has the files that are no longer there by each of their lines."""
        own = _lines(item.fields["text"])
        shared = Counter(number for line in own for number in gone.get(line, ()))
        if shared and max(shared.values()) >= _MOVED * len(own):
            return Dropped(item.id, "moved", "most of its lines stood in a file that is gone", budgeted=False)
        num_lines = item.fields["text"].count("\n") + 1
        fits = item.fields["role"] == "complete" and self.min_lines <= num_lines <= self.max_lines
        return _with(item, role="added" if fits else "changed", lines=num_lines)


def _with(record: Record, **fields: Any) -> Record:
    return replace(record, fields={**record.fields, **fields})


def _lines(text: str) -> set[str]:
    return {line.strip() for line in text.split("\n") if len(line.strip()) > 5}
