"""A project: its files, where their modules are, and what a file takes from the others."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property

from luthier.projects import syntax
from luthier.projects.bm25 import BM25

_WORD = re.compile(r"[^\W\d]\w*")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
_PACKAGE = re.compile(r"^\s*package\s+([\w.]+)\s*;", re.MULTILINE)


class File:
    """A file of a project; what is worked out of its text is kept.

    Args:
        path: From the project's top, with ``/``.
        text: The text.
        language: As in ``luthier.sources.code.LANGUAGES``.
    """

    def __init__(self, path: str, text: str, language: str) -> None:
        self.path, self.text, self.language = path, text, language

    def __repr__(self) -> str:
        return f"File({self.path!r})"

    @property
    def folder(self) -> str:
        """The folder that it is in; empty at the top."""
        return self.path.rpartition("/")[0]

    @cached_property
    def declared(self) -> frozenset[str]:
        """Names of its functions and classes."""
        return syntax.declared_names(self.text, self.language)

    @cached_property
    def skeleton(self) -> str:
        """The file without bodies of functions; empty if there is nothing to show."""
        return syntax.skeleton(self.text, self.language)

    @cached_property
    def module(self) -> str:
        """The last part of its module's name, or of its class in Java; of a package the folder's."""
        stem = self.path.rpartition("/")[2].partition(".")[0]
        return self.folder.rpartition("/")[2] if stem == "__init__" else stem


class Project:
    """A snapshot of a project.

    Args:
        name: What it is called.
        files: Its files, each path once.
        changed: Files that were new or changed in the commit or release that rows are made of; they are no context.
    """

    def __init__(self, name: str, files: Sequence[File], changed: Sequence[File] = ()) -> None:
        self.name, self.changed = name, list(changed)
        self.files = sorted(files, key=lambda file: file.path)
        self.by_path = {file.path: file for file in self.files}
        self._by_distance: dict[str, list[File]] = {}

    def without(self, path: str, text: str) -> list[File]:
        """The files that may stand beside a file: neither itself nor a copy of it; by path."""
        left_out = {path, *self._by_text.get(text.strip(), ())}
        return [file for file in self.files if file.path not in left_out]

    def by_distance(self, path: str, text: str) -> list[File]:
        """The same, those fewest folders away last; of the same distance by path."""
        folder = "".join(path.rpartition("/")[:2])
        if folder not in self._by_distance:
            self._by_distance[folder] = sorted(self.files, key=lambda file: -path_distance(folder, file.path))
        left_out = {path, *self._by_text.get(text.strip(), ())}
        return [file for file in self._by_distance[folder] if file.path not in left_out]

    @cached_property
    def _by_text(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for file in self.files:
            found[file.text.strip()].append(file.path)
        return found

    @cached_property
    def _num_declaring(self) -> Counter[str]:
        return Counter(name for file in self.files for name in file.declared)

    def declared(self, without: str) -> frozenset[str]:
        """Names of the functions and classes of all files but one."""
        own = self.by_path[without].declared if without in self.by_path else frozenset()
        return frozenset(name for name, num in self._num_declaring.items() if num > (name in own))

    def declared_by_changed(self, without: str) -> frozenset[str]:
        """The same of the files that the commit or release changed, but for one of them."""
        return frozenset().union(*(file.declared for file in self.changed if file.path != without))

    @cached_property
    def chunks(self) -> list[tuple[File, str]]:
        """Parts of all files that are retrieved by themselves."""
        found = []
        for file in self.files:
            lines = file.text.split("\n")
            for start, end in syntax.blocks(file.text, file.language):
                if text := "\n".join(lines[start:end]).strip("\n"):
                    found.append((file, text + "\n"))
        return found

    @cached_property
    def index(self) -> BM25:
        """The chunks by the words in their identifiers."""
        return BM25([words(text) for _, text in self.chunks])

    @cached_property
    def _modules(self) -> dict[str, str]:
        """Path by dotted module name: seen from its top package, from the top of the project, and from ``src`` or ``lib``."""
        packages = {file.folder for file in self.files if file.path.endswith("__init__.py")}
        found: dict[str, str] = {}
        for file in self.files:
            parts = file.path.rpartition(".")[0].split("/")
            if file.language == "java":
                package = _PACKAGE.search(file.text)
                found[".".join([*([package[1]] if package else []), parts[-1]])] = file.path
                continue
            top = len(parts) - 1
            while top and "/".join(parts[:top]) in packages:
                top -= 1
            if parts[-1] == "__init__":
                parts = parts[:-1]
            for start in {top, 0, int(parts[:1] in (["src"], ["lib"]))}:
                if parts[start:]:
                    found.setdefault(".".join(parts[start:]), file.path)
        return found

    def imported(self, path: str, text: str, language: str) -> dict[str, set[str]]:
        """The names that a file binds by importing from this project, each with the files that it may come from.

        In Java the classes of its own package that its text names need no import, and count as well.

        Args:
            path: Of the file; relative imports start from it.
            text: Its text, or the beginning of it.
            language: Its language.
        """
        found: dict[str, set[str]] = defaultdict(set)
        for entry in syntax.imports(text, language):
            module = self._absolute(entry.module, path) if entry.module.startswith(".") else entry.module
            inside = self._modules.get(f"{module}.{entry.name}") if entry.name not in (None, "*") else None
            origin = inside or self._modules.get(module)
            if origin is None and language == "java":  # a class inside of a class
                origin = self._modules.get(module.rpartition(".")[0])
            if entry.name == "*" and language == "java":
                for other in self._in_package(module):
                    found[self.by_path[other].module].add(other)
            elif entry.name == "*" and origin:
                for name in self.by_path[origin].declared:
                    found[name].add(origin)
            elif origin:
                found[entry.bound].add(origin)
            elif entry.name is None and any(name.startswith(f"{module}.") for name in self._modules):
                found[entry.bound].add(
                    next(p for n, p in self._modules.items() if n.startswith(f"{module}."))
                )
        if language == "java":
            package, used = _PACKAGE.search(text), set(_WORD.findall(text))
            for other in self._in_package(package[1] if package else ""):
                if other != path and self.by_path[other].module in used:
                    found[self.by_path[other].module].add(other)
        found.pop("*", None)
        return dict(found)

    def _in_package(self, package: str) -> list[str]:
        """Paths of the files of a Java package."""
        return [path for name, path in self._modules.items() if name.rpartition(".")[0] == package]

    def _absolute(self, module: str, path: str) -> str:
        """The name, seen from the top, of a module that is named with leading dots in a file."""
        dots = len(module) - len(module.lstrip("."))
        package = path.split("/")[:-1]
        package = package[: len(package) - (dots - 1)] if dots > 1 else package
        return ".".join([*package, *([module[dots:]] if module[dots:] else [])])


def words(text: str) -> list[str]:
    """The words in a text's identifiers, small, cut at underscores and capitals: ``HttpError_2`` is ``http``, ``error``."""
    found: list[str] = []
    for name in _WORD.findall(text):
        found += split_identifier(name)
    return found


@functools.lru_cache(maxsize=1 << 18)
def split_identifier(name: str) -> tuple[str, ...]:
    """The words of an identifier, small, cut at underscores, capitals and digits, which are left out."""
    return tuple(part.lower() for part in _PART.findall(name))


def path_distance(first: str, second: str) -> int:
    """Folders to go from one file to another: those that only the one is in, and those that only the other is in.

    Source: Long Code Arena, Bogomolov et al. 2024, arXiv:2406.11612, the composer of that name.
    """
    one, other = first.split("/"), second.split("/")
    common = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        common += 1
    return (len(one) - common - 1) + (len(other) - common - 1)
