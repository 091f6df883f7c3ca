from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.check.as_before import attending, evaluating
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.check.model_rows import (
    comparable,
    distance,
    embedding_rows,
    logits,
    most_distance,
    only_causal,
    short_rows,
    too_far,
)
from luthier.check.trainer import TrainerContext
from luthier.encoding.batches import pack
from luthier.models import packed
from luthier.models.forward import base_model, token_scores
from luthier.records import Finding
from luthier.registry import check

# Tokens of the first and of the second row that are looked at, on both sides of where they meet.
MAX_TOKENS = 64
# Limits between packed rows that are looked at.
MAX_BORDERS = 2
# Rows of a file that are searched for packed ones.
MAX_ROWS = 2_000


@dataclass(frozen=True)
class _Border:
    """Two packed rows that meet: what the model gets of them.

    Attributes:
        inputs: Of the model's forward, as the training gives them, cut to both rows' tokens around their border; they are
            in its first sequence.
        start: Position of the second one's first token.
        where: For messages.
    """

    inputs: dict[str, Any]
    start: int
    where: str


@check("packing")
def packing(context: CheckContext) -> Iterator[Finding]:
    """Rows that share a sequence see nothing of each other.

    What it does: where two packed rows meet in the batches that the trainer's collator makes (``position_ids`` begin anew,
    the mask numbers rows, ``seq_idx`` or ``cu_seq_lens``), replaces the first one's last 64 tokens by others. The second
    one's logits do not move, and are those that it has alone. If they move, it tries without the mask, and with eager
    attention, to say why. Rows of files that are marked as packed are put together again; of a recipe's run three rows
    are packed as it will pack them.

    Why is this bad: the model learns to answer with other people's prompts in view, which are not there afterwards. The
    loss looks fine, often better.

    Example: padding-free batches with ``sdpa`` and an ``attention_mask`` of ones, which hides the limits from transformers;
    any packing with Mamba, whose state runs on.

    Fix: leave ``attention_mask`` out and give ``position_ids``, or use flash attention; do not pack for models with a
    state.

    Catalogue: 46, 47, 48, 50
    """
    only_causal(context)
    if isinstance(context, RunContext):
        yield from _own(context)
        return
    found = _borders(context) if isinstance(context, TrainerContext) else _stored(context)
    borders = list(islice(found, MAX_BORDERS))
    if not borders:
        raise Skip("no rows are packed")
    context.looked_at(f"{len(borders)} limits between packed rows")
    with evaluating(context.model):
        comparable(context)
        findings = [finding for border in borders for finding in _leaks(context, border)]
    yield from findings[:1]  # of one cause


# Where packed rows meet


def _borders(context: TrainerContext) -> Iterator[_Border]:
    device = base_model(context.model).device
    for number, batch in enumerate(context.batches):
        inputs = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
            if not name.startswith("label")
        }
        for row in range(len(inputs["input_ids"])):
            limits = row_limits(inputs, row)
            for before, start, end in zip(limits, limits[1:], limits[2:], strict=False):
                if min(start - before, end - start) >= 2:
                    begin, end = max(before, start - MAX_TOKENS), min(end, start + MAX_TOKENS)
                    where = f"batch {number} of trainer.get_train_dataloader(), row {row}, position {start}"
                    yield _Border(_crop(inputs, row, begin, start, end), start - begin, where)


def row_limits(inputs: Mapping[str, Any], row: int) -> list[int]:
    """Where packed rows begin in a sequence, as whatever tells says, and where the last one ends."""
    size, length = inputs["input_ids"].shape
    mask = inputs.get("attention_mask")
    real = (
        mask[row] != 0
        if isinstance(mask, Tensor) and mask.ndim == 2
        else torch.ones(length, dtype=torch.bool)
    )
    end = int(real.nonzero()[-1]) + 1 if real.any() else 0
    limits = inputs.get("cu_seq_lens_q", inputs.get("cu_seqlens"))
    if isinstance(limits, Tensor):
        starts = [start - row * length for start in limits.flatten().tolist()[:-1]]
        return [*(start for start in starts if 0 <= start < end), end]
    numbers = torch.zeros(length)
    for name in ("seq_idx", "attention_mask", "position_ids"):
        value = inputs.get(name)
        if not isinstance(value, Tensor) or value.shape not in ((size, length), (1, length)):
            continue
        own = value[row if len(value) > 1 else 0]
        if name == "position_ids":
            numbers = (torch.diff(own, prepend=own[:1] - 1) != 1).cumsum(0)
        elif name == "seq_idx" or int(own.max()) > 1:
            numbers = own
        if len(numbers.unique()) > 1:
            break
    starts = torch.nonzero(torch.diff(numbers, prepend=numbers[:1] - 1))[:, 0].tolist()
    return [*(start for start in starts if real[start]), end]


def _crop(inputs: Mapping[str, Any], row: int, begin: int, start: int, end: int) -> dict[str, Any]:
    """What the model gets of a sequence's tokens from ``begin`` to ``end``, with a limit at ``start``.

    Another sequence of the batch stays beside it, since some attention loses the limits in batches of more than one.
    """
    size, length = inputs["input_ids"].shape
    device = inputs["input_ids"].device
    limits = torch.tensor([0, start - begin, end - begin], dtype=torch.int32, device=device)
    flat = size == 1 or any(name.startswith("cu_seq") for name in inputs)
    kept = torch.tensor([row] if flat else [row, (row + 1) % size], device=device)
    cropped: dict[str, Any] = {}
    for name, value in inputs.items():
        if name.startswith(("cu_seq_lens", "cu_seqlens")):
            cropped[name] = limits
        elif name.startswith("max_length"):
            cropped[name] = max(start - begin, end - start)
        elif isinstance(value, Tensor) and value.ndim:
            part = value[kept] if value.shape[0] == size else value
            for axis in range(1, part.ndim):
                if part.shape[axis] == length:
                    part = part.narrow(axis, begin, end - begin)
            cropped[name] = part
    return cropped


def _stored(context: CheckContext) -> Iterator[_Border]:
    """Rows of a file that lay in one pack, put together again as a padding-free batch has them."""
    base = base_model(context.model)
    takes_positions = "position_ids" in inspect.signature(base.forward).parameters
    rows = context.training_rows()
    before = None
    for index in range(min(len(rows), MAX_ROWS)):
        row = rows.row(index)
        if before is not None and row.meta.get("pack") and row.meta["pack"] == before.meta.get("pack"):
            parts = [np.asarray(before.input_ids)[-MAX_TOKENS:], np.asarray(row.input_ids)[:MAX_TOKENS]]
            if min(map(len, parts)) >= 2:
                inputs = {"input_ids": np.concatenate(parts)}
                if takes_positions:
                    inputs["position_ids"] = np.concatenate([np.arange(len(part)) for part in parts])
                tensors = {
                    n: torch.from_numpy(v.astype(np.int64))[None].to(base.device) for n, v in inputs.items()
                }
                yield _Border(tensors, len(parts[0]), f"{context.place('train')}: {row.id}")
        before = row


# What leaks over them


def _leaks(context: CheckContext, border: _Border) -> Iterator[Finding]:
    moved, apart = _moved(context, border), _apart(context, border)
    limit = most_distance(context)
    if not moved <= limit:
        cause, fix = _why(context, border)
        yield too_far(
            context,
            "packing",
            moved,
            f"logits of a packed row move by {moved:.3g} of their spread when the row before it changes: {cause}",
            fix,
            border.where,
        )
    elif not apart <= limit:
        yield too_far(
            context,
            "packing",
            apart,
            f"logits of a packed row are {apart:.3g} of their spread from those that it has alone, though it sees nothing of "
            "the row before: its positions are others",
            "let position_ids begin with 0 in each packed row",
            border.where,
        )


def _moved(context: CheckContext, border: _Border) -> float:
    """How far the second row's logits move when the first one's tokens change."""
    other = dict(border.inputs)
    ids_BT = border.inputs["input_ids"].clone()
    ids_BT[0, : border.start] = (ids_BT[0, : border.start] + 1) % embedding_rows(context.model)
    other["input_ids"] = ids_BT
    before, after = (logits(context, **inputs)[0, border.start :] for inputs in (border.inputs, other))
    return distance(before, after)


def _apart(context: CheckContext, border: _Border) -> float:
    """How far the second row's logits are from those that it has alone."""
    packed_TV = logits(context, **border.inputs)[0, border.start :]
    alone_TV = logits(context, input_ids=border.inputs["input_ids"][:1, border.start :])[0]
    return distance(packed_TV, alone_TV)


def _why(context: CheckContext, border: _Border) -> tuple[str, str]:
    """Why rows leak, found by trying without what may be at fault, and what to do about it."""
    base = base_model(context.model)
    state = next((type(m).__name__ for m in base.modules() if _keeps_state(m)), None)
    if state:
        return f"{state} hands its state on from row to row", "do not pack rows for a model with a state"
    limit, chosen = most_distance(context), base.config._attn_implementation
    size = len(border.inputs["input_ids"])
    if size > 1:
        inputs = {name: value[:1] if len(value) == size else value for name, value in border.inputs.items()}
        if _moved(context, replace(border, inputs=inputs)) <= limit:
            return (
                f"{chosen} attention keeps them apart in batches of one sequence and not in those of more",
                "make one pack of each batch",
            )
    if "attention_mask" in border.inputs:
        inputs = {name: value for name, value in border.inputs.items() if name != "attention_mask"}
        if "position_ids" in inputs and _moved(context, replace(border, inputs=inputs)) <= limit:
            return (
                f"{chosen} attention looks for limits in position_ids only where there is no attention_mask",
                "leave attention_mask out of the batch: a collator that returns position_ids and no mask",
            )
    if "position_ids" not in border.inputs:
        return (
            f"{chosen} attention is not told where rows begin",
            "give position_ids that begin anew in each row, and no attention_mask; or do not pack",
        )
    if base._can_set_attn_implementation() and chosen != "eager":
        with attending(base, "eager"):
            if _moved(context, border) <= limit:
                return f"{chosen} attention ignores the limits, and eager does not", "use another attention"
    return f"{chosen} attention ignores the limits", "use flash attention, or do not pack"


def _keeps_state(module: torch.nn.Module) -> bool:
    kind = type(module).__name__.lower()
    return any(
        sign in kind for sign in ("mamba", "rwkv", "recurrent", "deltanet", "linearattention", "ssm")
    ) and any(sign in kind for sign in ("mixer", "recurrent", "attention", "deltanet", "ssm"))


def _own(context: RunContext) -> Iterator[Finding]:
    """Packs as a run of ours makes them of models that allow it."""
    base = base_model(context.model)
    if context.recipe.train.packing is False:
        raise Skip("train.packing is switched off")
    if why := packed.can_pack(base):
        raise Skip(f"the run packs no rows: {why}")
    if base.config._attn_implementation not in ("sdpa", packed.NAME):
        raise Skip(f"the run packs no rows: attention is {base.config._attn_implementation}")
    rows = short_rows(context, 3, MAX_TOKENS)
    if len(rows) < 2:
        raise Skip("there is one row alone, and nothing to pack it with")
    other_ids = (np.asarray(rows[0].input_ids) + 1) % embedding_rows(context.model)
    other = replace(rows[0], input_ids=other_ids.astype(np.int32))
    device, plain = base.device, context.plain_forward
    with evaluating(context.model), attending(context.model, packed.NAME):
        before, after = (
            token_scores(context.model, pack([first, *rows[1:]]).to(device), plain=plain)
            for first in (rows[0], other)
        )
    behind = before.rows_N > 0
    difference = (before.nll_N - after.nll_N)[behind].abs() / before.nll_N[behind].abs().clamp(min=1e-3)
    moved = float(difference.max()) if behind.any() else 0.0
    if not moved <= most_distance(context):
        yield too_far(
            context,
            "packing",
            moved,
            f"the loss of a packed row moves by {moved:.3g} of itself when the row before it changes",
            "set train.packing=false, and report this",
            f"{context.place('train')}: {rows[1].id}",
        )
