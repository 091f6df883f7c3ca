"""Debian's packages: descriptions, and the facets and tags that people gave them."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources.control_files import fingerprint, paragraphs
from luthier.sources.documents import Documents


@source("debtags")
class Debtags(Documents):
    """Packages of Debian with tags: name and description, and paths root, facet, tag. Packages of one source are a group.

    Source: debtags.debian.org; ``Packages`` and ``Translation-en`` lists of a mirror, ``vocabulary`` of the package debtags.
    """

    packages: str = "/var/lib/apt/lists/*_main_binary-*_Packages*"
    """Glob of ``Packages`` lists, plain or with ``.lz4`` (needs apt), ``.gz`` or ``.xz``."""
    translations: str | None = None
    """Glob of ``Translation-en`` lists, for long descriptions; without it abstracts are of one line."""
    vocabulary: str = "/usr/share/debtags/vocabulary"
    """File with readable names of facets and tags."""
    root: str = "Debian packages"
    """Title of the root."""
    exclude_facets: list[str] = ["role"]
    """Facets that are left out."""
    max_chars: int = Field(1500, ge=1)
    """Characters of a description that are kept."""

    def documents(self) -> Iterator[Record | Dropped]:
        """The packages that have tags, by name, each once."""
        names = self._names()
        long = dict(self._long_descriptions())
        seen: set[str] = set()
        for fields in paragraphs(self.packages):
            package = fields.get("Package", "")
            tags = [tag.strip() for tag in fields.get("Tag", "").replace("\n", " ").split(",")]
            tags = [t for t in tags if "::" in t and t.partition("::")[0] not in self.exclude_facets]
            if package in seen or not tags:
                continue
            seen.add(package)
            text = long.get(fields.get("Description-md5", ""), fields.get("Description", ""))
            root = {"id": "", "title": self.root}
            paths = []
            for tag in sorted(set(tags)):
                facet = tag.partition("::")[0]
                paths.append(
                    [
                        root,
                        {"id": facet, "title": names.get(facet, facet)},
                        {"id": tag, "title": names.get(tag, tag)},
                    ]
                )
            values = {"title": package, "abstract": text[: self.max_chars], "paths": paths}
            yield Record(package, values, fields.get("Source", package).partition(" ")[0])

    def fingerprint(self) -> str:
        """Hash of names and contents of the files."""
        return fingerprint(
            [self.packages, self.vocabulary, *([self.translations] if self.translations else [])]
        )

    def _names(self) -> dict[str, str]:
        """Readable names of facets and tags; a tag's is only readable below its facet where two share it."""
        names = {}
        for fields in paragraphs(self.vocabulary):
            name = fields.get("Facet") or fields.get("Tag")
            if name:
                names[name] = " ".join(fields.get("Description", name).partition("\n")[0].split()) or name
        return names

    def _long_descriptions(self) -> Iterator[tuple[str, str]]:
        if self.translations:
            for fields in paragraphs(self.translations):
                lines = fields.get("Description-en", "").split("\n")
                text = "\n".join("" if line.strip() == "." else line.strip() for line in lines)
                yield fields.get("Description-md5", ""), text.strip()
