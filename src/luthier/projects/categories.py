"""What a line takes from its project: categories by name, by import, and by jedi.

By name is how Long Code Arena labels lines: cheap, and wrong wherever two things share a name. By import asks that the
chain of names begins with something that the file imports from its own project, in Java also with a class of its own
package. jedi goes to the definition itself; it is slow, and is for a sample on which the other two are judged.

Source of the categories: Long Code Arena, Bogomolov et al. 2024, arXiv:2406.11612, section on project-level completion.
"""

from __future__ import annotations

import builtins
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.projects import syntax
from luthier.projects.project import Project

_TYPES = (object, str, bytes, int, float, complex, list, tuple, dict, set, frozenset, type, BaseException)
COMMON = (
    frozenset(name for kind in _TYPES for name in dir(kind))
    | frozenset(dir(builtins))
    | {
        "main",
        "run",
        "get",
        "set",
        "test",
        "parse",
        "setup",
        "wrapper",
        "inner",
        "decorator",
        "read",
        "write",
    }
    | {"close", "open", "save", "load", "start", "stop", "size", "name", "self", "cls"}
    | {"equals", "hashCode", "toString", "getClass", "length", "isEmpty", "valueOf", "put", "contains"}
)
"""Names that say nothing of a project, since Python's or Java's own types have them, or every other project."""
_SHORTEST, _LONGEST = 5, 150


class LineCategories:
    """The categories of the lines of one file.

    Args:
        project: The project as it was before the file.
        path: Of the file.
        text: Of the file.
        language: Of the file.
    """

    def __init__(self, project: Project, path: str, text: str, language: str) -> None:
        self._lines = text.split("\n")
        self._names: dict[int, list[syntax.Identifier]] = defaultdict(list)
        for identifier in syntax.identifiers(text, language):
            self._names[identifier.line].append(identifier)
        self._inproject = project.declared(without=path)
        self._committed = project.declared_by_changed(path) - self._inproject
        self._infile = syntax.declared_names(text, language)
        self._imported = frozenset(project.imported(path, text, language))

    def by_name(self, line: int) -> str:
        """The first category that fits a line, counted from 0, by the names in it."""
        names = {identifier.name for identifier in self._names[line]}
        telling = names - COMMON
        if telling & self._committed:
            return "committed"
        if telling & self._inproject:
            return "inproject"
        if telling & self._infile:
            return "infile"
        common = names & COMMON
        if common & self._committed or common & self._inproject or common & self._infile:
            return "common"
        return "non_informative" if uninformative(self._lines[line]) else "random"

    def by_import(self, line: int) -> str:
        """``inproject`` if a chain of names in the line begins with what the file imports from its project, else ``other``.

        In Java also with a class of the file's own package, which needs no import.
        A line that imports is ``other``: what it binds is its own.
        """
        if self._lines[line].lstrip().startswith(("import ", "from ")):
            return "other"
        roots = {identifier.root for identifier in self._names[line]}
        return "inproject" if roots & self._imported else "other"


def uninformative(line: str) -> bool:
    """Whether a line tells little by what it is: short, long, a comment, an import, a print, or the head of a declaration."""
    code = line.strip()
    return (
        not _SHORTEST <= len(code) <= _LONGEST
        or code.startswith(
            ("import ", "from ", "def ", "async def ", "class ", "@", "#", "//", "/*", "*", '"""', "'''")
        )
        or code.startswith(("print(", "System.out."))
        or re.fullmatch(r"package [\w.]+;", code) is not None
    )


def by_jedi(folder: Path, path: str, text: str, lines: Sequence[int]) -> Mapping[int, str]:
    """``inproject`` for each line, counted from 0, of which some name is defined in another file of the project, else ``other``.

    Args:
        folder: The project on disk, as it was before the file.
        path: Of the file, from the folder.
        text: Of the file, which need not be on disk.
        lines: Those that are asked for.

    Raises:
        UserError: jedi is not installed.
    """
    try:
        import jedi
    except ImportError as error:
        raise UserError(
            "resolving names to their definitions needs jedi, which is not installed",
            "the sample of lines",
            "pip install 'luthier[projects]'",
        ) from error
    top = folder.resolve()
    script: Any = jedi.Script(text, path=top / path, project=jedi.Project(top))
    at_line = defaultdict(list)
    for identifier in syntax.identifiers(text, "python"):
        at_line[identifier.line].append(identifier)
    return {
        line: "inproject" if any(_defined_inside(script, top, path, i) for i in at_line[line]) else "other"
        for line in lines
    }


def _defined_inside(script: Any, top: Path, path: str, identifier: syntax.Identifier) -> bool:
    try:
        found = script.goto(identifier.line + 1, identifier.column, follow_imports=True)
    except (
        Exception
    ):  # jedi raises anything at all over code that it cannot follow; then the name is not resolved
        return False
    places = [Path(name.module_path).resolve() for name in found if name.module_path]
    return any(place.is_relative_to(top) and place != top / path for place in places)
