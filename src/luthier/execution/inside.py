"""The first program inside a sandbox: takes its freedoms away, then becomes the command. Run by path, never imported.

Needs nothing but the standard library. What it could not take away it says on the descriptor that it was given.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

# linux/sched.h, linux/mount.h, linux/prctl.h
_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NETWORK = (
    0x20000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_RECURSIVE, _PRIVATE, _NO_SUID, _NO_DEVICES = 0x4000, 0x40000, 2, 4
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_NO_NEW_PRIVILEGES, _DIE_WITH_PARENT = 38, 1


def main() -> None:
    """Reads the order from standard input, limits itself and runs it."""
    order: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    cut = _unshare()
    read_only = cut and _read_only(order["folder"], order["disk_bytes"])
    os.write(order["report"], json.dumps({"network_cut": cut, "disk_read_only": read_only}).encode())
    os.close(order["report"])
    os.chdir(order["folder"])
    for name, text in order["files"].items():
        with open(name, "x", encoding="utf-8", newline="") as file:
            file.write(text)
    if cut:
        # In the new process table its first process is 1, with whose end all others end.
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)  # as shells pass on a signal
        _libc().prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    _libc().prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for limit, value in (
        (resource.RLIMIT_AS, order["memory_bytes"]),
        (resource.RLIMIT_FSIZE, order["disk_bytes"]),
        (resource.RLIMIT_CPU, order["seconds"]),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    command = order["command"]
    os.execvpe(command[0], command, order["environment"])


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _unshare() -> bool:
    """Whether this process now has a network, mounts and a process table of its own."""
    if not sys.platform.startswith("linux"):
        return False
    spaces = _NEW_MOUNTS | _NEW_IPC | _NEW_PIDS | _NEW_NETWORK
    user, group = os.getuid(), os.getgid()
    if _libc().unshare(spaces | _NEW_USER) == 0:
        try:
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"0 {user} 1"),
                ("gid_map", f"0 {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(text)
        except OSError:
            return True  # without names for its users it has a network of its own all the same
        return True
    return bool(_libc().unshare(spaces) == 0)


def _read_only(folder: str, num_bytes: int) -> bool:
    """Whether all of the disk is now read-only but for a small one in memory in place of the folder."""
    libc = _libc()
    if libc.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None):
        return False
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
    if libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(attributes), 32):
        return False
    size = f"size={num_bytes},mode=700".encode()
    return bool(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", _NO_SUID | _NO_DEVICES, size) == 0)


if __name__ == "__main__":
    main()
