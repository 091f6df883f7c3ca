"""What can be named in a recipe: tasks, sources, metrics, checks and models, found by their decorator.

Three ways in, one lookup: a file in the built-in folder, ``path/to/file.py@name`` in a recipe, or a
module that another package names in its entry point group ``luthier.plugins``.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from luthier.errors import UserError

KINDS = {
    "task": "luthier.tasks",
    "source": "luthier.sources",
    "metric": "luthier.metrics",
    "check": "luthier.check.checks",
    "model": "luthier.models",
}
_registered: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
_in_order: list[tuple[str, str]] = []  # kind and name of each registration so far
_Entry = TypeVar("_Entry")


def _register(kind: str, name: str) -> Callable[[_Entry], _Entry]:
    def add(entry: _Entry) -> _Entry:
        known = _registered[kind].get(name)
        if known is not None and _origin(known) != _origin(entry):
            raise UserError(
                f"the {kind} {name!r} is registered twice: in {_origin(known)} and in {_origin(entry)}",
                f"@{kind}({name!r})",
                "give one of them another name",
            )
        _registered[kind][name] = entry
        _in_order.append((kind, name))
        return entry

    return add


def _origin(entry: Any) -> str:
    return f"{getattr(sys.modules.get(entry.__module__), '__file__', entry.__module__)}:{entry.__qualname__}"


def task(name: str) -> Callable[[_Entry], _Entry]:
    """Registers a task: a pydantic class whose fields are its recipe options (see ``luthier.tasks``)."""
    return _register("task", name)


def source(name: str) -> Callable[[_Entry], _Entry]:
    """Registers a source: a pydantic class with ``records()`` (see ``luthier.sources``)."""
    return _register("source", name)


def metric(name: str) -> Callable[[_Entry], _Entry]:
    """Registers a metric: a function from outputs and targets, and ``metas`` of the rows if it asks for them, to one score a row."""
    return _register("metric", name)


def check(name: str) -> Callable[[_Entry], _Entry]:
    """Registers a check: a function from a ``CheckContext`` to findings."""
    return _register("check", name)


def model(name: str) -> Callable[[_Entry], _Entry]:
    """Registers a model: a function that returns the local folder to load it from."""
    return _register("model", name)


@functools.cache
def _load_all(kind: str) -> None:
    package = importlib.import_module(KINDS[kind])
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{KINDS[kind]}.{module.name}")
    _load_plugins()


@functools.cache
def _load_plugins() -> None:
    for point in entry_points(group="luthier.plugins"):
        try:
            point.load()
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever a foreign module raises while it is imported
            raise UserError(
                f"the plug-in {point.name!r} does not import: {type(error).__name__}: {error}",
                f"entry point {point.value} of the package {point.dist.name if point.dist else '?'}",
                "mend or uninstall that package",
            ) from error


@functools.cache
def _load_file(path: str, content_hash: str) -> frozenset[tuple[str, str]]:
    """Imports a file; kind and name of each entry that it registers."""
    before = len(_in_order)
    spec = importlib.util.spec_from_file_location(f"luthier_file_{content_hash[:12]}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file", path, "name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        # Not by the loader: its compiled file is told by size and second, and a changed one might be run as it was before.
        exec(compile(Path(path).read_bytes(), path, "exec"), module.__dict__)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's file raises while it is imported
        raise UserError(
            f"{path} does not import: {type(error).__name__}: {error}", path, "mend that file"
        ) from error
    return frozenset(_in_order[before:])


def lookup(kind: str, name: str, where: str) -> Any:
    """The registered entry of that kind and name.

    Args:
        kind: One of ``KINDS``.
        name: A registered name, or ``path/to/file.py@name``.
        where: The recipe key that holds the name, for the error.

    Raises:
        UserError: No such name (the nearest one is offered), or a file that does not import.
    """
    path, at, short = name.rpartition("@")
    if at and path.endswith(".py"):
        if not Path(path).is_file():
            raise UserError(f"there is no file {path}", where, "name a file that exists")
        own = _load_file(path, hashlib.sha256(Path(path).read_bytes()).hexdigest())
        known = {n: e for n, e in _registered[kind].items() if (kind, n) in own}
        name = short
    else:
        _load_all(kind)
        known = _registered[kind]
    if name not in known:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(names) or 'none'}"
        there = f" in {path}" if at and path.endswith(".py") else ""
        raise UserError(f"there is no {kind} named {name!r}{there}", where, fix)
    return known[name]


def registered(kind: str) -> dict[str, Any]:
    """All entries of a kind by name, plug-ins included, sorted by name."""
    _load_all(kind)
    return dict(sorted(_registered[kind].items()))


def summary(entry: Any) -> str:
    """The first line of an entry's docstring."""
    return (entry.__doc__ or "").strip().partition("\n")[0]


def code_hash(entry: Any) -> str:
    """SHA-256 of the file that defines an entry, so that changed code makes prepared data stale."""
    path = getattr(sys.modules[entry.__module__], "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
