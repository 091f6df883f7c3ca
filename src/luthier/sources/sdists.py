"""Code of pinned releases from the package index: real projects, the same bytes on every machine."""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, field_validator

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.run_folder import cache_folder, hash_file, logger, new_folder
from luthier.sources.project_files import ProjectFiles, hash_of, refuse_nothing

PINNED = re.compile(r"[\w.-]+==[\w.!+-]+")
"""A requirement that names one release."""


@source("sdists")
class Sdists(ProjectFiles):
    """Code files of source distributions from PyPI, each pinned by version and SHA-256; a project is a group.

    They are fetched once with the ``unearth`` package, checked, and unpacked in the cache folder (``LUTHIER_CACHE``);
    nothing of them is built or run. Several releases of one package are projects of their own, and one group.
    Fields of a record: ``text``, ``path``, ``language``, ``project``, ``licence``, ``role``.
    """

    packages: dict[str, str] = Field(min_length=1)
    """``name==version`` -> SHA-256 of its ``.tar.gz``, as the index's page of files shows it."""

    @field_validator("packages")
    @classmethod
    def _pinned(cls, packages: dict[str, str]) -> dict[str, str]:
        for name, digest in packages.items():
            if not PINNED.fullmatch(name) or not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError(f"{name}: {digest} is not name==version: SHA-256 (64 hexadecimal digits)")
        return packages

    def records(self) -> Iterator[Record | Dropped]:
        """The files of each release, in the order of ``packages``."""
        return refuse_nothing(self._files(), "source sdists")

    def _files(self) -> Iterator[Record | Dropped]:
        releases = Counter(_package(name) for name in self.packages)
        for name, digest in self.packages.items():
            folder = fetch(name, digest)
            package = name.partition("==")[0]
            several = releases[_package(name)] > 1
            project, group = (name, _package(name)) if several else (package, package)
            yield from self._project(folder, project, f"{package}/{_release(folder)}", group)

    def fingerprint(self) -> str:
        """Hash of the pinned hashes."""
        return hash_of(sorted(self.packages.items()))


def _package(requirement: str) -> str:
    """The package's name as the index compares names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", requirement.partition("==")[0]).lower()


def _release(folder: Path) -> str:
    """Name of the one folder in an unpacked release."""
    return next(iter(sorted(path.name for path in folder.iterdir())), "")


def fetch(requirement: str, sha256: str) -> Path:
    """The unpacked release, fetched if it is not in the cache.

    Raises:
        UserError: No client, no such release, no network, or another file than the pinned one.
    """
    folder = cache_folder() / "sdists" / f"{requirement.replace('==', '-')}-{sha256[:12]}"
    if folder.is_dir():
        return folder
    where = f"package {requirement}"
    try:
        from unearth import PackageFinder
    except ImportError as error:
        raise UserError(
            "releases are fetched with the unearth package, which is not installed",
            where,
            "pip install 'luthier[sdists]'",
        ) from error
    logger.info("fetching %s", requirement)
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple/")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as work:
            finder = PackageFinder(index_urls=[index], no_binary=[":all:"])
            best = finder.find_best_match(requirement).best
            if best is None:
                raise UserError("the index has no source distribution of it", where, f"look at {index}")
            archive = finder.download(best.link, work)
            if (found := hash_file(archive)) != sha256:
                raise UserError(
                    f"{best.link.filename} has the SHA-256 {found}, not {sha256}",
                    where,
                    "see why it differs before you pin the other one",
                )
            with tarfile.open(archive) as tar:
                tar.extractall(work, filter="data")
            if archive.parent == work:  # an index in a folder gives its own file
                archive.unlink()
    except UserError:
        raise
    except Exception as error:  # whatever the client, its HTTP library, tarfile or the disk raises
        raise UserError(
            f"it cannot be fetched: {type(error).__name__}: {error}",
            where,
            "see whether the index can be reached, and set PIP_INDEX_URL for another one",
        ) from error
    return folder
