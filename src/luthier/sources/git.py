"""Code of repositories at pinned commits, fetched without their history."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import Field, field_validator

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.run_folder import cache_folder, logger, new_folder
from luthier.sources.project_files import ProjectFiles, hash_of, refuse_nothing

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# Nothing of a repository is run: no hooks, no filters, no prompt for a password.
_SETTINGS = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false", "-c", "core.symlinks=false")
_ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0"}
# Files are as they were committed, whatever line ends and filters the user's settings or the repository ask for.
_ATTRIBUTES = "* -text -filter -ident -working-tree-encoding\n"
# What says which repository git works on (`git rev-parse --local-env-vars`, without what only configures it, and what git sets
# for its hooks): a run that a hook or `git rebase --exec` starts would otherwise work on the user's own.
_PLACES = {
    *("GIT_DIR", "GIT_COMMON_DIR", "GIT_WORK_TREE", "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH", "GIT_NAMESPACE"),
    *("GIT_SHALLOW_FILE", "GIT_GRAFT_FILE", "GIT_REPLACE_REF_BASE", "GIT_TEMPLATE_DIR", "GIT_CONFIG"),
}


@source("git")
class Git(ProjectFiles):
    """Code files of git repositories, each pinned by its whole commit hash; a repository is a group.

    One commit is fetched, without history and with only the folders that are asked for, and checked out in the cache folder
    (``LUTHIER_CACHE``); nothing of it is run. Fields of a record: ``text``, ``path``, ``language``, ``project`` (the last part of the
    address, with as many parts before it as tell two repositories apart), ``licence``, ``role``.
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
        for (url, commit), project in zip(self.repositories.items(), _names(self.repositories), strict=True):
            yield from self._project(fetch(url, commit, self.folders), project, f"{project}@{commit[:12]}")

    def fingerprint(self) -> str:
        """Hash of the pinned commits."""
        return hash_of(sorted(self.repositories.items()), self.folders)


def _names(repositories: Mapping[str, str]) -> list[str]:
    """The shortest end of each address, in whole parts, that no other one has; with the commit where the addresses are the same."""
    parts = [re.split(r"[/:\\]+", url.rstrip("/\\").removesuffix(".git")) for url in repositories]
    names = []
    for own, commit in zip(parts, repositories.values(), strict=True):
        # Of more parts than it has it is alone, if others have it as their end.
        lengths = range(1, len(own) + 2)
        alone = (n for n in lengths if sum(other[-n:] == own[-n:] for other in parts) == 1)
        length = next(alone, 0)
        names.append("/".join(own[-length:]) if length else f"{'/'.join(own)}@{commit[:12]}")
    return names


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
        _git(url, work, "init", "--quiet", f"--object-format={'sha1' if len(commit) == 40 else 'sha256'}")
        (work / ".git" / "info").mkdir(exist_ok=True)
        (work / ".git" / "info" / "attributes").write_text(_ATTRIBUTES)
        if folders:
            _git(url, work, "sparse-checkout", "set", "--", *folders)
        # A host that cannot leave out contents sends them all, so the filter is only asked for where it helps.
        lean = ["--filter=blob:none"] if folders else []
        _git(url, work, "remote", "add", "--", "origin", address)
        _git(url, work, "fetch", "--quiet", "--depth=1", "--no-tags", *lean, "origin", commit)
        _git(url, work, "checkout", "--quiet", "--detach", commit)
        shutil.rmtree(work / ".git")
    return folder


def environment() -> dict[str, str]:
    """The process's environment without what tells git that it works on another repository than it is called in."""
    return {name: value for name, value in os.environ.items() if name not in _PLACES}


def _git(url: str, folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        ["git", *_SETTINGS, *arguments],
        cwd=folder,
        env={**environment(), **_ENVIRONMENT},
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
