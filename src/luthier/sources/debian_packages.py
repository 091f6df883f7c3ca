"""Packages of Debian with the section that each belongs to, from the lists that apt has fetched."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources import Source

_HELPER = "/usr/lib/apt/apt-helper"  # reads whatever apt compresses its lists with


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
        for file in self._files():
            for text in self._read(file).split("\n\n"):
                fields = _fields(text)
                name = fields.get("Package", "")
                if not name or name in seen:
                    continue
                seen.add(name)
                values = {
                    key.lower(): fields.get(key, "")
                    for key in ("Section", "Description", "Depends", "Homepage")
                }
                group = fields.get("Source", name).split(" ")[0]
                tags = fields.get("Tag", "")
                yield Record(name, {"name": name, **values, "tags": tags}, group)
        if not seen:
            raise UserError("the lists name no package", self.path, "run `apt-get update`")

    def fingerprint(self) -> str:
        """Hash of the lists."""
        total = hashlib.sha256()
        for file in self._files():
            total.update(file.read_bytes())
        return total.hexdigest()

    def _files(self) -> list[Path]:
        files = sorted(Path(self.path).glob("*_Packages*"))
        if not files:
            raise UserError(
                f"there are no lists of packages in {self.path}",
                "recipe key data.source.path",
                "run `apt-get update` on a Debian machine",
            )
        return files

    def _read(self, file: Path) -> str:
        if not file.suffix or file.name.endswith("_Packages"):
            return file.read_text(encoding="utf-8")
        if shutil.which(_HELPER) is None:
            raise UserError(
                f"{file.name} is compressed, and {_HELPER} is not there", str(file), "unpack it first"
            )
        done = subprocess.run([_HELPER, "cat-file", str(file)], capture_output=True, check=False)
        if done.returncode:
            raise UserError(
                f"{file.name} cannot be unpacked: {done.stderr.decode(errors='replace').strip()[:200]}",
                str(file),
                "run `apt-get update` again",
            )
        return done.stdout.decode("utf-8")


def _fields(text: str) -> dict[str, str]:
    """The fields of one package; lines that go on are joined by a space."""
    whole = re.sub(r"\n[ \t]+\.?", " ", text)
    pairs = (line.partition(": ") for line in whole.split("\n"))
    return {key: value.strip() for key, _, value in pairs}
