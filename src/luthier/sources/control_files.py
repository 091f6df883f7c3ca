"""Debian's control files: paragraphs of fields, as apt fetches lists of packages."""

from __future__ import annotations

import glob
import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from luthier.errors import UserError

_HELPER = "/usr/lib/apt/apt-helper"


def paragraphs(pattern: str) -> Iterator[dict[str, str]]:
    """Paragraphs of the files that a glob matches: field by name, continuation lines joined by line ends.

    Raises:
        UserError: No such file, or one that cannot be read.
    """
    for path in _matches(pattern):
        fields: dict[str, str] = {}
        last = ""
        for line in [*_text(path).split("\n"), ""]:
            if not line.strip():
                if fields:
                    yield fields
                fields = {}
            elif line[0] in " \t":
                fields[last] = fields.get(last, "") + "\n" + line[1:]
            else:
                last, _, value = line.partition(":")
                fields[last] = value.strip()


def fingerprint(patterns: Iterable[str]) -> str:
    """Hash of names and contents of the files that globs match."""
    total = hashlib.sha256()
    for pattern in patterns:
        for path in _matches(pattern):
            content = hashlib.sha256(Path(path).read_bytes()).digest()
            total.update(f"{os.path.basename(path)}\0".encode() + content)
    return total.hexdigest()


def _matches(pattern: str) -> list[str]:
    paths = sorted(glob.glob(os.path.expanduser(pattern)))
    if not paths:
        raise UserError(
            "there is no such file",
            pattern,
            "apt-get update writes lists to /var/lib/apt/lists, and the package debtags brings the vocabulary; "
            "long descriptions: apt-get -o Acquire::Languages=en -o Dir::State::lists=DIR update",
        )
    return paths


def _text(path: str) -> str:
    try:
        if path.endswith(".lz4"):
            if not shutil.which(_HELPER):
                raise UserError(
                    "apt, which reads .lz4 lists, is not installed", path, "unpack it with lz4 -d"
                )
            done = subprocess.run([_HELPER, "cat-file", path], capture_output=True, check=True)
            return done.stdout.decode("utf-8", "replace")
        if path.endswith(".gz"):
            return gzip.decompress(Path(path).read_bytes()).decode("utf-8", "replace")
        if path.endswith(".xz"):
            return lzma.decompress(Path(path).read_bytes()).decode("utf-8", "replace")
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except (OSError, subprocess.CalledProcessError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise UserError(f"the list cannot be read: {error}", path, "run apt-get update again") from error
