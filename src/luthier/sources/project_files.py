"""What the sources of whole projects share: which of a project's files are taken, in which role, and under which licence."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.sources import Source
from luthier.sources.code import Code, glob_pattern

_VENDORED = [
    f"**/{name}/**"
    for name in (
        *(
            "vendor",
            "vendored",
            "_vendor",
            "_vendored",
            "third_party",
            "third-party",
            "thirdparty",
            "3rdparty",
        ),
        *("external", "externals", "extern", "node_modules", "site-packages", "bower_components"),
    )
] + ["**/*.min.js"]
_TESTS = [
    *("**/test/**", "**/tests/**", "**/testing/**", "**/test_*.py", "**/*_test.py", "**/conftest.py"),
    *("**/src/test/**", "**/*Test.java", "**/*Tests.java", "**/*.test.js", "**/*.test.ts", "**/*.spec.ts"),
]
# A phrase of each licence's text. The one that stands first counts, since licences name others further down; of two at
# one place it is the upper.
_LICENCES = {
    "AGPL-3.0": "gnu affero general public license",
    "LGPL": "gnu (lesser|library) general public license",
    "GPL-3.0": "gnu general public license version 3",
    "GPL-2.0": "gnu general public license version 2",
    "MPL-2.0": "mozilla public license version 2.0",
    "Apache-2.0": "apache license version 2.0",
    "EPL-2.0": "eclipse public license - v 2.0",
    "BSD-3-Clause": "(redistribution and use in source and binary forms.*)?neither the names? of",
    "BSD-2-Clause": "redistribution and use in source and binary forms",
    "MIT": "permission is hereby granted, free of charge, to any person obtaining a copy",
    "ISC": "permission to use, copy, modify, and/or distribute this software for any purpose",
    "PSF-2.0": "python software foundation license version 2",
    "Unlicense": "this is free and unencumbered software released into the public domain",
}


class ProjectFiles(Source):
    """Base of the sources whose records are the files of whole projects.

    Fields of a record: ``text``, ``path`` (from the project's top), ``language``, ``project``, ``licence``, and ``role``:
    ``complete`` gives rows and is shown beside others, ``context`` is only shown, ``added`` only gives rows (the project is as it
    was before), and ``changed`` does neither, but belongs to the commit or release that added files.
    """

    include: list[str] = Field(["**/*.py"], min_length=1)
    """Globs over the path inside the project."""
    exclude: list[str] = ["**/.*/**"]
    """Globs of what is not looked at, and not counted."""
    complete: list[str] = Field(["**/*"], min_length=1)
    """Globs of the files that give rows, such as ``examples/**``; all others are only context."""
    tests: Literal["keep", "context", "drop"] = "keep"
    """Whether tests give rows, are only context, or are left out as ``test``."""
    keep_vendored: bool = False
    """Keep copies of other projects (``vendor``, ``third_party`` ...), which are left out as ``vendored`` otherwise."""
    keep_generated: bool = False
    """Keep generated and minified files, which are left out otherwise."""
    min_bytes: int = Field(1, ge=0)
    """Smaller files are left out as ``too-small``."""
    max_bytes: int = Field(1_000_000, ge=1)
    """Larger files are left out as ``too-large``."""
    licences: list[str] = []
    """Licences of projects that are taken, such as ``MIT`` (as ``licence`` of the records names them); empty takes all."""
    group_by: Literal["project", "file"] = "project"
    """What never straddles a split."""

    def _project(
        self, folder: Path, project: str, name: str, group: str | None = None
    ) -> Iterator[Record | Dropped]:
        """The files of a project on disk; ``name`` is what their ids begin with, ``group`` is the project where it is not said."""
        top = top_of(folder)
        licence = licence_of(top)
        if self.licences and licence not in self.licences:
            yield Dropped(name, "licence", f"its licence is {licence}", budgeted=False)
            return
        code = Code(
            path=str(top),
            include=self.include,
            exclude=self.exclude,
            keep_generated=self.keep_generated,
            min_bytes=self.min_bytes,
            max_bytes=self.max_bytes,
        )
        vendored, tests, complete = map(glob_pattern, (_VENDORED, _TESTS, self.complete))
        for item in code.records():
            identifier = f"{name}/{item.id}"
            if isinstance(item, Dropped):
                yield replace(item, id=identifier)
                continue
            is_test = tests.fullmatch(item.id) is not None
            if not self.keep_vendored and vendored.fullmatch(item.id):
                yield Dropped(identifier, "vendored", "a copy of another project", budgeted=False)
            elif self.tests == "drop" and is_test:
                yield Dropped(identifier, "test", "a test", budgeted=False)
            else:
                rows = complete.fullmatch(item.id) and not (is_test and self.tests == "context")
                fields = {
                    **item.fields,
                    "project": project,
                    "licence": licence,
                    "role": "complete" if rows else "context",
                }
                own = project if group is None else group
                yield Record(identifier, fields, own if self.group_by == "project" else identifier)


def refuse_nothing(items: Iterator[Record | Dropped], where: str) -> Iterator[Record | Dropped]:
    """The items, with an error at the end if none of them is a record that gives rows."""
    num_good = 0
    for item in items:
        num_good += isinstance(item, Record) and gives_rows(item)
        yield item
    if not num_good:
        raise UserError(
            "no file of any project gives rows",
            where,
            "change include, complete, tests or licences of the source",
        )


def gives_rows(record: Record) -> bool:
    """Whether a file is one that gives rows: by its role, and all are that have none."""
    return record.fields.get("role", "complete") in ("complete", "added")


def licence_of(folder: Path) -> str:
    """The licence that the text of a project's licence file says, or ``unknown``."""
    names = sorted(
        path
        for path in folder.iterdir()
        if re.match(r"(?i)(licen[cs]e|copying)", path.name) and path.is_file()
    )
    for path in names:
        text = " ".join(re.sub(r"[^\w.\- ,()/]+", " ", path.read_text("utf-8", "replace").lower()).split())
        text = text.replace("license, version", "license version")
        found = {
            name: match.start() for name, phrase in _LICENCES.items() if (match := re.search(phrase, text))
        }
        if found:
            return min(found, key=found.__getitem__)
    return "unknown"


def hash_of(*parts: object) -> str:
    """SHA-256 of what pins a source."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def top_of(folder: Path) -> Path:
    """The project's top: the one folder that an archive holds, or the folder itself."""
    entries = [entry for entry in folder.iterdir() if entry.name != "pax_global_header"]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder
