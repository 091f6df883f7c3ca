"""Packages of Debian with the section that each belongs to, from the lists that apt has fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources import Source
from luthier.sources.control_files import fingerprint, paragraphs

# Of the lists, by their name in a record.
_FIELDS = {
    "section": "Section",
    "description": "Description",
    "depends": "Depends",
    "homepage": "Homepage",
    "tags": "Tag",
}


@source("debian-packages")
class DebianPackages(Source):
    """Descriptions of Debian packages, for classification by ``section``: text that a Debian machine has (``apt-get update``).

    Fields of a record: ``name``, ``description``, ``section`` (``libdevel``, ``python`` ...), ``depends``, ``homepage``,
    ``tags``; empty where a package says nothing. Packages that are built from one source are one group.
    """

    path: str = "/var/lib/apt/lists"
    """Folder of apt's lists."""

    def records(self) -> Iterator[Record | Dropped]:
        """The packages, each once: as the first list has it."""
        seen: set[str] = set()
        for fields in paragraphs(self._lists):
            name = fields.get("Package", "")
            if not name or name in seen:
                continue
            seen.add(name)
            values = {key: _one_line(fields.get(own, "")) for key, own in _FIELDS.items()}
            group = fields.get("Source", name).split(" ")[0]
            yield Record(name, {"name": name, **values}, group)
        if not seen:
            raise UserError("the lists name no package", self.path, "run `apt-get update`")

    def fingerprint(self) -> str:
        """Hash of the lists."""
        return fingerprint([self._lists])

    @property
    def _lists(self) -> str:
        return f"{self.path}/*_Packages*"


def _one_line(text: str) -> str:
    """Lines that go on joined by a space; a full stop alone is an empty line."""
    return re.sub(r"\n[ \t]*\.?", " ", text).strip()
