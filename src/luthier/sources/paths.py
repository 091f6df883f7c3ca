"""Documents with their category paths, a JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources.documents import Documents
from luthier.sources.files import Files


@source("paths")
class Paths(Documents):
    """Rows ``{id, title, abstract, paths: [[root, ..., leaf], ...]}`` of JSONL files, each row a group of its own.

    A node is its title, or ``{id, title}``.
    """

    path: str | list[str]
    """File or glob, or a list of these."""
    id_column: str | None = "id"
    """Column with a unique id; ``null`` takes file and line."""
    group_column: str | None = None
    """Column with what must never straddle a split."""

    def documents(self) -> Iterator[Record | Dropped]:
        """The rows of the files."""
        yield from self._files().records()

    def fingerprint(self) -> str:
        """Hash of the names and bytes of the files."""
        return self._files().fingerprint()

    def _files(self) -> Files:
        return Files(path=self.path, id_column=self.id_column, group_column=self.group_column)
