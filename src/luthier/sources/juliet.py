"""Test cases of vulnerabilities in a tree of files, as the Juliet test suites are laid out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from luthier.encoding.lexer import Language
from luthier.encoding.syntax import functions
from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources.pairs import SUFFIXES
from luthier.sources.vulnerable import Vulnerable, weakness

# CWE89_SQL_Injection__connect_tcp_execute_01.java: the template, the flow variant, and the part of a case of several files.
_FILE = re.compile(r"(?P<template>CWE\d+_.+)_(?P<variant>\d\d)(?P<part>[a-z]|_bad|_good\w*)?")
# bad, badSink; goodG2B, goodB2G1, goodG2BSink, good_g2b; good1. What is left behind has to be the same on both sides.
_BAD = re.compile(r"bad_?(?P<rest>.*)")
_GOOD = re.compile(r"good_?(?P<way>[gG]2[bB]|[bB]2[gG]|(?=\d))\d*_?(?P<rest>.*)")


class _Half(NamedTuple):
    name: str
    rest: str
    text: str


@source("juliet")
class Juliet(Vulnerable):
    """Vulnerable functions with their fixes from a tree of files such as the Juliet test suites': ``CWE89_..._01.java``.

    Each bad function of a file is paired with each good one of the same part of it; what only calls the others is left
    out. All flow variants of a template are one group.
    """

    path: str
    """Folder, looked through with all below it."""

    def pairs(self) -> Iterator[Record | Dropped]:
        """The pairs of all files, in order of their names."""
        for path, language, case in self._cases():
            name = path.relative_to(self._top).as_posix()
            text = path.read_bytes()
            try:
                halves = _halves(text, language, path.stem)
            except UnicodeDecodeError:
                yield Dropped(name, "not-utf8", "the file has bytes that are not UTF-8")
                continue
            pairs = [(bad, good) for bad in halves["bad"] for good in halves["good"] if bad.rest == good.rest]
            if not pairs:
                yield Dropped(
                    name,
                    "no-pair",
                    f"{len(halves['bad'])} bad and {len(halves['good'])} good functions, none of one part",
                    budgeted=False,
                )
            for bad, good in pairs:
                # By name alone: suites spread the variants of a template over folders (s01, s02, ...).
                yield weakness(
                    f"{name}:{bad.name}:{good.name}", bad.text, good.text, language, case[0], case["template"]
                )

    def own_fingerprint(self) -> str:
        """Hash of the files."""
        total = hashlib.sha256()
        for path, _, _ in self._cases():
            total.update(
                f"{path.relative_to(self._top)}\0".encode() + hashlib.sha256(path.read_bytes()).digest()
            )
        return total.hexdigest()

    @property
    def _top(self) -> Path:
        return Path(self.path).expanduser()

    def _cases(self) -> Iterator[tuple[Path, Language, re.Match[str]]]:
        found = False
        for path in sorted(self._top.rglob("CWE*")):
            if path.suffix.lower() in SUFFIXES and path.is_file() and (case := _FILE.fullmatch(path.stem)):
                found = True
                yield path, SUFFIXES[path.suffix.lower()], case
        if not found:
            raise UserError(
                f"{self._top} holds no test case: no file such as CWE89_SQL_Injection__execute_01.java",
                "recipe key data.source.path",
                "name the folder of the test cases, such as testcases/ of a Juliet test suite",
            )


def _halves(text: bytes, language: Language, stem: str) -> dict[str, list[_Half]]:
    """The bad and the good functions of a file, without those that only call others."""
    halves: dict[str, list[_Half]] = {"bad": [], "good": []}
    for function in functions(text, language):
        name = function.name.partition("#")[0].rpartition(".")[2].removeprefix(f"{stem}_")
        code = text[function.start : function.end].decode("utf-8")
        if bad := _BAD.fullmatch(name):
            halves["bad"].append(_Half(function.name, bad["rest"].lower(), code))
        elif good := _GOOD.fullmatch(name):
            halves["good"].append(_Half(function.name, good["rest"].lower(), code))
    return halves
