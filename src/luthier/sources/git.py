"""Code of repositories at pinned commits, fetched without their history."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field, field_validator

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.run_folder import cache_folder, logger, new_folder
from luthier.sources.project_files import ProjectFiles, hash_of, refuse_nothing

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# Nothing of a repository is run: no hooks, no filters for large files, no prompt for a password.
_SETTINGS = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false", "-c", "core.symlinks=false")
_ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1"}


@source("git")
class Git(ProjectFiles):
    """Code files of git repositories, each pinned by its whole commit hash; a repository is a group.

    One commit is fetched, without history and with only the folders that are asked for, and checked out in the cache folder
    (``LUTHIER_CACHE``); nothing of it is run. Fields of a record: ``text``, ``path``, ``language``, ``project``, ``licence``, ``role``.
    """

    repositories: dict[str, str] = Field(min_length=1)
    """URL or local path of each repository -> the whole hash of its commit (``git rev-parse HEAD``)."""
    folders: list[str] = []
    """Only these folders of each repository, such as ``src``, with the files at its top; empty is all."""

    @field_validator("repositories")
    @classmethod
    def _pinned(cls, repositories: dict[str, str]) -> dict[str, str]:
        for url, commit in repositories.items():
            if not _COMMIT.fullmatch(commit):
                raise ValueError(
                    f"{url}: {commit} is not the whole hash of a commit (40 or 64 hexadecimal digits)"
                )
            if not url or url.startswith("-") or "::" in url:
                raise ValueError(f"{url!r} is no address of a repository; give a URL or a path")
        return repositories

    def records(self) -> Iterator[Record | Dropped]:
        """The files of each repository, in the order of ``repositories``."""
        return refuse_nothing(self._files(), "source git")

    def _files(self) -> Iterator[Record | Dropped]:
        for url, commit in self.repositories.items():
            project = re.split(r"[/:\\]", url.rstrip("/").removesuffix(".git"))[-1]
            yield from self._project(fetch(url, commit, self.folders), project, f"{project}@{commit[:12]}")

    def fingerprint(self) -> str:
        """Hash of the pinned commits."""
        return hash_of(sorted(self.repositories.items()), self.folders)


def fetch(url: str, commit: str, folders: Sequence[str] = ()) -> Path:
    """The files of a repository at a commit, fetched if they are not in the cache.

    Raises:
        UserError: No git, no such repository or commit, or no network.
    """
    local = Path(url).expanduser()
    address = str(local.resolve()) if local.exists() else url
    key = hashlib.sha256(repr((address, commit, sorted(folders))).encode()).hexdigest()
    folder = cache_folder() / "git" / f"{commit[:12]}-{key[:12]}"
    if folder.is_dir():
        return folder
    if shutil.which("git") is None:
        raise UserError(
            "there is no git on this machine", f"repository {url}", "install git (apt install git)"
        )
    logger.info("fetching %s at %s", url, commit[:12])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as work:
        _git(url, work, "init", "--quiet")
        if folders:
            _git(url, work, "sparse-checkout", "set", "--", *folders)
        # A host that cannot leave out contents sends them all, so the filter is only asked for where it helps.
        lean = ["--filter=blob:none"] if folders else []
        _git(url, work, "remote", "add", "--", "origin", address)
        _git(url, work, "fetch", "--quiet", "--depth=1", "--no-tags", *lean, "origin", commit)
        _git(url, work, "checkout", "--quiet", "--detach", commit)
        shutil.rmtree(work / ".git")
    return folder


def _git(url: str, folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        ["git", *_SETTINGS, *arguments],
        cwd=folder,
        env={**os.environ, **_ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        said = " ".join(done.stderr.split())[:300]
        raise UserError(
            f"git {arguments[0]} failed: {said}",
            f"repository {url}",
            "check its address and commit; `git ls-remote URL` shows whether it can be reached",
        )
