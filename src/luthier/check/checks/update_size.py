from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.check.as_before import unchanged
from luthier.check.context import CheckContext, Skip
from luthier.check.steps import only_trainable, only_trained, restrict, said, set_gradients, step_rows
from luthier.records import Finding
from luthier.registry import check

NUM_ROWS = 2
MAX_TOKENS = 64
# The optimizer's state is two to four times as large again.
MOST_BYTES = 2**28
# A step of AdamW is as large as the learning rate for every weight. In fp32 that changes all of them; in bf16, whose
# numbers are 0.4% to 0.8% apart, 88% of N(0, 0.02) at 1e-4, 30% at 2e-5, 16% at 1e-5 and 2% at 1e-6 (measured).
LEAST_SHARE = 0.5
FEWEST_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Changed:
    """Weights of one number format that a step was to change.

    Attributes:
        dtype: The format.
        changed: How many it did change.
        total: How many had a gradient.
        typical: Mean absolute value of the weights.
    """

    dtype: torch.dtype
    changed: int
    total: int
    typical: float

    @property
    def share(self) -> float:
        """Share that was changed, in [0, 1]."""
        return self.changed / self.total


@check("update-size")
def update_size(context: CheckContext) -> Iterator[Finding]:
    """A step changes the weights that it is meant to change.

    What it does: one step of the training's own optimizer at the peak learning rate, with the gradients of 2 training
    rows, over at most 256 MiB of the trained weights (the last of the model), and counts, for each number format, the
    weights with a gradient whose bits changed. All is put back afterwards.

    Why is this bad: an update that is smaller than half the distance between two numbers of the format is rounded away,
    at every step again: the loss falls a little and then no more.

    Example: weights in bf16 that are trained whole at a learning rate of 1e-6: 2% of them change.

    Fix: keep trained weights in fp32 (``dtype=torch.float32``; matrix products may stay in bf16 with ``bf16=True``), train
    an adapter, or use an optimizer with stochastic rounding.

    Catalogue: 72
    """
    model, training = context.model, context.training
    only_trainable(model)
    rows = step_rows(context, NUM_ROWS, MAX_TOKENS)
    with unchanged(model):
        step = training.step([[row.index for row in rows]], MAX_TOKENS)
        only_trained(step)
        if not math.isfinite(step.norm):
            raise Skip("the gradients are not finite (see gradients)")
        optimizer = training.optimizer()
        chosen = restrict(optimizer, MOST_BYTES, model.parameters())
        set_gradients(model, step, training.plan.max_gradient_norm)
        before = [p.detach().clone() for p in chosen]
        optimizer.step()
        found = _counted(chosen, before)
    num_chosen = sum(p.numel() for p in chosen)
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    context.looked_at(f"{num_chosen:,} of {num_trained:,} trained weights, {said(rows)}")
    rate = max((float(group["lr"]) for group in optimizer.param_groups), default=0.0)
    for kind in found:
        if kind.share < LEAST_SHARE:
            yield _finding(context, kind, rate, type(optimizer).__name__)


@torch.no_grad()
def _counted(parameters: list[Tensor], before: list[Tensor]) -> list[Changed]:
    kinds: dict[torch.dtype, list[float]] = {}
    for parameter, old in zip(parameters, before, strict=True):
        if parameter.grad is None:
            continue
        moved = parameter.grad != 0
        sums = kinds.setdefault(parameter.dtype, [0, 0, 0.0])
        sums[0] += int((parameter[moved] != old[moved]).sum())
        sums[1] += int(moved.sum())
        sums[2] += float(old[moved].abs().double().sum())
    return [Changed(d, int(c), int(n), total / n) for d, (c, n, total) in kinds.items() if n]


def _finding(context: CheckContext, kind: Changed, rate: float, optimizer: str) -> Finding:
    precision = torch.finfo(kind.dtype).eps * kind.typical / 2
    plan = context.training.plan
    if rate <= 0:
        cause = f"the optimizer's learning rate is {rate:g}"
        where, fix = plan.key("learning_rate"), "set a learning rate above 0"
    elif kind.dtype == torch.float32:
        cause = f"{optimizer} makes updates far smaller than the learning rate of {rate:.3g}"
        where, fix = plan.key("learning_rate"), "raise the learning rate: this is not AdamW's scale"
    else:
        name = str(kind.dtype).removeprefix("torch.")
        cause = (
            f"an update is about {rate:.2g}, and {name} rounds away what is under about {precision:.1g} of a weight of "
            f"{kind.typical:.2g}"
        )
        where = f"model {context.model_name}, trained in {name}"
        fix = context.fix(
            "model.precision=fp32",
            "load the model with dtype=torch.float32 (bf16=True keeps matrix products fast), or train an adapter",
        )
    return Finding(
        "update-size",
        "error" if kind.share < FEWEST_SHARE else "warning",
        f"a step at the peak learning rate changes {kind.share:.1%} of {kind.total:,} trained weights: {cause}",
        where,
        fix,
        measured=round(kind.share, 4),
        expected="about 1",
    )
