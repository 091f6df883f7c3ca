"""The fault suite's register: planted defects, each with the check that must catch it, and healthy set-ups.

A defect is a function that makes a healthy set-up, spoils one thing of it where that goes wrong in life (a data file,
a template, a tokenizer folder, a model folder, a recipe, a Trainer's arguments) and returns what
``luthier check --json`` or ``luthier.audit`` said. The files of ``planted/`` hold them, one for each family of checks.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.check.runner import Report
from luthier.records import Severity

Said = Report | dict[str, Any]
Plant = Callable[[Path], Said]


@dataclass(frozen=True)
class Fault:
    """A planted defect."""

    name: str
    check: str
    severity: Severity
    catalogue: tuple[int, ...]
    where: str
    plant: Plant
    family: str

    @property
    def how(self) -> str:
        """What is planted: the summary of the function."""
        return " ".join((self.plant.__doc__ or "").split())


@dataclass(frozen=True)
class Healthy:
    """A set-up that must give no error and at most one warning."""

    name: str
    make: Plant

    @property
    def how(self) -> str:
        """What it is: the summary of the function."""
        return " ".join((self.make.__doc__ or "").split())


FAULTS: dict[str, Fault] = {}
HEALTHY: dict[str, Healthy] = {}


def planted(
    check: str, *, catalogue: tuple[int, ...], where: str, severity: Severity = "error"
) -> Callable[[Plant], Plant]:
    """Registers a defect.

    Args:
        check: The check that must catch it.
        catalogue: Entries of the catalogue of silent failures that it is an instance of.
        where: At which level it is planted: ``data file``, ``template``, ``tokenizer folder``, ``model folder``,
            ``recipe``, ``Trainer arguments``, ``collator``, ``model``, ``rows file`` ...
        severity: What it must be called.
    """

    def add(plant: Plant) -> Plant:
        name = plant.__name__.replace("_", "-")
        assert name not in FAULTS, f"two defects are named {name}"
        assert plant.__doc__, f"{name} does not say what it plants"
        family = plant.__module__.rpartition(".")[2]
        FAULTS[name] = Fault(name, check, severity, catalogue, where, plant, family)
        return plant

    return add


def healthy(make: Plant) -> Plant:
    """Registers a healthy set-up."""
    name = make.__name__.replace("_", "-")
    assert name not in HEALTHY and make.__doc__
    HEALTHY[name] = Healthy(name, make)
    return make


def load() -> None:
    """Imports all files of ``planted/``."""
    from tests.faults import planted as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def cli(*arguments: object) -> dict[str, Any]:
    """What a command of ``luthier`` prints as JSON, run in this process; for ``check`` and ``audit``."""
    from typer.testing import CliRunner

    from luthier.cli import app

    result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--json")])
    assert result.exit_code in (0, 1), f"exit code {result.exit_code}: {result.stdout}{result.stderr}"
    said: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (0 if said["ok"] else 1)
    return said


def check_recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """``luthier check`` of the tiny recipe with changes, whose code and model lie in ``folder`` if nothing else does."""
    from tests.fixtures.tiny_run import write_recipe

    return cli("check", write_recipe(folder, **changes), "--run", folder / "run")


def as_dict(said: Said) -> dict[str, Any]:
    """The JSON form of either."""
    return said.to_dict() if isinstance(said, Report) else said
