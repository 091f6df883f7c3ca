"""The Python standard library: real code that is on every machine."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources import Source
from luthier.sources.code import Code

_TESTS = ["**/test/**", "**/tests/**", "**/idle_test/**", "**/test_*.py"]
# Installed packages, and what the build wrote about its own machine.
_NOT_LIBRARY = [
    "**/site-packages/**",
    "**/dist-packages/**",
    "config-*/**",
    "_sysconfigdata*",
    "**/__pycache__/**",
]


@source("stdlib")
class Stdlib(Source):
    """The Python standard library of the running interpreter, without its tests.

    Fields of a record: ``text``, ``path`` (``asyncio/events.py``), ``language``. The files differ between versions of
    Python, and the fingerprint with them.
    """

    include_tests: bool = False
    """Take the library's own tests as well."""
    exclude: list[str] = []
    """Globs of further files to leave out, such as ``turtledemo/**``."""
    min_bytes: int = Field(1, ge=0)
    """Smaller files are left out as ``too-small``."""
    max_bytes: int = Field(1_000_000, ge=1)
    """Larger files are left out as ``too-large``."""
    keep_generated: bool = False
    """Keep generated files (code pages, tables), which are left out as ``generated`` or ``minified`` otherwise."""
    group_by: Literal["file", "folder", "top-folder"] = "top-folder"
    """What never straddles a split: by default a top-level package or module (all of ``asyncio``; ``os.py``)."""

    def records(self) -> Iterator[Record | Dropped]:
        """The files of the library, sorted."""
        return self._code().records()

    def fingerprint(self) -> str:
        """Hash of the names and bytes of the files."""
        return self._code().fingerprint()

    def _code(self) -> Code:
        return Code(
            path=sysconfig.get_path("stdlib"),
            exclude=_NOT_LIBRARY + ([] if self.include_tests else _TESTS) + self.exclude,
            min_bytes=self.min_bytes,
            max_bytes=self.max_bytes,
            keep_generated=self.keep_generated,
            group_by=self.group_by,
        )
