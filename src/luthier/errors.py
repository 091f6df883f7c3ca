"""The two ways a stage says no: the user's mistake, and a gate that refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# For these the machine or its settings are at fault, not our code.
_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.ESTALE, errno.ENODEV, errno.ENXIO),
}


class _Said(Exception):
    """Something to tell a person; the arguments are positional, so that it survives pickling between processes."""

    def __init__(self, what: str, where: str, fix: str) -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        return f"{self.what}\n  where: {self.where}\n  fix:   {self.fix}"


class UserError(_Said):
    """A mistake of the user, with what is needed to mend it (exit code 2).

    Args:
        what: The problem, with the measured value.
        where: Recipe key, ``file:line`` or row id.
        fix: Something to copy or do.
    """


class UserErrors(UserError):
    """Several mistakes found in one go (a recipe reports all of its problems at once)."""

    def __init__(self, errors: Iterable[UserError]) -> None:
        self.errors = tuple(one for error in errors for one in getattr(error, "errors", (error,)))
        first = self.errors[0]
        super().__init__(first.what, first.where, first.fix)

    def __reduce__(self) -> tuple[type[UserErrors], tuple[tuple[UserError, ...]]]:
        return UserErrors, (self.errors,)

    def __str__(self) -> str:
        return "\n\n".join(str(error) for error in self.errors)


class Refused(_Said):
    """A gate says no: the input is well-formed, but the run should not go on (exit code 1).

    Args:
        what: What was refused, with the measured value.
        where: The check, or the file that holds the details.
        fix: How to go on.
    """


class Interrupted(Refused):
    """The run was asked to end by a signal, and a checkpoint was saved: the same command goes on from it."""


def one_line(error: BaseException) -> str:
    """An error of a library, for a message: its kind and the first 300 characters of what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def machine_limit(error: BaseException) -> UserError | None:
    """The machine's limit that an exception stands for: memory, disk, what may be read or written; None if it is none."""
    text = str(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    ):
        return UserError(
            f"memory is used up: {text.partition(chr(10))[0] or 'no more could be had'}",
            "this machine",
            "lower train.micro_batch_tokens, evaluate.batch_size or data.num_workers, or end other programs",
        )
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return UserError(
            f"the disk is full: {error.strerror}",
            str(error.filename or os.getcwd()),
            "free some space, or name another folder with --run; finished stages are kept and not done again",
        )
    if isinstance(error, OSError) and error.errno in _MACHINE:
        return UserError(
            f"cannot read or write: {error.strerror}",
            str(error.filename or os.getcwd()),
            "name what can be read, or a folder that can be written",
        )
    return None
