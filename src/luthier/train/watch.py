"""Watching a training: what has been logged so far, and each watcher's first finding about it.

Watchers look at logged numbers alone, so that a resumed run, whose history is read back, sees what an uninterrupted one
has seen. They are in ``watchers.py``; ``loop.py`` and ``callback.py`` (for a transformers ``Trainer``) ask them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.records import Finding

BLOCK = 20  # losses whose median stands for a stretch of training


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a training before it starts.

    Attributes:
        chance_loss: Loss of a model that finds every token (or class) equally likely, in nats; None if unknown.
        warmup_steps: Steps until the learning rate has its peak.
        is_recipe: Whether advice names recipe keys; else arguments of a ``Trainer``.
        speed_unit: What ``tokens_per_s`` of a row really counts.
    """

    chance_loss: float | None = None
    warmup_steps: int = 0
    is_recipe: bool = True
    speed_unit: str = "tokens/s"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation: its loss in nats, and how many training losses had been logged before it."""

    step: int
    epoch: float
    loss: float
    index: int


@dataclass(frozen=True, slots=True)
class Block:
    """Twenty training losses in a row."""

    first_step: int
    last_step: int
    median: float
    low: float
    high: float


class Course:
    """What has been logged so far, in order.

    Args:
        setting: What was known before.

    Attributes:
        steps, losses, norms: One entry a logged training loss; norms are NaN where none was logged.
        paced, speeds, memory: Steps of this process, their speed, and the memory in use in GiB.
        evals: All evaluations.
        blocks: Whole blocks of losses.
        epochs: Sum and number of the losses of each epoch, by its number from 1.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.paced: list[int] = []
        self.speeds: list[float] = []
        self.memory: list[float] = []
        self.evals: list[Evaluation] = []
        self.blocks: list[Block] = []
        self.epochs: dict[int, tuple[float, int]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes in an object of ``history.jsonl``; losses that are not finite are left out."""
        loss = row.get("loss")
        if loss is not None and math.isfinite(loss):
            self.steps.append(row["step"])
            self.losses.append(loss)
            norm = row.get("gradient_norm")
            self.norms.append(float("nan") if norm is None else norm)
            epoch = max(1, math.ceil(row.get("epoch", 0) - 1e-6))
            total, count = self.epochs.get(epoch, (0.0, 0))
            self.epochs[epoch] = (total + loss, count + 1)
            if len(self.losses) % BLOCK == 0:
                last = self.losses[-BLOCK:]
                self.blocks.append(
                    Block(self.steps[-BLOCK], self.steps[-1], float(np.median(last)), min(last), max(last))
                )
        if "tokens_per_s" in row:
            self.paced.append(row["step"])
            self.speeds.append(row["tokens_per_s"])
            self.memory.append(row["memory_gib"])
        loss = (row.get("eval") or {}).get("loss")
        if loss is not None and math.isfinite(loss):
            self.evals.append(Evaluation(row["step"], row.get("epoch", 0.0), loss, len(self.losses)))

    @property
    def step(self) -> int:
        """The last step of which anything was logged."""
        return max(self.steps[-1] if self.steps else 0, self.evals[-1].step if self.evals else 0)

    def fix(self, recipe: str, other: str) -> str:
        """What to do about a finding: in a recipe, and in anything else."""
        return recipe if self.setting.is_recipe else other

    def where(self) -> str:
        """Where the last step can be found."""
        return f"step {self.step} of history.jsonl" if self.setting.is_recipe else f"step {self.step}"


Watcher = Callable[[Course], Finding | None]


class Watch:
    """All watchers over one training; each of them speaks once.

    Args:
        setting: What is known of the training.
        history: Objects of ``history.jsonl`` up to the checkpoint that the training goes on from.
    """

    def __init__(self, setting: Setting, history: Iterable[Mapping[str, Any]] = ()) -> None:
        from luthier.train.watchers import WATCHERS

        self.course = Course(setting)
        self.silent = dict(WATCHERS)
        for row in history:
            pace = ("tokens_per_s", "memory_gib")  # of another process
            self.course.add({key: value for key, value in row.items() if key not in pace})
            for finding in row.get("findings", ()):
                self.silent.pop(finding["check"], None)

    def see(self, row: Mapping[str, Any]) -> list[Finding]:
        """Takes in an object of ``history.jsonl``; returns what watchers say of it that had been silent."""
        self.course.add(row)
        found = [finding for watcher in self.silent.values() if (finding := watcher(self.course))]
        for finding in found:
            del self.silent[finding.check]
        return found
