"""What checks of the training step share: a few short rows to step on, and what is done with their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from luthier.check.context import CheckContext, Skip, evenly
from luthier.check.model_rows import cut, only_embedded
from luthier.check.trainer import TrainerContext, is_cut_as_row
from luthier.plan import Step
from luthier.records import Row

# Rows that are looked at to choose from.
_CANDIDATES = 64
# A whole model is written and read again, and stands in memory twice; 135 million parameters in fp32 take half of this.
MOST_BYTES = 2**30
# Large enough for a gradient in bf16 to arrive, small enough to leave the logits in their range.
NOISE = 0.01


@dataclass(frozen=True, slots=True)
class StepRow:
    """A training row to step on.

    Attributes:
        index: In ``context.rows["train"]``.
        row: Cut as the step cuts it; of a pack, its first row.
        num_trained: Trained tokens; 1 where the row has a label.
        same: Whether the step has these very tokens: nothing lies in the same pack, and items are cut as rows are.
    """

    index: int
    row: Row
    num_trained: int
    same: bool


def step_rows(context: CheckContext, count: int, max_tokens: int, *, varied: bool = False) -> list[StepRow]:
    """A few training rows that a step is made on, each of another pack: the shortest of those looked at.

    Args:
        context: Of a training.
        count: Most rows.
        max_tokens: As it will be given to ``Training.step``.
        varied: Take rows of as different numbers of trained tokens as there are, not the shortest.

    Raises:
        Skip: No row has a trained token, or an id has no embedding.
    """
    _ = context.model  # says that it is left out, or cannot be loaded
    rows = context.training_rows()
    found: dict[str, StepRow] = {}
    for index in evenly(len(rows), _CANDIDATES):
        row = rows.row(index)
        pack = row.meta.get("pack")
        part = cut(row, max_tokens)
        trained = np.count_nonzero(
            part.loss_weights if context.objective == "tags" else part.loss_weights[1:]
        )
        num_trained = 1 if context.objective == "classes" else int(trained)
        same = pack is None and (
            len(part.input_ids) == len(row.input_ids)
            or not isinstance(context, TrainerContext)
            or is_cut_as_row(context.items([index])[0], row)
        )
        if num_trained and len(part.input_ids):
            found.setdefault(str(pack or index), StepRow(index, part, num_trained, same))
    if not found:
        raise Skip("there is no training row with a trained token (see untrained-row)")
    chosen = sorted(
        found.values(), key=lambda r: (r.num_trained if varied else len(r.row.input_ids), r.index)
    )
    if varied and count < len(chosen):
        chosen = [chosen[place] for place in evenly(len(chosen), count)]
    chosen = chosen[:count]
    only_embedded(context, [r.row.input_ids for r in chosen])
    return chosen


def only_trainable(model: torch.nn.Module) -> None:
    """Ends a check that trains.

    Raises:
        Skip: Nothing of the model is trainable.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise Skip("nothing is trainable (see gradients)")


def only_small(model: torch.nn.Module) -> None:
    """Ends a check that writes what is trained, and of a model without an adapter that is all.

    Raises:
        Skip: That would be more than 1 GiB.
    """
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    if not isinstance(model, PeftModel) and num_bytes > MOST_BYTES:
        raise Skip(
            f"the model has {num_bytes / 2**30:.1f} GiB; only up to {MOST_BYTES / 2**30:g} GiB are written here"
        )


def only_trained(step: Step) -> None:
    """Ends a check that needs gradients.

    Raises:
        Skip: There are none.
    """
    if not any(gradient is not None for gradient in step.gradients.values()):
        raise Skip("nothing that is trained gets a gradient (see gradients)")


@torch.no_grad()
def fill_zeros(model: torch.nn.Module, noise: float = NOISE) -> None:
    """Puts small noise into trainable parameters that are all zero, such as LoRA's B, which stops A's gradient."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * noise)


def set_gradients(model: torch.nn.Module, step: Step, max_norm: float | None = None) -> None:
    """Puts a step's gradients into the parameters, clipped to a norm."""
    share = 1.0 if max_norm is None else min(1.0, max_norm / (step.norm + 1e-6))
    for name, parameter in model.named_parameters():
        gradient = step.gradients.get(name)
        if gradient is not None:
            parameter.grad = gradient.mul_(share)


def restrict(optimizer: torch.optim.Optimizer, max_bytes: int, among: Iterable[Tensor]) -> list[Tensor]:
    """Leaves in an optimizer only some of its parameters, from the last of the model on, so that its state stays small.

    Args:
        optimizer: Without state yet.
        max_bytes: Of these parameters together; one is left in any case.
        among: The model's parameters, in order.

    Returns:
        Those that are left.

    Raises:
        Skip: It holds none of the model's.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left: list[Tensor] = []
    num_bytes = 0
    for parameter in reversed([p for p in among if id(p) in held]):
        num_bytes += parameter.numel() * parameter.element_size()
        if left and num_bytes > max_bytes:
            break
        left.append(parameter)
    if not left:
        raise Skip("the optimizer holds none of the model's parameters (see parameter-groups)")
    kept = {id(p) for p in left}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) in kept]
    return left


def gradient_factor(first: Step, second: Step) -> tuple[float, float]:
    """How a step's gradients compare to those of another.

    Returns:
        The factor that brings the second's closest to the first's (least squares); and the norm of what is then left,
        as a share of the first's norm. NaN if one of them is zero or not finite.
    """
    products, squares, own = 0.0, 0.0, 0.0
    for name, gradient in first.gradients.items():
        other = second.gradients.get(name)
        if gradient is None or other is None:
            continue
        a, b = gradient.double().flatten(), other.double().flatten()
        products += float(a @ b)
        squares += float(b @ b)
        own += float(a @ a)
    if not squares or not own:
        return float("nan"), float("nan")
    factor = products / squares
    return factor, max(0.0, own - factor * products) ** 0.5 / own**0.5


def said(rows: Sequence[StepRow]) -> str:
    """How many rows, and how long."""
    longest = max(len(r.row.input_ids) for r in rows)
    return f"{len(rows)} training row{'s' * (len(rows) > 1)} of up to {longest} tokens"
