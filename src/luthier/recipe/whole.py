"""The recipe as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from luthier import registry
from luthier.recipe.data import Check, Data
from luthier.recipe.evaluate import Evaluate, Report
from luthier.recipe.model import FROM_WEIGHTS, Model
from luthier.recipe.options import Options
from luthier.recipe.repair import Repair
from luthier.recipe.train import Train


class Recipe(Options):
    """A whole run: what is learned from what, by which model, how."""

    name: str = Field("run", pattern=r"^\w[\w.-]*$")
    """Short name; names the default run folder ``runs/NAME``."""
    description: str = ""
    """One line for lists and the report."""
    seed: int = Field(0, ge=0, lt=1 << 32)
    """Seed of everything that is drawn."""
    task: dict[str, Any] = Field(default_factory=lambda: {"type": "line-completion"})
    """``type`` and the options of that task (``luthier list tasks``)."""
    model: Model = Model()
    """Which model, and what of it is trained."""
    data: Data = Data()
    """Where the rows come from."""
    check: Check = Check()
    """The gate before training."""
    train: Train = Train()
    """The training loop."""
    evaluate: Evaluate = Evaluate()
    """The comparison of base and tuned model."""
    repair: Repair = Repair()
    """Candidate patches and their judging."""
    report: Report = Report()
    """The page."""
    stages: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], dict[str, Any]] = {}
    """Trainings one after the other, by name, each with the recipe's keys that it has otherwise: ``{plain: {}, hard: {train: {epochs: 1}}}``. Each goes on from what the one before it has trained, unless its own ``model`` says ``name``, ``start_from`` or ``scratch``; ``stage:NAME`` there is the result of an earlier one."""

    @property
    def rows_seed(self) -> int:
        """Seed of what is drawn when rows are made."""
        return self.seed if self.data.seed is None else self.data.seed

    @model_validator(mode="after")
    def _shardable(self) -> Recipe:
        adapter = self.model.adapter
        whole = {
            f"model.quantisation={self.model.quantisation}": self.model.quantisation is not None,
            f"train.optimizer={self.train.optimizer}": self.train.optimizer != "adamw",
            "model.start_mode=stack": self.model.start_from is not None and self.model.start_mode == "stack",
            f"model.adapter.init={adapter and adapter.init}": adapter is not None
            and adapter.init in FROM_WEIGHTS,
        }
        if self.train.sharding != "none" and any(whole.values()):
            names = " and ".join(name for name, given in whole.items() if given)
            raise ValueError(f"train.sharding={self.train.sharding} cannot go with {names}; leave one out")
        return self


# The places of a recipe that hold a registered thing: key path -> kind.
TYPED = {
    ("task",): "task",
    ("data", "source"): "source",
    ("data", "eval_source"): "source",
    ("data", "test_source"): "source",
    ("repair", "bugs"): "source",
}


def build(kind: str, options: Mapping[str, Any], where: str = "") -> Any:
    """The task or source that a recipe's ``{"type": ..., **options}`` describes."""
    fields = {key: value for key, value in options.items() if key != "type"}
    return registry.lookup(kind, options["type"], where or kind)(**fields)
