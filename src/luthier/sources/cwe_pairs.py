"""Vulnerable functions and their fixes, from rows that name the CWE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources.files import Files, Format
from luthier.sources.pairs import SUFFIXES
from luthier.sources.vulnerable import Vulnerable, weakness


@source("cwe-pairs")
class CwePairs(Vulnerable):
    """Vulnerable functions with their fix and their CWE, from JSONL, JSON, CSV or Parquet files such as SVEN's."""

    path: str | list[str]
    """File, glob, or a list of these."""
    before: str = "func_src_before"
    """Column with the vulnerable function."""
    after: str = "func_src_after"
    """Column with the fixed function."""
    cwe: str = "cwe"
    """Column with the CWE, in any of its spellings."""
    language: Literal["python", "java", "c", "column", "path"] = "path"
    """Language of the functions (``c`` is C and C++); ``column`` reads it from the column ``language``, ``path`` goes by the suffix of the file name in ``path_column``."""
    path_column: str = "file_name"
    """Column with a file's name, for ``language: path``."""
    group_column: str | None = "commit_link"
    """Column with what must not straddle a split, such as the commit; none: only copies stay together."""
    format: Format = "auto"
    """Format of the files; ``auto`` goes by the suffix."""

    def pairs(self) -> Iterator[Record | Dropped]:
        """One for each row."""
        for item in self._files().records():
            if isinstance(item, Dropped):
                yield item
                continue
            fields = item.fields
            language: Any = fields.get("language", self.language)
            if self.language == "path":
                suffix = "." + str(fields["path"]).rpartition(".")[2].lower()
                language = SUFFIXES.get(suffix, suffix)
            named = fields.get("group") if self.group_column else None
            group = item.id if named is None else str(named)  # without one it stands alone
            yield weakness(item.id, fields["before"], fields["after"], language, fields["cwe"], group)

    def own_fingerprint(self) -> str:
        """Hash of the files."""
        return self._files().fingerprint()

    def _files(self) -> Files:
        columns = {"before": self.before, "after": self.after, "cwe": self.cwe}
        if self.language == "column":
            columns["language"] = "language"
        if self.language == "path":
            columns["path"] = self.path_column
        if self.group_column:
            columns["group"] = self.group_column
        return Files(path=self.path, columns=columns, format=self.format)
