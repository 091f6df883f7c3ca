from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from luthier.check.as_before import unchanged
from luthier.check.context import CheckContext
from luthier.check.steps import StepRow, only_trained, said, step_rows
from luthier.check.trainer import TrainerContext
from luthier.plan import Step
from luthier.records import Finding
from luthier.registry import check

NUM_BATCHES = 3
ROWS_PER_BATCH = 2
MAX_TOKENS = 64
# Fresh classification heads and small random models start at 5 to 20 times a limit of 1, pretrained ones at 0.1 to 10,
# and fall within some steps. What is beyond this is the scale of the loss or of the head.
MOST_TIMES = 50


@check("gradient-norm")
def gradient_norm(context: CheckContext) -> Iterator[Finding]:
    """Losses and gradients of a few steps are finite, and clipping is for the exception.

    What it does: 3 steps of the training itself over 2 rows each (of up to 64 tokens, with dropout as in training):
    losses and gradient norms are finite, and not all of them are more than 50 times ``max_grad_norm``, nor is the norm of
    their mean, which is what larger batches have.

    Why is this bad: a norm that is always far beyond the limit means that every step is clipped to the same length: the
    limit no longer tells bad batches from good ones, and the learning rate means something else. A NaN spreads to all
    weights at the first step; ``Trainer`` replaces it in its log by the mean of the other steps
    (``logging_nan_inf_filter``).

    Example: a loss that is summed over tokens; a head whose weights are a hundred times too large; fp16 products that
    overflow.

    Fix: see checks step-loss and accumulation for the scale of the loss; compute in bf16 or fp32.

    Catalogue: 32, 40, 71, 73
    """
    training = context.training
    plan = training.plan
    rows = step_rows(context, NUM_BATCHES * ROWS_PER_BATCH, MAX_TOKENS)
    batches = [rows[i::NUM_BATCHES] for i in range(min(NUM_BATCHES, len(rows)))]
    sums: dict[str, Tensor] = {}
    losses, norms = [], []
    with unchanged(context.model):
        for batch in batches:
            step = training.step([[row.index for row in batch]], MAX_TOKENS)
            only_trained(step)
            losses.append(step.loss)
            norms.append(step.norm)
            if not math.isfinite(step.loss) or not math.isfinite(step.norm):
                yield _not_finite(context, batch, step)
                return
            for name, gradient in step.gradients.items():
                if gradient is not None:
                    sums[name] = sums[name].add_(gradient) if name in sums else gradient.clone()
    pooled = Step(0.0, {name: total / len(batches) for name, total in sums.items()}).norm
    clipped = sum(norm > plan.max_gradient_norm for norm in norms) if plan.max_gradient_norm else 0
    context.looked_at(
        f"{len(batches)} steps over {said(rows)}: norms {min(norms):.2g} to {max(norms):.2g}, {clipped} of {len(norms)} clipped"
    )
    limit = plan.max_gradient_norm
    if not limit or min(*norms, pooled) <= MOST_TIMES * limit:
        return
    times = pooled / limit
    yield Finding(
        "gradient-norm",
        "warning",
        f"all {len(norms)} steps have a gradient norm of {min(norms):.4g} and more, {pooled:.4g} on average over their rows: "
        f"{times:.0f} times the limit of {limit:g}, so every step is clipped to the same length (losses {min(losses):.3g} to "
        f"{max(losses):.3g})",
        plan.key("max_gradient_norm"),
        "find the scale: a loss that is summed (step-loss), counted k-fold (accumulation), or a head with large weights",
        measured=round(times),
        expected=f"under {MOST_TIMES}",
    )  # fmt: skip


def _not_finite(context: CheckContext, batch: list[StepRow], step: Step) -> Finding:
    """The finding for rows whose loss or gradient is not a number, each of them tried alone."""
    alone = []
    for row in batch:
        again = context.training.step([[row.index]], MAX_TOKENS)
        if not math.isfinite(again.loss) or not math.isfinite(again.norm):
            alone.append(row.row.id)
    names = ", ".join(alone) if alone else "none of them alone, but both together"
    hidden = ""
    if isinstance(context, TrainerContext) and context.trainer.args.logging_nan_inf_filter:
        hidden = "; logging_nan_inf_filter=True will show the mean of other steps instead"
    return Finding(
        "gradient-norm",
        "error",
        f"a step has a loss of {step.loss:.4g} and a gradient norm of {step.norm:.4g}, rows {names}{hidden}",
        f"{context.place('train')}: {', '.join(row.row.id for row in batch)}",
        context.fix(
            "model.precision=fp32, or mend the rows", "compute in bf16 or fp32, and look at weights and rows"
        ),
        measured=str(step.norm if not math.isfinite(step.norm) else step.loss),
        expected="finite",
    )
