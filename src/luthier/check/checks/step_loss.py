from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from luthier.check.as_before import attributes_as_before, evaluating, no_dropout, unchanged
from luthier.check.context import CheckContext, Skip
from luthier.check.model_rows import batch_of, inputs_of, logits, losses
from luthier.check.steps import StepRow, only_trained, said, step_rows
from luthier.check.trainer import TrainerContext
from luthier.records import Finding
from luthier.registry import check

NUM_ROWS = 4
MAX_TOKENS = 64
# The same sums in another order: 1e-6 in fp32, 0.6% in bf16; a mixture of experts adds a balancing loss of about 1%.
MOST_DIFFERENCE = 0.03
# Candidates are told apart by more than this; the true one was within 1e-4 in fp32.
NEAR = 0.01


@check("step-loss")
def step_loss(context: CheckContext) -> Iterator[Finding]:
    """The loss that a training step computes is the cross-entropy of its rows' trained tokens (or labels).

    What it does: one step of the training itself over 4 rows in one micro-batch (cut to 64 tokens; dropout off),
    beside the mean cross-entropy that follows from the model's logits for the same rows: they agree to 3%. If they do
    not, the loss is compared with what known mistakes give: labels that are not shifted, or shifted twice; a loss over
    the prompt too; a sum instead of a mean; a divisor that counts first tokens. Label smoothing is taken out. Of a loss
    that was written on purpose and looks like none of these nothing is said but its value.

    Why is this bad: a model that is trained to repeat the token that it sees has a loss near zero and learns nothing; one
    whose labels are shifted twice learns to leave out each second token; either log looks normal.

    Example: a ``compute_loss`` that gives logits and labels to ``cross_entropy`` at the same positions.

    Fix: compare logits at position t with the label at t + 1 (transformers' models do so themselves, once).

    Catalogue: 31, 36, 37, 43
    """
    training = context.training
    rows = [row for row in step_rows(context, NUM_ROWS, MAX_TOKENS) if row.same]
    if not rows:
        raise Skip("rows are packed, or made of text by the collator")
    if context.objective == "tags":
        raise Skip("models that label each token are not looked into")
    if any(row.row.meta.get("other_labels") for row in rows):
        raise Skip("labels are not the rows' own tokens")
    context.looked_at(f"one step over {said(rows)}")
    custom = isinstance(context, TrainerContext) and _is_custom(context)
    with unchanged(context.model), no_dropout(context.model), _without_smoothing(context):
        step = training.step([[row.index for row in rows]], MAX_TOKENS)
        only_trained(step)
        if isinstance(context, TrainerContext) and not context.training.takes_cut_rows:
            raise Skip("the step takes rows only as they are")
        measured = step.loss
    with evaluating(context.model):
        expected = _cross_entropy(context, rows)
        if not math.isfinite(measured) or not math.isfinite(expected):
            raise Skip("the loss is not finite (see gradient-norm)")
        if not expected:
            raise Skip("the model knows these rows by heart: their cross-entropy is 0")
        if abs(measured - expected) <= MOST_DIFFERENCE * abs(expected):
            return
        own = _is_own(context, rows, measured)  # then initial-loss says what is wrong with it, if anything is
        known = _mistakes(context, rows, expected) if context.objective == "tokens" and not own else {}
        custom = custom or own
    num = training.plan.accumulation_steps
    if num > 1 and _near(measured * num, expected):
        if _divides_itself(context, num):
            return
        known = {f"a loss that is divided by the {num} micro-batches twice": expected / num}
    ranked = sorted(known, key=lambda name: abs(known[name] - measured))
    cause = ranked[0] if ranked and _near(known[ranked[0]], measured) else ""
    if cause or not custom:
        severity, why = ("error", f": it is what {cause} gives") if cause else ("warning", "")
    else:
        severity, why = (
            "note",
            ": what computes the loss is your own, or the model adds something to it: this may be as it should (see initial-loss)",
        )
    yield Finding(
        "step-loss",
        severity,  # type: ignore[arg-type]
        f"a step over {len(rows)} rows has a loss of {measured:.4f}, {measured / expected:.3f} times the cross-entropy of their "
        f"trained {'tokens' if context.objective == 'tokens' else 'labels'}, {expected:.4f}{why}",
        _where(context),
        "compare the logits at position t with the label at t + 1, once, and take the mean over trained tokens"
        if context.objective == "tokens"
        else "take the mean of cross_entropy(logits, labels) over rows",
        measured=round(measured, 4),
        expected=round(expected, 4),
    )


def _near(first: float, second: float) -> bool:
    return abs(first - second) <= NEAR * abs(second)


def _divides_itself(context: CheckContext, num: int) -> bool:
    """Whether a step of as many micro-batches as planned has the right loss, since each is divided by that number."""
    rows = step_rows(context, num, MAX_TOKENS)
    if len(rows) < num or not all(row.same for row in rows):
        return True  # it cannot be told
    with unchanged(context.model), no_dropout(context.model), _without_smoothing(context):
        measured = context.training.step([[row.index] for row in rows], MAX_TOKENS).loss
    with evaluating(context.model):
        expected = sum(_cross_entropy(context, [row]) for row in rows) / num
    return abs(measured - expected) <= MOST_DIFFERENCE * expected


def _is_own(context: CheckContext, rows: Sequence[StepRow], measured: float) -> bool:
    """Whether the model's own loss is the one that was measured, as where it adds a penalty or a balancing loss."""
    if context.objective != "tokens":
        return False
    batch = batch_of(context, [row.row for row in rows])
    labels_BT = batch.input_ids_BT.masked_fill(batch.loss_weights_BT == 0, -100)
    with context.forward():
        own = context.model(**inputs_of(batch), labels=labels_BT).loss
    return own is not None and abs(float(own) - measured) <= MOST_DIFFERENCE * abs(measured)


def _where(context: CheckContext) -> str:
    if not isinstance(context, TrainerContext):
        return f"model {context.model_name}"
    if context.trainer.compute_loss_func is not None:
        return "Trainer(compute_loss_func=...)"
    return f"{type(context.trainer).__name__}.compute_loss"


def _is_custom(context: TrainerContext) -> bool:
    """Whether a Trainer's loss is anything but plain cross-entropy."""
    return context.has_own_loss or getattr(context.trainer.args, "loss_type", "nll") != "nll"


@contextmanager
def _without_smoothing(context: CheckContext) -> Iterator[None]:
    """Room for steps whose label smoothing is so small that they must give plain cross-entropy."""
    smoother = getattr(getattr(context, "trainer", None), "label_smoother", None)
    with attributes_as_before([] if smoother is None else [smoother]):
        if smoother is not None:
            smoother.epsilon = 1e-9
        yield


def _cross_entropy(context: CheckContext, rows: Sequence[StepRow]) -> float:
    """The weighted mean over all trained tokens, or the mean over rows."""
    nll_N, rows_N = losses(context, [row.row for row in rows])
    if context.objective != "tokens":
        return float(nll_N.mean())
    weights = [torch.from_numpy(row.row.loss_weights[1:][row.row.loss_weights[1:] != 0]) for row in rows]
    weights_N = torch.cat(weights).to(nll_N)
    if len(weights_N) != len(rows_N):
        raise Skip("the rows' weights are not those of the losses")
    return float((nll_N * weights_N).sum() / weights_N.sum())


def _mistakes(context: CheckContext, rows: Sequence[StepRow], expected: float) -> dict[str, float]:
    """What the loss of these rows would be if it were computed in one of the ways that are known to go wrong."""
    batch = batch_of(context, [row.row for row in rows])
    found = logits(context, **inputs_of(batch))  # (B, T, V)
    ids, trained, real = batch.input_ids_BT, batch.loss_weights_BT != 0, batch.attention_mask_BT != 0

    def mean(shift: int, mask: Tensor) -> float:
        """Cross-entropy of logits with the labels so many positions later, over the labels in the mask."""
        length = ids.shape[1] - shift
        chosen = mask[:, shift:]
        return float(functional.cross_entropy(found[:, :length][chosen], ids[:, shift:][chosen]))

    num_trained = int(trained[:, 1:].sum())
    return {
        "labels that are not shifted": mean(0, trained),
        "labels that are shifted twice": mean(2, trained),
        "a loss over the prompt too": mean(1, real),
        "a loss over prompt and padding": mean(1, torch.ones_like(real)),
        "labels that are not shifted, over the prompt too,": mean(0, real),
        "a sum instead of a mean": expected * num_trained,
        "a sum divided by rows": expected * num_trained / len(rows),
        "a divisor that counts first tokens": expected * num_trained / (num_trained + len(rows)),
        "a divisor that counts the prompt": expected * num_trained / int(real.sum()),
        "a loss that is counted twice": 2 * expected,
        "a loss that is halved": expected / 2,
    }
