"""The first program inside a sandbox: takes its freedoms away, then runs the steps. Run by path, never imported.

Needs nothing but the standard library. What it could not take away, and what became of each step, it writes as lines of
JSON to the descriptor that it was given, which no step inherits.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import signal
import sys
import time
from typing import Any

# linux/sched.h, linux/mount.h, linux/prctl.h
_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NETWORK = (
    0x20000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_RECURSIVE, _PRIVATE, _BIND = 0x4000, 0x40000, 0x1000
_READ_ONLY_MOUNT, _NO_SUID, _NO_DEVICES, _NO_EXEC = 1, 2, 4, 8
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_NO_NEW_PRIVILEGES, _DIE_WITH_PARENT, _DROP_CAPABILITY, _NUM_CAPABILITIES = 38, 1, 24, 64
_DEVICES = ("null", "zero", "full", "random", "urandom")


def main() -> None:
    """Reads the order from standard input, limits itself and runs the steps."""
    order: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    os.set_inheritable(order["report"], False)
    fence, read_only = order["fence"], order["fence"] == "bubblewrap"
    if fence == "namespaces" and _unshare():
        read_only = _read_only(order["folder"], order["disk_bytes"])
    elif fence == "namespaces":
        fence = "limits"
    _say(order["report"], {"fence": fence, "disk_read_only": read_only})
    if fence == "namespaces":
        # In the new process table its first process is 1, with whose end all others end.
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            os._exit(0)
        _libc().prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        _libc().mount(b"proc", b"/proc", b"proc", _READ_ONLY_MOUNT | _NO_SUID | _NO_DEVICES | _NO_EXEC, None)
        for number in range(_NUM_CAPABILITIES):  # what is out of this set no program gets back
            _libc().prctl(_DROP_CAPABILITY, number, 0, 0, 0)
    _libc().prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    os.chdir(order["folder"])
    _fill(order)
    guarded = _hashes(order["guard"])
    for step in order["steps"]:
        result = _run(step, order, alone=fence != "limits")
        now = _hashes(order["guard"])  # files that tests leave beside them are no change
        result["tampered"] = sorted(name for name, value in guarded.items() if now.get(name) != value)
        _say(order["report"], result)
        if result["status"] != "exited" or result["exit_code"] or result["tampered"]:
            break


def _fill(order: dict[str, Any]) -> None:
    """Puts copies of the folders, and then the files, into the work folder."""
    for source in order["trees"]:
        import shutil  # slow to import, and most programs have no tree

        shutil.copytree(source, ".", symlinks=True, dirs_exist_ok=True)
    for name, text in order["files"].items():
        folder = os.path.dirname(name)
        if not os.path.join(os.path.realpath(folder), "").startswith(os.path.join(os.getcwd(), "")):
            raise PermissionError(f"{name} lies behind a link that leads out of the folder")
        if folder:
            os.makedirs(folder, exist_ok=True)
        if os.path.islink(name):
            os.unlink(name)  # writing through it would go elsewhere
        with open(name, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)


def _run(step: dict[str, Any], order: dict[str, Any], *, alone: bool) -> dict[str, Any]:
    """What became of a step; nothing of it goes on afterwards."""
    output = os.open("/dev/null", os.O_RDWR)
    with contextlib.suppress(OSError):  # a full disk
        output = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    began = time.monotonic()
    child = os.fork()
    if not child:
        _become(step, order, output)
    status, timed_out, pause = None, False, 0.002
    while status is None:
        time.sleep(pause)
        pause = min(0.02, pause * 1.5)
        with contextlib.suppress(ChildProcessError):
            while True:
                found, code = os.waitpid(-1, os.WNOHANG)
                if found == child:
                    status = code
                if not found:
                    break
        if status is None and time.monotonic() - began > step["seconds"]:
            timed_out = True
            status = _kill(child, alone)
            if status is None:
                _, status = os.waitpid(child, 0)
    _kill(child, alone)
    size = os.lseek(output, 0, os.SEEK_END)
    os.lseek(output, max(0, size - order["keep_bytes"]), os.SEEK_SET)
    text = os.read(output, order["keep_bytes"]).decode("utf-8", "replace") if size else ""
    os.close(output)
    code = os.waitstatus_to_exitcode(status)
    files, too_large = _collected(step["collect"], order["collect_bytes"])
    return {
        "name": step["name"],
        "status": "timeout" if timed_out else "killed" if code < 0 else "exited",
        "exit_code": code,
        "output": text,
        "seconds": round(time.monotonic() - began, 3),
        "files": files,
        "too_large": too_large,
    }


def _become(step: dict[str, Any], order: dict[str, Any], output: int) -> None:
    """Limits this process and turns it into the command."""
    try:
        os.setsid()
        if order["fence"] == "limits":
            _libc().prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        for number in (1, 2):
            os.dup2(output, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        limits = [
            (resource.RLIMIT_FSIZE, order["disk_bytes"]),
            # Later than the clock, so that an endless loop always counts as out of time and never as killed.
            (resource.RLIMIT_CPU, 1 + math.ceil(step["seconds"] * order["threads"])),
            (resource.RLIMIT_NPROC, order["processes"]),
            (resource.RLIMIT_NOFILE, 1024),
            (resource.RLIMIT_CORE, 0),
        ]
        if order["memory_bytes"]:
            limits.append((resource.RLIMIT_AS, order["memory_bytes"]))
        for limit, value in limits:
            hard = resource.getrlimit(limit)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, value))
        os.execvpe(step["command"][0], step["command"], order["environment"] | step["environment"])
    except OSError as error:
        os.write(2, f"{step['command'][0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _kill(child: int, alone: bool) -> int | None:
    """Ends a step with all that it started; where its processes have no table of their own, what stayed in its session.

    Returns:
        The status of the step's first process, if it was waited for here.
    """
    status = None
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    for _ in range(100 if alone else 0):
        with contextlib.suppress(OSError):
            os.kill(-1, signal.SIGKILL)
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    status = ended[1]
        except ChildProcessError:
            break
        if os.getpid() != 1:
            break
    return status


def _hashes(names: list[str]) -> dict[str, str]:
    """Content of files and of all files of folders."""
    if not names:
        return {}
    import hashlib

    found = {}
    for name in names:
        inner = [
            os.path.join(at, file)
            for at, _, files in os.walk(name)
            for file in files
            if not file.endswith(".pyc")
        ]
        for path in inner if os.path.isdir(name) else [name]:
            found[path] = ""
            if os.path.isfile(path):  # a pipe or device in its place would be read without end
                with contextlib.suppress(OSError), open(path, "rb") as file:
                    found[path] = hashlib.sha256(file.read()).hexdigest()
    return found


def _collected(names: list[str], most: int) -> tuple[dict[str, str], list[str]]:
    """Texts of the files that are there, and names of those that have more bytes than that."""
    files, too_large = {}, []
    for name in names:
        with (
            contextlib.suppress(OSError),
            open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file,
        ):
            content = file.read(most + 1)
            if len(content) > most:
                too_large.append(name)
            else:
                files[name] = content.decode("utf-8", "replace")
    return files, too_large


def _say(report: int, value: dict[str, Any]) -> None:
    os.write(report, json.dumps(value).encode() + b"\n")


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _unshare() -> bool:
    """Whether this process now has a network, mounts and a process table of its own."""
    if not sys.platform.startswith("linux"):
        return False
    spaces = _NEW_MOUNTS | _NEW_IPC | _NEW_PIDS | _NEW_NETWORK
    user, group = os.getuid(), os.getgid()
    if _libc().unshare(spaces | _NEW_USER) == 0:
        # Without names for its users it has a network of its own all the same.
        with contextlib.suppress(OSError):
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"0 {user} 1"),
                ("gid_map", f"0 {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(text)
        return True
    return bool(_libc().unshare(spaces) == 0)


def _read_only(folder: str, num_bytes: int) -> bool:
    """Whether all of the disk is now read-only but for a small one in memory in place of the folder.

    Of the devices only harmless ones are left, and no sockets of the system's services.
    """
    libc = _libc()
    if libc.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None):
        return False
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
    if libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(attributes), 32):
        return False
    opened = {name: os.open(f"/dev/{name}", getattr(os, "O_PATH", 0)) for name in _DEVICES}
    flags = _NO_SUID | _NO_EXEC
    if libc.mount(b"tmpfs", b"/dev", b"tmpfs", flags, b"size=16m,mode=755"):
        return False
    os.mkdir("/dev/shm")
    for name, place in opened.items():
        os.close(os.open(f"/dev/{name}", os.O_CREAT | os.O_WRONLY))
        libc.mount(f"/proc/self/fd/{place}".encode(), f"/dev/{name}".encode(), None, _BIND, None)
        os.close(place)
    if os.path.isdir("/run"):
        libc.mount(b"tmpfs", b"/run", b"tmpfs", flags | _READ_ONLY_MOUNT, b"size=4k")
    size = f"size={num_bytes},mode=700".encode()
    return bool(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", _NO_SUID | _NO_DEVICES, size) == 0)


if __name__ == "__main__":
    main()
