"""The project-level completion data of Long Code Arena, as its own files hold it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources import Source
from luthier.sources.code import LANGUAGES
from luthier.sources.files import Files

_COLUMNS = ("repo", "commit_hash", "completion_file", "completion_lines", "repo_snapshot")


@source("long-code-arena")
class LongCodeArena(Source):
    """Rows of ``lca-project-level-code-completion``: Parquet or JSONL files of any of its four sizes.

    Each row gives the files of its snapshot (role ``context``) and the file to complete (role ``added``) with the lines
    that are asked for: ``completion_lines``, category -> line numbers from 0. A row is a project of its own. Fields of a record as of ``git``.

    Source: Bogomolov et al. 2024, arXiv:2406.11612; huggingface.co/datasets/JetBrains-Research/lca-project-level-code-completion.
    """

    path: str | list[str]
    """A file such as ``small_context/test-00000-of-00001.parquet``, a glob, or a list of these."""
    suffixes: list[str] = [".py"]
    """Files of a snapshot that are taken; ``.md``, ``.txt`` and ``.rst`` are in the data as well."""

    def records(self) -> Iterator[Record | Dropped]:
        """The files of each row: the snapshot's, then the one to complete."""
        for item in self._files().records():
            if isinstance(item, Dropped):
                yield item
                continue
            fields = item.fields
            if lacking := [name for name in _COLUMNS if not fields.get(name)]:
                raise UserError(
                    f"a row has no {', '.join(lacking)}",
                    f"{self.path} ({item.id})",
                    f"name files of the data set, whose rows have {', '.join(_COLUMNS)}",
                )
            done = fields["completion_file"]
            if not isinstance(done, dict) or not {"filename", "content"} <= done.keys():
                raise UserError(
                    "completion_file is no object with filename and content",
                    f"{self.path} ({item.id})",
                    "name files of the data set as they are published",
                )
            name = f"{fields['repo']}@{fields['commit_hash'][:12]}/{done['filename']}"
            for path, text in _pairs(fields["repo_snapshot"]):
                if path.endswith(tuple(self.suffixes)) and path != done["filename"] and text:
                    yield Record(f"{name}: {path}", _fields(path, text, name, "context"), name)
            asked = {
                {"commited": "committed"}.get(category, category): sorted(lines)
                for category, lines in fields["completion_lines"].items()
                if lines
            }
            own = _fields(done["filename"], done["content"], name, "added")
            yield Record(name, {**own, "completion_lines": asked}, name)

    def fingerprint(self) -> str:
        """Hash of the files."""
        return self._files().fingerprint()

    def _files(self) -> Files:
        return Files(path=self.path)


def _pairs(snapshot: Any) -> list[tuple[str, str]]:
    """Paths and texts, whether the snapshot is a table of two columns (Parquet) or a list of files (JSONL)."""
    if isinstance(snapshot, dict):
        return list(zip(snapshot["filename"], snapshot["content"], strict=True))
    return [(file["filename"], file["content"]) for file in snapshot]


def _fields(path: str, text: str, project: str, role: str) -> dict[str, Any]:
    suffix = os.path.splitext(path)[1].lower()
    language = LANGUAGES.get(suffix, suffix.removeprefix("."))
    return {
        "text": text,
        "path": path,
        "language": language,
        "project": project,
        "licence": "unknown",
        "role": role,
    }
