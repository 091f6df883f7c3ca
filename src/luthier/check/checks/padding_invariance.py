from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from luthier.check.as_before import attending, evaluating
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.check.model_rows import (
    Side,
    comparable,
    cut,
    distance,
    figure,
    logits,
    most_distance,
    own_pad_id,
    row_losses,
    short_rows,
    too_far,
)
from luthier.check.trainer import TrainerContext
from luthier.models.forward import base_model
from luthier.records import Finding, Row
from luthier.registry import check

# Of different lengths, so that there is something to pad.
LENGTHS = (64, 48, 32)
# Sums in another order differ in the last digits: 1e-6 in fp32. In bf16 a product has 3 digits; 0.6% was measured on
# SmolLM2-135M. Positions or masks that are wrong change losses by a tenth and more.
MOST_DIFFERENCE = {True: 1e-4, False: 0.03}


@check("padding-invariance")
def padding_invariance(context: CheckContext) -> Iterator[Finding]:
    """A row has the same loss alone, and beside longer rows with padding.

    What it does: of a trainer, 3 training rows (cut to 64, 48 and 32 tokens) go through its collator together; their
    logits are those that each has alone without padding, relative to their spread to 0.001 in fp32 and 0.1 in 16 bits.
    Otherwise the mean losses of 3 such rows are the same one at a time, together padded on the right, and (for a model
    that generates) together padded on the left: relative to 1e-4 in fp32, 3% in bf16. If not, it tries positions that
    leave padding out, and eager attention, to say why.

    Why is this bad: otherwise a row's loss depends on its neighbours in the batch. Generation pads on the left and
    training mostly on the right, so the model would be used otherwise than it was trained.

    Example: positions that count from the beginning of the padding; an attention implementation that ignores the mask.

    Fix: ``model.attention=eager`` shows whether the implementation is at fault; padding on the right, or
    ``position_ids`` from the mask; else the model's code ignores ``position_ids`` or ``attention_mask``.

    Catalogue: 38, 51, 52, 53, 55
    """
    if isinstance(context, TrainerContext):
        yield from _collated(context)
        return
    rows = [
        cut(row, length) for row, length in zip(short_rows(context, 3, LENGTHS[0]), LENGTHS, strict=False)
    ]
    if len({len(row.input_ids) for row in rows}) == 1:  # nothing to pad: add the beginning of one
        rows.append(cut(rows[0], max(2, len(rows[0].input_ids) // 2)))
    limit = MOST_DIFFERENCE[context.is_exact]
    with evaluating(context.model):
        comparable(context)
        alone = torch.cat([row_losses(context, [row]) for row in rows])
        padded = {side: row_losses(context, rows, side) for side in _sides(context)}
    for side, beside in padded.items():
        differences = ((beside - alone).abs() / alone.abs().clamp(min=1e-3)).tolist()
        worst = max(differences)
        if not worst <= limit:
            yield _finding(
                context, rows, side, differences.index(worst), beside.tolist(), alone.tolist(), worst, limit
            )


def _sides(context: CheckContext) -> tuple[Side, ...]:
    """Where padding is put: of a classifier where its tokenizer does, and on both sides of what generates."""
    if context.objective == "tokens" or isinstance(context, RunContext):
        return "right", "left"
    return ("left",) if context.tokenizer.hf.padding_side == "left" else ("right",)


def _finding(
    context: CheckContext,
    rows: Sequence[Row],
    side: Side,
    row: int,
    beside: Sequence[float],
    alone: Sequence[float],
    worst: float,
    limit: float,
) -> Finding:
    return Finding(
        "padding-invariance",
        "error",
        f"padded on the {side} the loss of a row is {beside[row]:.4f}, and alone {alone[row]:.4f} ({worst:.2%} apart)",
        f"{context.place('train')}: {rows[row].id}",
        context.fix(
            "try model.attention=eager; else the model ignores position_ids or attention_mask",
            'try attn_implementation="eager"; else the model ignores position_ids or attention_mask',
        ),
        measured=figure(worst),
        expected=f"at most {limit}",
    )


# As a trainer's collator makes batches


def _collated(context: TrainerContext) -> Iterator[Finding]:
    if context.objective == "classes" and own_pad_id(context) is None:
        raise Skip("config.pad_token_id is None, so that the model takes no padding (see pooled-position)")
    count = min(len(LENGTHS), len(context.training_rows()))
    batch = context.short_batch(range(count), LENGTHS[0])
    real_BT = batch.get("attention_mask", torch.ones_like(batch["input_ids"])) != 0
    padding = batch["input_ids"][~real_BT].unique().tolist()
    if context.objective == "classes" and padding not in ([], [own_pad_id(context)]):
        raise Skip(f"padding holds {padding}, which the model takes for text (see pooled-position)")
    context.looked_at(f"{len(real_BT)} training rows of up to {int(real_BT.sum(-1).max())} tokens")
    with evaluating(context.model):
        comparable(context)
        alone = [_alone(context, batch, real_BT, row) for row in range(len(real_BT))]
        distances = _distances(context, batch, real_BT, alone)
        worst = max(distances, key=lambda d: (d != d, d))
        if worst <= most_distance(context):
            return
        cause, fix = _why(context, batch, real_BT, alone)
    side = "left" if bool((~real_BT[:, 0]).any()) else "right"
    row = distances.index(worst)
    yield too_far(
        context,
        "padding-invariance",
        worst,
        f"padded on the {side} as the collator does it, logits of a row are {worst:.3g} of their spread from those that it "
        f"has alone: {cause}",
        fix,
        f"{context.place('train')}: {context.rows['train'].row(row).id}",
    )


def _alone(context: CheckContext, batch: dict[str, Tensor], real_BT: Tensor, row: int) -> Tensor:
    """A row's logits without padding and without what only padding needs."""
    inputs = {
        name: value[row : row + 1, real_BT[row]]
        for name, value in batch.items()
        if value.shape == real_BT.shape and name not in ("attention_mask", "position_ids")
    }
    return logits(context, **inputs)[0]


def _distances(
    context: CheckContext, batch: dict[str, Tensor], real_BT: Tensor, alone: Sequence[Tensor]
) -> list[float]:
    """How far each row's logits in the batch are from those that it has alone."""
    together = logits(context, **batch)
    if together.ndim == 3:
        return [distance(own, found[real]) for own, found, real in zip(alone, together, real_BT, strict=True)]
    return [distance(own, found) for own, found in zip(alone, together, strict=True)]


def _why(
    context: CheckContext, batch: dict[str, Tensor], real_BT: Tensor, alone: Sequence[Tensor]
) -> tuple[str, str]:
    """Why padding matters, found by trying without what may be at fault, and what to do about it."""
    limit, base = most_distance(context), base_model(context.model)
    positions = (real_BT.long().cumsum(-1) - 1).clamp(min=0)
    with_positions = {**batch, "position_ids": positions}
    if not real_BT[:, 0].all() and max(_distances(context, with_positions, real_BT, alone)) <= limit:
        return (
            "positions count the padding, since the batch holds no position_ids",
            'pad on the right (tokenizer.padding_side = "right"), or give position_ids: attention_mask.cumsum(-1) - 1',
        )
    chosen = base.config._attn_implementation
    if chosen not in (None, "eager") and base._can_set_attn_implementation():
        with attending(base, "eager"):
            if max(_distances(context, batch, real_BT, alone)) <= limit:
                return (
                    f"{chosen} attention does not hide the padding, and eager does",
                    'load the model with attn_implementation="eager"',
                )
    if "attention_mask" not in batch:
        return "the batch holds no attention_mask", "return an attention_mask"
    return "the model ignores attention_mask or position_ids", "mend the model's code"
