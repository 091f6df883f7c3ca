"""Fixes out of the history of a git repository."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, field_validator

from luthier.errors import UserError
from luthier.recipe import UserPath
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources.git import environment
from luthier.sources.pairs import SUFFIXES, Pairs, changed_functions


@source("git-fixes")
class GitFixes(Pairs):
    """Functions that the fixing commits of a repository changed: commits by message and size, functions by syntax.

    Merges are left out. Tests are left out by ``exclude``, since they change with a fix and are none.
    """

    path: UserPath
    """Folder of the repository."""
    revision: str = "HEAD"
    """Commit whose history is read, or a range such as ``v1..v2``."""
    message: str = r"(?i)\b(fix(e[sd])?|bug|defect|repair(s|ed)?)\b"
    """Regular expression that the first line of a fix's message matches somewhere."""
    max_files: int = Field(3, ge=1)
    """Files of known languages that a fix changes at most, excluded ones not counted."""
    max_lines: int = Field(30, ge=1)
    """Lines that a fix adds and takes away at most, in those files."""
    exclude: str = r"(^|/)(tests?|testing)/|(^|/)(test_[^/]*|conftest)\.py$|Tests?\.java$"
    """Regular expression of paths that are left out."""

    @field_validator("revision")
    @classmethod
    def _no_option(cls, revision: str) -> str:
        if not revision or revision.startswith(
            "-"
        ):  # git would take it for an option, some of which write files
            raise ValueError(f"{revision!r} is no revision; give a commit, branch, tag or range")
        return revision

    @field_validator("message", "exclude")
    @classmethod
    def _expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return value

    def pairs(self) -> Iterator[Record | Dropped]:
        """One for each function that a fix changed, oldest commit first."""
        # A line a commit, then a line a file: added, deleted, path; all ended by NUL.
        log = self._git(
            "log",
            "--no-merges",
            "--no-renames",
            "--reverse",
            "-z",
            "--numstat",
            "--format=%x01%H %s",
            self.revision,
            "--",  # what is no revision must not be taken for a path
        )
        for entry in log.split("\x01")[1:]:
            head, *files = (part.lstrip("\n") for part in entry.split("\0"))
            commit, _, subject = head.partition(" ")
            changed = [f.split("\t", 2) for f in files if f.count("\t") == 2]
            known = [
                (added, gone, path) for added, gone, path in changed
                if Path(path).suffix.lower() in SUFFIXES and not re.search(self.exclude, path)
            ]  # fmt: skip
            if not known or not re.search(self.message, subject):
                continue
            lines = sum(int(n) for added, gone, _ in known for n in (added, gone) if n != "-")
            if len(known) > self.max_files or lines > self.max_lines:
                yield Dropped(
                    commit[:12], "too-large-a-fix", f"{len(known)} files, {lines} lines", budgeted=False
                )
                continue
            for _, _, path in known:
                old, new = (self._show(f"{commit}{side}:{path}") for side in ("^", ""))
                name = f"{commit[:12]}:{os.fsencode(path).decode('utf-8', 'backslashreplace')}"
                if old is None or new is None:
                    yield Dropped(name, "new-or-deleted", "", budgeted=False)
                    continue
                yield from changed_functions(name, old, new, SUFFIXES[Path(path).suffix.lower()])

    def own_fingerprint(self) -> str:
        """The commits that the revision names."""
        return self._git("rev-parse", self.revision)

    def _git(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", self.path, *arguments],
                capture_output=True,
                check=True,
                stdin=subprocess.DEVNULL,
                env=environment(),
            )
        except FileNotFoundError as error:
            raise UserError("git is not installed", self.path, "install git") from error
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
            raise UserError(
                f"git says: {said}", self.path, "name a repository, and a revision of it"
            ) from error
        return done.stdout.decode("utf-8", "surrogateescape")

    def _show(self, name: str) -> bytes | None:
        done = subprocess.run(
            ["git", "-C", self.path, "show", name],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )
        return done.stdout if done.returncode == 0 else None
