from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from peft import PeftModel

from luthier.check.as_before import no_dropout, unchanged
from luthier.check.context import CheckContext, Skip
from luthier.check.steps import (
    StepRow,
    only_trainable,
    only_trained,
    restrict,
    said,
    set_gradients,
    step_rows,
)
from luthier.records import Finding
from luthier.registry import check

NUM_ROWS = 2
MAX_TOKENS = 48
# Steps at each learning rate, 30 in all. A batch of two short rows is halved within five of them by any wiring that works.
NUM_STEPS = 10
# An adapter starts at nothing and takes large steps; whole models take small ones. Wiring is tested, not tuning.
RATES = {True: (1e-2, 1e-3, 1e-4), False: (1e-3, 1e-4, 1e-2)}
# Of optimizers whose step is the gradient itself, and not its sign.
RATES_OF_SGD = (1e-1, 1.0, 1e-2)
# Reached within a few steps where anything is learned. Two steps in a row must be under a share, since labels that are
# drawn anew each time may be lucky once; what is a fresh head must fall further, as its luck is larger.
ENOUGH = {"tokens": 0.7, "classes": 0.5, "tags": 0.7}
LEAST_FALL = {"tokens": 0.8, "classes": 0.65, "tags": 0.8}
# Adapters of few numbers learn slowly, but steadily: all steps but one go down, by this much together.
STEADY_FALL = 0.99
# The optimizer's state is two to four times as large again.
MOST_BYTES = 2**29
MAX_NORM = 1.0


@check("overfit-batch")
def overfit_batch(context: CheckContext) -> Iterator[Finding]:
    """The loss of one tiny batch falls when the model is trained on nothing else.

    What it does: at most 30 steps of the training itself over the same 2 rows (cut to 48 tokens; dropout off), with its
    own optimizer at a learning rate that is chosen for this (three are tried, 10 steps each), over at most 512 MiB of the
    trained weights, until the loss has fallen enough. It must fall to 0.8 of what it was (of classes, to 0.65) for two
    steps in a row, or steadily. The weights are put back bit by bit.

    Why is this bad: whatever is wired wrong (labels that have nothing to do with the row, a loss that does not reach the
    weights, an optimizer over other tensors, a step whose sign is wrong) shows here, before a night is spent on it.

    Example: a collator that draws labels anew for each batch; an optimizer that was made for another model.

    Fix: see what the other checks say of gradients, parameter-groups and step-loss; then look at one batch by hand.

    Catalogue: 37, 68, 69
    """
    model = context.model
    only_trainable(model)
    training = context.training
    rows = step_rows(context, NUM_ROWS, MAX_TOKENS)
    curves: dict[float, list[float]] = {}
    sgd = type(training.optimizer()).__name__ == "SGD"
    for rate in RATES_OF_SGD if sgd else RATES[isinstance(model, PeftModel)]:
        with unchanged(model), no_dropout(model):
            curves[rate] = curve = _train(context, rows, rate)
        if _least(curve) <= LEAST_FALL[context.objective] * curve[0] or _is_steady(curve):
            break
    num_steps = sum(len(curve) - 1 for curve in curves.values())
    best = min(curves, key=lambda rate: _least(curves[rate]) / curves[rate][0])
    first, least, enough = curves[best][0], _least(curves[best]), LEAST_FALL[context.objective]
    context.looked_at(f"{num_steps} steps over {said(rows)}: loss {first:.3f} to {least:.3f}")
    # Known by heart already, or learned.
    if first < 1e-3 or least <= enough * first or any(map(_is_steady, curves.values())):
        return
    tried = "; ".join(f"{_least(curve):.3f} at {rate:g}" for rate, curve in curves.items())
    yield Finding(
        "overfit-batch",
        "error",
        f"{num_steps} steps over the same {len(rows)} rows bring the loss from {first:.3f} to {least:.3f} at best, {least / first:.3f} "
        f"of it: nothing is learned (least loss at each learning rate: {tried})",
        f"{context.place('train')}: {', '.join(row.row.id for row in rows)}",
        "look at one batch by hand: are these labels of these rows, and does the optimizer hold the model's own parameters?",
        measured=round(least / first, 3),
        expected=f"at most {enough}",
    )  # fmt: skip


def _least(curve: Sequence[float]) -> float:
    """The least loss that two steps in a row were under."""
    return min((max(pair) for pair in pairwise(curve)), default=curve[0])


def _is_steady(curve: Sequence[float]) -> bool:
    """Whether the loss fell in all steps but one, and by more than noise together."""
    falls = sum(after < before for before, after in pairwise(curve))
    return len(curve) > NUM_STEPS and falls >= NUM_STEPS - 1 and curve[-1] <= STEADY_FALL * curve[0]


def _train(context: CheckContext, rows: Sequence[StepRow], rate: float) -> list[float]:
    """The loss before each step at a learning rate, and after the last one; it ends early when the loss is low enough."""
    training, model = context.training, context.model
    optimizer = training.optimizer()
    restrict(optimizer, MOST_BYTES, model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = 0.0
    curve: list[float] = []
    for _ in range(NUM_STEPS + 1):
        step = training.step([[row.index for row in rows]], MAX_TOKENS)
        only_trained(step)
        if not math.isfinite(step.loss) or not math.isfinite(step.norm):
            if not curve:
                raise Skip("loss or gradients are not finite (see gradient-norm)")
            break  # too large a learning rate
        if not curve and not step.loss:
            raise Skip("the loss is 0 from the start (see step-loss)")
        curve.append(step.loss)
        if _least(curve) <= ENOUGH[context.objective] * curve[0]:
            break
        set_gradients(model, step, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return curve
