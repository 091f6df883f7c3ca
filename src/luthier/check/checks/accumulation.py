from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from luthier.check.as_before import evaluating, no_dropout, unchanged
from luthier.check.context import CheckContext, Skip
from luthier.check.model_rows import losses
from luthier.check.steps import StepRow, gradient_factor, only_trained, said, step_rows
from luthier.check.trainer import TrainerContext
from luthier.models.forward import base_model
from luthier.records import Finding
from luthier.registry import check

# More micro-batches show no more than these, and each costs a forward and a backward pass.
MOST_MICRO_BATCHES = 16
# Of all rows of a step together, so that it takes seconds on a CPU.
TOKENS_PER_STEP = 320
# What is k-fold is off by 100% and more. Sums in another order differ by 1e-6 in fp32, by 0.6% in bf16; the balancing
# loss of a mixture of experts, which is no sum over tokens, by some tenths of a percent.
MOST_LOSS_DIFFERENCE = 0.01
# Gradients of many bf16 products differ more than their sum does: 3% was measured on random models of 30 layers.
MOST_GRADIENT_DIFFERENCE = {True: 0.02, False: 0.15}
# What a token of the shortest row weighs more than one of the longest, for a mean of means to matter.
LEAST_WEIGHT = 1.5


@dataclass(frozen=True, slots=True)
class Split:
    """A step over the same rows, apart (one row a micro-batch) and together (one micro-batch).

    Attributes:
        num: Rows, and so micro-batches of the step apart.
        apart, together: The losses.
        gradient_factor: Gradients apart by gradients together, by least squares.
        rest: Norm of what that factor leaves of the gradients apart, as a share of their norm.
    """

    num: int
    apart: float
    together: float
    gradient_factor: float
    rest: float

    @property
    def factor(self) -> float:
        """Loss apart by loss together."""
        return self.apart / self.together

    def agrees(self, exact: bool) -> bool:
        """Whether loss and gradients are the same."""
        most = MOST_GRADIENT_DIFFERENCE[exact]
        return (
            abs(self.factor - 1) <= MOST_LOSS_DIFFERENCE
            and abs(self.gradient_factor - 1) <= most
            and self.rest <= most
        )


@check("accumulation")
def accumulation(context: CheckContext) -> Iterator[Finding]:
    """A step has the same loss and gradients, whatever micro-batches its rows are split into.

    What it does: the training's own step over a few rows (at most 16, 320 tokens together; dropout off), once with a
    micro-batch for each row, as many as ``gradient_accumulation_steps``, and once with all rows in one. Losses must
    agree to 1%, gradients to 2% in fp32 and 15% in bf16. If they do not, it is measured whether micro-batches are
    counted k-fold, divided twice, or averaged without regard to their tokens, and looked up who was to divide. Without
    accumulation two micro-batches are compared, and a difference is a note only. What several ranks add is arithmetic:
    a step is made on one.

    Why is this bad: a loss and gradients that are k-fold are clipped at every step, so that clipping no longer tells bad
    batches from good ones, and no logged number can be compared with another run's; without clipping the learning rate
    is k-fold. A mean of means gives each token of a short row the weight of several tokens of a long one.

    Example: transformers' ``Trainer`` with a classification head that takes ``**kwargs`` but drops
    ``num_items_in_batch`` (transformers#47688): with 12 accumulation steps the first logged loss is 12 x ln C.

    Fix: ``model.accepts_loss_kwargs = False`` before the ``Trainer`` is made; in a loss of your own, divide the sum by
    ``num_items_in_batch``.

    Catalogue: 30, 31, 32, 33, 80
    """
    training = context.training
    plan = training.plan
    wanted = min(plan.accumulation_steps, MOST_MICRO_BATCHES) if plan.accumulation_steps > 1 else 2
    max_tokens = TOKENS_PER_STEP // wanted
    rows = step_rows(context, wanted, max_tokens, varied=True)
    if len(rows) < 2:
        raise Skip("there are not two rows to split a step into")
    context.looked_at(f"{said(rows)}, in {len(rows)} micro-batches and in one")
    indices = [row.index for row in rows]
    with unchanged(context.model), no_dropout(context.model):
        apart = training.step([[index] for index in indices], max_tokens)
        only_trained(apart)
        together = training.step([indices], max_tokens)
        split = Split(len(rows), apart.loss, together.loss, *gradient_factor(apart, together))
        if not (math.isfinite(split.apart) and math.isfinite(split.together)):
            raise Skip("the loss is not finite (see gradient-norm)")
        if not split.apart or not split.together:
            raise Skip("the loss is 0 (see step-loss)")
        exact = context.is_exact and _computes_exactly(context)
        if split.agrees(exact):
            return
        again = training.step([[index] for index in indices], max_tokens).loss
        if abs(again / apart.loss - 1) > MOST_LOSS_DIFFERENCE / 2:
            raise Skip(
                f"the same step has a loss of {apart.loss:.4f} and of {again:.4f}: something is drawn at random"
            )
        found = _diagnosed(context, split, rows, max_tokens)
    if found is not None:
        yield found


def _divides_itself(context: CheckContext, split: Split, rows: Sequence[StepRow]) -> bool:
    """Whether each micro-batch is divided by the planned number of them, so that only the step in one is too small."""
    if context.objective == "tags" or not all(row.same for row in rows):
        return False
    with evaluating(context.model):
        of_means = float(torch.stack([losses(context, [row.row])[0].mean() for row in rows]).mean())
    expected = of_means * split.num / context.training.plan.accumulation_steps
    return split.num > 1 and abs(split.apart / expected - 1) <= MOST_LOSS_DIFFERENCE


def _computes_exactly(context: CheckContext) -> bool:
    return not isinstance(context, TrainerContext) or context.trainer.accelerator.mixed_precision == "no"


def _diagnosed(
    context: CheckContext, split: Split, rows: Sequence[StepRow], max_tokens: int
) -> Finding | None:
    """The finding for a step that depends on its micro-batches; None if only the step in one is not as in training."""
    plan = context.training.plan
    accumulates = plan.accumulation_steps > 1
    now = "" if accumulates else " (the training has 1 micro-batch a step, which is not hit)"
    alone = [context.training.step([[row.index]], max_tokens).loss for row in rows]
    counts = [row.num_trained for row in rows]
    of_means = sum(alone) / len(alone)
    by_tokens = sum(loss * n for loss, n in zip(alone, counts, strict=True)) / sum(counts)
    if _near(split.apart, split.num * of_means):
        if accumulates and _divides_itself(context, split, rows):
            return None
        return _k_fold(context, split, of_means, rows, max_tokens)
    if _near(split.apart, of_means / split.num) or _near(split.apart, by_tokens / split.num):
        return Finding(
            "accumulation",
            "error" if accumulates else "note",
            f"a step of {split.num} micro-batches has {split.factor:.4f} times the loss and {split.gradient_factor:.4f} "
            f"times the gradients of the same rows in one: it is divided by {split.num} twice{now}",
            plan.key("accumulation_steps"),
            "divide once: by the tokens (or rows) of the whole step, or by the number of micro-batches",
            measured=round(split.factor, 4),
            expected=1,
        )
    if _near(split.apart, of_means) and _near(split.together, by_tokens):
        return Finding(
            "accumulation",
            "warning" if accumulates and max(counts) >= LEAST_WEIGHT * min(counts) else "note",
            f"the loss of a step is the mean of its micro-batches' means, {split.apart:.4f} instead of {split.together:.4f} "
            f"({split.factor:.3f} times; gradients differ by {split.rest:.0%}): each of the {min(counts)} trained tokens of "
            f"the shortest row weighs as much as {max(counts) / min(counts):.1f} of the {max(counts)} of the longest{now}",
            plan.key("accumulation_steps"),
            "divide the sum over all micro-batches by the trained tokens of the whole step (num_items_in_batch)",
            measured=round(split.factor, 3),
            expected=1,
        )
    beside = (
        ""
        if not _near(split.apart, by_tokens)
        else "; each row has its loss alone, but not beside the others in a batch (see padding-invariance)"
    )
    return Finding(
        "accumulation",
        "warning" if accumulates else "note",
        f"a step of {split.num} micro-batches has {split.factor:.3f} times the loss of the same rows in one, {split.apart:.4f} "
        f"and {split.together:.4f}, and {split.gradient_factor:.3f} times the gradients ({split.rest:.0%} of them point "
        f"elsewhere); alone the rows have {of_means:.4f} on average{beside}{now}",
        plan.key("accumulation_steps"),
        "find out by what the loss of a micro-batch is divided, and what the model adds to it (a penalty, a balancing loss)",
        measured=round(split.factor, 3),
        expected=1,
    )  # fmt: skip


def _near(first: float, second: float) -> bool:
    return abs(first - second) <= MOST_LOSS_DIFFERENCE * abs(second)


def _k_fold(
    context: CheckContext, split: Split, of_means: float, rows: Sequence[StepRow], max_tokens: int
) -> Finding:
    """Nobody divides by the number of micro-batches: who was to, and what the log will show."""
    plan = context.training.plan
    cause, fix = "", "divide by the tokens (or rows) of the whole step, or by the number of micro-batches"
    ranks = 1
    if isinstance(context, TrainerContext):
        cause, fix = _cause(context, rows[0], max_tokens)
        trainer = context.trainer
        divides = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
        ranks = plan.num_ranks if trainer.args.average_tokens_across_devices and divides else 1
    times = plan.accumulation_steps * ranks
    measured = split.apart / of_means
    if times == 1:
        logged = "The training does not accumulate, so that it is not hit; it would be with gradient_accumulation_steps"
    else:
        shown = f"{plan.accumulation_steps} micro-batches"
        shown += f" x {ranks} ranks" if ranks > 1 else ", and that times the ranks if there will be several"
        logged = (
            f"The first logged loss will be about {times * of_means:.1f} = {times} x {_loss_in_words(context, of_means)}, "
            f"with gradients {times}-fold ({shown})"
        )
    # What was measured, or what follows from it where not all micro-batches were tried or ranks come on top.
    value = measured if times in (1, split.num) else measured / split.num * times
    return Finding(
        "accumulation",
        "error" if times > 1 else "note",
        f"a step of {split.num} micro-batches has {measured:.2f} times the loss ({split.apart:.2f}, not {of_means:.2f}) "
        f"and {split.gradient_factor:.2f} times the gradients of the same rows in one"
        + (f", so with {times} it has {value:.2f} times" if times not in (1, split.num) else "")
        + f". {cause}{logged}",
        plan.key("accumulation_steps"),
        fix,
        measured=round(value, 2),
        expected=1,
    )  # fmt: skip


def _loss_in_words(context: CheckContext, loss: float) -> str:
    """The loss of one micro-batch, beside that of a head that knows nothing."""
    config = base_model(context.model).config
    num_labels = int(getattr(config, "num_labels", 0) or 0)
    if context.objective != "classes" or num_labels < 2:
        return f"{loss:.2f}"
    share = loss / math.log(num_labels)
    if abs(share - 1) <= 0.15:  # what a fresh head's small logits add
        return f"ln {num_labels} ({math.log(num_labels):.2f})"
    return f"{loss:.2f}, which itself is {share:.2f} of ln {num_labels}"


def _cause(context: TrainerContext, row: StepRow, max_tokens: int) -> tuple[str, str]:
    """Who was to divide a Trainer's loss, in a sentence, and what to do about it."""
    trainer: Any = context.trainer
    kind = type(trainer)
    if trainer.compute_loss_func is not None:
        return (
            "Trainer leaves the division to compute_loss_func, which does not divide by num_items_in_batch. ",
            "in compute_loss_func: return cross_entropy(..., reduction='sum') / num_items_in_batch",
        )
    if getattr(kind, "loss_is_scaled_for_ga", None):
        return (
            f"{kind.__name__}.loss_is_scaled_for_ga = True says that its loss is divided already, and it is not. ",
            f"{kind.__name__}.loss_is_scaled_for_ga = False",
        )
    if not trainer.model_accepts_loss_kwargs:
        return "", "divide the loss in training_step by the number of micro-batches"
    reached = _reaches_loss(context, row, max_tokens)
    if context.overrides_loss and reached is not True:
        return (
            f"{kind.__name__}.compute_loss returns the mean of a micro-batch, but Trainer takes **kwargs in the model's "
            "forward for a promise to divide by num_items_in_batch, and does not divide. ",
            f"loss_is_scaled_for_ga = False in {kind.__name__}, or divide the sum by num_items_in_batch in its compute_loss",
        )
    name = type(base_model(context.model)).__name__
    if reached:
        return (
            f"The loss function of {name} gets num_items_in_batch and does not divide by it. ",
            "divide the sum by num_items_in_batch in the loss function",
        )
    own = "model.get_base_model()" if hasattr(context.model, "peft_config") else "model"
    seen = (
        "but its loss function never gets it"
        if reached is False
        else "but it computes its loss itself, without it"
    )
    return (
        f"Trainer takes **kwargs in the forward of {name} for a promise to divide by num_items_in_batch and does not divide "
        f"itself, {seen} (transformers#47688). ",
        f"{own}.accepts_loss_kwargs = False, before the Trainer is made",
    )


def _reaches_loss(context: TrainerContext, row: StepRow, max_tokens: int) -> bool | None:
    """Whether num_items_in_batch arrives at the model's loss function; None if that is never called."""
    model: Any = base_model(context.model)
    if not hasattr(model, "loss_function"):
        return None
    function, own = model.loss_function, vars(model).get("_loss_function")
    seen: list[bool] = []

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs.get("num_items_in_batch") is not None)
        return function(*args, **kwargs)

    model.loss_function = spy
    try:
        with torch.enable_grad():
            context.training.step([[row.index]], max_tokens)
    finally:
        if own is None:
            vars(model).pop("_loss_function", None)
        else:
            model.loss_function = own
    return any(seen) if seen else None
