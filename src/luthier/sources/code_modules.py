"""Functions of the standard library and of installed packages, labelled with the module that they come from."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from luthier.encoding.lexer import split_lines
from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources import Source
from luthier.sources.code import Code
from luthier.sources.stdlib import Stdlib

_TESTS = ["**/.*/**", "**/tests/**", "**/test/**", "**/test_*.py", "**/conftest.py", "**/_vendor/**"]
# Parts of module names that many modules share, or that are words of every program: they give nothing away.
_SHORTEST_PART = 3
_MASK = "MASKED"


@source("code-modules")
class CodeModules(Source):
    """Functions and methods with the module that they come from, for classification: code that every machine has.

    Fields of a record: ``text`` (the function's source, without what it is indented by), ``label`` (the module, such as
    ``asyncio.events``), ``name``, ``path``. Whatever names the module in the text, in a name, a string or a comment, is
    replaced by ``MASKED``. Methods of a class are one group, so that they never straddle a split. Which functions there
    are depends on the versions of Python and of the packages, and the fingerprint with them.
    """

    packages: list[str] = []
    """Installed packages beside the standard library, by the name that they are imported by."""
    depth: int = Field(2, ge=1)
    """Parts of a module's name that the label keeps."""
    max_modules: int = Field(240, ge=2)
    """Labels at most: the modules with the most functions."""
    min_functions: Annotated[int, Field(ge=1)] = 20
    """Modules with fewer functions are left out."""
    max_functions: int = Field(100, ge=1)
    """Functions of a module at most, chosen by a stable hash."""
    min_lines: int = Field(4, ge=1)
    """Shorter functions are left out."""

    def records(self) -> Iterator[Record | Dropped]:
        """The functions, module by module; those left out are not counted, since they are of no use as data."""
        by_label: dict[str, list[Record]] = {}
        for found in self._functions():
            by_label.setdefault(found.fields["label"], []).append(found)
        sizes = Counter(
            {label: len(found) for label, found in by_label.items() if len(found) >= self.min_functions}
        )
        kept = sorted(
            label
            for label, _ in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))[: self.max_modules]
        )
        if len(kept) < 2:
            raise UserError(
                f"{len(kept)} modules have {self.min_functions} functions and more",
                "recipe key data.source.min_functions",
                "lower it, or name more packages",
            )
        for label in kept:
            chosen = sorted(by_label[label], key=lambda r: hashlib.sha256(r.id.encode()).digest())
            yield from sorted(chosen[: self.max_functions], key=lambda r: r.id)

    def fingerprint(self) -> str:
        """Hash of the names and bytes of all files that are read."""
        return hashlib.sha256("\n".join(code.fingerprint() for _, code in self._trees()).encode()).hexdigest()

    def _trees(self) -> Iterator[tuple[str, Source]]:
        """What stands before the path of each file in a module's name, and the files."""
        yield "", Stdlib(exclude=["lib2to3/**", "turtledemo/**", "pydoc_data/**"])
        inside = Path(sysconfig.get_path("stdlib"))
        for name in sorted(set(self.packages)):
            top, *below = name.split(".")
            spec = importlib.util.find_spec(top)
            folders = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
            if not folders or folders[0].parent == inside or not folders[0].joinpath(*below).is_dir():
                raise UserError(
                    f"there is no package {name!r} beside the standard library",
                    "recipe key data.source.packages",
                    "name installed packages as they are imported",
                )
            yield f"{name}.", Code(path=str(folders[0].joinpath(*below)), exclude=_TESTS)

    def _functions(self) -> Iterator[Record]:
        for prefix, code in self._trees():
            for record in code.records():
                if isinstance(record, Record):
                    path = prefix.replace(".", "/") + record.fields["path"]
                    yield from self._of_file(path, record.fields["text"])

    def _of_file(self, path: str, text: str) -> Iterator[Record]:
        parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
        label = ".".join(parts[: self.depth])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # of other people's files
                tree = ast.parse(text)
        except (SyntaxError, ValueError):  # a template, or Python of another version
            return
        lines = split_lines(text)  # as ast counts them: a form feed ends none
        for owner, node in _defined(tree):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
            body = _dedented(lines[first : node.end_lineno])
            if body.count("\n") + 1 < self.min_lines:
                continue
            fields = {"text": masked(body, parts), "label": label, "name": node.name, "path": path}
            yield Record(f"{path}:{first + 1}", fields, f"{path}:{owner or node.name}")


def masked(text: str, parts: list[str]) -> str:
    """The text with every occurrence of a part of the module's name replaced, in whatever case and inside of longer names."""
    words = {word.strip("_") for part in parts for word in (part, part.replace("_", ""))}
    words = {word for word in words if len(word) >= _SHORTEST_PART}
    if not words:
        return text
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.sub(pattern, _MASK, text, flags=re.IGNORECASE)


def _defined(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The functions of a module with an empty name, and the methods of its classes with the class's."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            methods = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
            yield from ((node.name, method) for method in methods)


def _dedented(lines: list[str]) -> str:
    """Lines without the white space that the first begins with; a string that begins further left stays as it is."""
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return "".join(line.removeprefix(indent) for line in lines).rstrip()
