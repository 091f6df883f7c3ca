"""Luthier fine-tunes code language models, and proves before any time is spent that the run can work.

``luthier.run("recipe.yaml")`` is ``luthier run recipe.yaml``; so are ``prepare``, ``check``, ``train``, ``evaluate`` and
``report``. What a plug-in needs is here as well. The decorator of checks is ``luthier.registry.check``, for
``luthier.check`` is the stage.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier import registry as registry
    from luthier.check.audit import audit as audit
    from luthier.check.runner import Report as Report
    from luthier.errors import Refused as Refused
    from luthier.errors import UserError as UserError
    from luthier.pipeline import check as check
    from luthier.pipeline import evaluate as evaluate
    from luthier.pipeline import prepare as prepare
    from luthier.pipeline import report as report
    from luthier.pipeline import run as run
    from luthier.pipeline import train as train
    from luthier.recipe import Recipe as Recipe
    from luthier.recipe_file import load as load
    from luthier.records import Dropped as Dropped
    from luthier.records import Example as Example
    from luthier.records import Finding as Finding
    from luthier.records import Record as Record
    from luthier.records import Span as Span
    from luthier.registry import metric as metric
    from luthier.registry import model as model
    from luthier.registry import source as source
    from luthier.registry import task as task
    from luthier.run_folder import RunFolder as RunFolder
    from luthier.train.callback import WatchCallback as WatchCallback

    __version__: str

# Name -> module that it is loaded from when first asked for, so that `import luthier` itself costs nothing.
_EXPORTS = {
    **dict.fromkeys(("run", "prepare", "check", "train", "evaluate", "report"), "luthier.pipeline"),
    "audit": "luthier.check.audit",
    "Report": "luthier.check.runner",
    "WatchCallback": "luthier.train.callback",
    "Recipe": "luthier.recipe",
    "load": "luthier.recipe_file",
    "RunFolder": "luthier.run_folder",
    **dict.fromkeys(("Record", "Span", "Example", "Dropped", "Finding"), "luthier.records"),
    **dict.fromkeys(("UserError", "Refused"), "luthier.errors"),
    **dict.fromkeys(("task", "source", "metric", "model"), "luthier.registry"),
}
__all__ = [
    "Dropped", "Example", "Finding", "Recipe", "Record", "Refused", "Report", "RunFolder", "Span", "UserError", "WatchCallback",
    "__version__",
    "audit", "check", "evaluate", "load", "metric", "model", "prepare", "registry", "report", "run", "source", "task", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("luthier")
        except PackageNotFoundError:  # imported from a source tree that is not installed
            return "0+source"
    if name == "registry":
        return import_module("luthier.registry")
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'luthier' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps ``luthier.check`` and the other stages functions when the folder of that name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _EXPORTS):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
