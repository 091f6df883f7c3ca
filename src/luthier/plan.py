"""A training as something to check, whoever does it: what it is set to do, one step of it, and its optimizer.

``train/rehearsal.py`` is Luthier's own, ``check/trainer.py`` a transformers ``Trainer``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training is set to do, computed from its settings alone.

    Attributes:
        learning_rates: Of each optimizer step, as the schedule will have it.
        peak_learning_rate: As set.
        warmup_steps: As set, or as they follow from a share.
        steps_per_epoch: Optimizer steps of one pass over the training rows.
        rows_per_step: Rows of one optimizer step, over accumulation and ranks.
        num_rows: Training rows; None if they are streamed.
        num_eval_rows: Rows that it is evaluated on; None if they are streamed.
        accumulation_steps: Micro-batches whose gradients one step of one rank adds up.
        num_ranks: Processes.
        eval_steps, save_steps: Steps after which it is evaluated and saved; the first one may lie beyond the run.
        best_metric: What chooses the checkpoint that is kept at the end; None if the last one is kept.
        best_direction: Whether that metric is better when it is smaller or larger.
        max_gradient_norm: Gradients are clipped to this norm; None if they are not.
        schedule_steps: Steps after which a schedule that was made elsewhere has come to its end, where these are more
            than the run's; None if it ends with the run, or never.
        ignored_epochs: Epochs that are set and that a limit of steps overrides; None if that is so by default.
        saves_optimizer: Whether what it saves is enough to go on from.
        keys: Where each of these is set, for messages: ``{"warmup_steps": "recipe key train.warmup_steps"}``.
    """

    learning_rates: Sequence[float]
    peak_learning_rate: float
    warmup_steps: int
    steps_per_epoch: float
    rows_per_step: int
    num_rows: int | None
    num_eval_rows: int | None
    accumulation_steps: int = 1
    num_ranks: int = 1
    eval_steps: Sequence[int] = ()
    save_steps: Sequence[int] = ()
    best_metric: str | None = None
    best_direction: Literal["min", "max"] = "min"
    max_gradient_norm: float | None = None
    schedule_steps: int | None = None
    ignored_epochs: float | None = None
    saves_optimizer: bool = True
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return len(self.learning_rates)

    def key(self, name: str) -> str:
        """Where a setting stands, for messages."""
        return self.keys.get(name, name)


def due(every: int, num_steps: int) -> list[int]:
    """The steps after which something planned for each ``every`` steps happens; the first one even if it never comes."""
    return list(range(every, max(every, num_steps) + 1, every))


def window(length: int, first_trained: int, max_tokens: int) -> slice:
    """The part of a row that is looked at: its beginning if something is trained in it, else what is around that.

    Args:
        length: Tokens of the row.
        first_trained: Position of the first trained token that something stands before; 0 if there is none.
        max_tokens: Most tokens of the part.
    """
    if length <= max_tokens:
        return slice(0, length)
    around = 0 if first_trained < max_tokens * 3 // 4 else first_trained - max_tokens // 2
    start = min(around, length - max_tokens)
    return slice(start, start + max_tokens)


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step computed, before clipping and before anything is changed.

    Attributes:
        loss: As it would be logged.
        gradients: By parameter name; None where a trainable parameter got none. On the model's device.
    """

    loss: float
    gradients: Mapping[str, Tensor | None]

    @property
    def norm(self) -> float:
        """Norm of all gradients together."""
        squares = (float(g.double().square().sum()) for g in self.gradients.values() if g is not None)
        return math.sqrt(sum(squares))


class Training(Protocol):
    """Luthier's own training of a recipe, or a transformers ``Trainer``."""

    @property
    def plan(self) -> Plan:
        """What it is set to do."""

    def step(self, micro_batches: Sequence[Sequence[int]], max_tokens: int | None = None) -> Step:
        """Loss and gradients of one optimizer step, computed as this training computes them.

        Args:
            micro_batches: Indices into ``context.rows["train"]`` of the rows of each micro-batch, in order. Of a row that
                lies in a pack the whole pack is taken.
            max_tokens: Cut rows to this ``window``; None leaves them as they are.

        Returns:
            The step. Parameters are as before, ``grad`` is None, the model is in training mode, and generators have
            moved on: call it where the model is put back afterwards (``check.as_before.unchanged``).
        """

    def optimizer(self) -> Optimizer:
        """A new optimizer over the model's parameters, grouped and set as this training does."""

    def save(self, folder: Path, optimizer: Optimizer) -> None:
        """Writes what this training writes to resume from: trained weights and the optimizer's state."""

    def restore(self, folder: Path, optimizer: Optimizer) -> None:
        """Puts what ``save`` wrote back into the model and an optimizer."""
