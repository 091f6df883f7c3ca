from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.check.as_before import evaluating
from luthier.check.context import CheckContext, Skip
from luthier.check.model_rows import Side, cut, inputs_of, only_embedded, own_pad_id, short_rows
from luthier.check.trainer import TrainerContext
from luthier.encoding.batches import collate
from luthier.models.forward import base_model
from luthier.records import Finding, Severity
from luthier.registry import check

NUM_ROWS = 4
MAX_TOKENS = 64
# What a position contributes is exactly zero if nothing that is read can see it; masks of -1e38 leave less than this.
LEAST_INFLUENCE = 1e-4


@check("pooled-position")
def pooled_position(context: CheckContext) -> Iterator[Finding]:
    """A classifier reads each row up to its last token, and nothing of the padding.

    What it does: takes 4 training rows (cut to different lengths, at most 64 tokens) as the trainer's collator makes a
    batch of them, and follows the gradient of the class logits back to the embeddings: it is zero at padding, and not
    zero at the last real token.

    Why is this bad: a decoder with a classification head reads one position. If that is padding, or another row's end,
    nothing fails, and the model never gets beyond chance.

    Example: ``config.pad_token_id`` is 0 and the tokenizer pads with its EOS: the model takes the padding for text.

    Fix: ``model.config.pad_token_id = tokenizer.pad_token_id``.

    Catalogue: 53
    """
    if context.objective != "classes":
        raise Skip("the model does not label whole rows")
    own_pad = own_pad_id(context)
    inputs, pad_id = _batch(context, own_pad)
    names = f"config.pad_token_id is {own_pad}, padding holds {pad_id}"
    with evaluating(context.model):
        try:
            reading = _read(context, inputs)
        except ValueError as error:
            if "padding token" not in str(error):
                raise
            refused = (
                f"config.pad_token_id is {own_pad}: the model refuses batches of more than one row ({error})"
            )
            yield _finding("error", refused, str(own_pad), pad_id)
            return
    context.looked_at(f"1 batch of {len(reading)} rows")
    rows = f"of {len(reading)} rows"
    padded = sum(row.padding_read for row in reading)
    if padded:
        yield _finding("error", f"the classifier reads padding in {padded} {rows}: {names}", padded, 0)
        return
    short = [row for row in reading if row.last_read < row.last_real - row.ends_in_padding]
    if short:
        worst = min(short, key=lambda row: row.last_read / max(1, row.last_real))
        yield _finding(
            "error" if worst.last_read < worst.last_real / 2 else "warning",
            f"the classifier reads {len(short)} {rows} not to their end: one up to position {worst.last_read} of "
            f"{worst.last_real}; {names}",
            worst.last_read,
            worst.last_real,
            "let the model pool the last real token: attention_mask.sum(-1) - 1 if padding is on the right",
        )
    unseen = sum(row.ends_in_padding and row.last_read < row.last_real for row in reading)
    if unseen:
        yield _finding(
            "note",
            f"the last token of {unseen} {rows} is what the model takes for padding ({own_pad}): it reads the one before, and "
            "the end token is never seen",
            unseen,
            0,
            "this is harmless if all rows end so; else pad with a token of its own",
        )


def _finding(
    severity: Severity,
    what: str,
    measured: int | str,
    expected: Any,
    fix: str = "model.config.pad_token_id = tokenizer.pad_token_id",
) -> Finding:
    return Finding("pooled-position", severity, what, "model.config.pad_token_id", fix, measured, expected)


@dataclass(frozen=True)
class _Reading:
    """What is read of one row: positions in the batch, and whether its own last token is the padding token."""

    last_read: int
    last_real: int
    padding_read: bool
    ends_in_padding: bool


def _batch(context: CheckContext, own_pad: int | None) -> tuple[dict[str, Tensor], Any]:
    """A batch as the training gets it, and the id that it is padded with."""
    if isinstance(context, TrainerContext):
        count = min(NUM_ROWS, len(context.training_rows()))
        inputs = context.short_batch(range(count), MAX_TOKENS)
        real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])) != 0
        if not real.all():
            return inputs, int(inputs["input_ids"][~real][0])
        return inputs, context.tokenizer.hf.pad_token_id
    pad_id = context.tokenizer.hf.pad_token_id
    side: Side = "left" if context.tokenizer.hf.padding_side == "left" else "right"
    rows = short_rows(context, NUM_ROWS, MAX_TOKENS)
    rows = [cut(row, max(2, len(row.input_ids) // (1 + place))) for place, row in enumerate(rows)]
    known = pad_id if pad_id is not None else own_pad or 0
    batch = collate(rows, int(known), side).to(base_model(context.model).device)
    only_embedded(context, batch.input_ids_BT)
    return inputs_of(batch), known


def _read(context: CheckContext, inputs: dict[str, Tensor]) -> list[_Reading]:
    """What of each row has an influence on its logits."""
    base = base_model(context.model)
    embedded: list[Tensor] = []

    def watch(module: torch.nn.Module, arguments: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_(True))
        return embedded[-1]

    hook = base.get_input_embeddings().register_forward_hook(watch)
    try:
        with torch.enable_grad():
            with context.computing():
                output = context.model(**inputs)
            logits_BC = output.logits.float()
            # Any direction will do, but not all ones, which norms may make zero.
            direction = torch.linspace(0.5, 1.5, logits_BC.shape[-1], device=logits_BC.device)
            score = (logits_BC * direction).sum()
            gradient: Tensor | None = torch.autograd.grad(score, embedded[0], allow_unused=True)[0]
    finally:
        hook.remove()
    if gradient is None or not gradient.isfinite().all() or not gradient.any():
        raise Skip("no gradient of the logits reaches the embeddings, or none that is finite (see weights)")
    influence_BT = gradient.float().norm(dim=-1)
    ids_BT = inputs["input_ids"]
    real_BT = inputs.get("attention_mask", torch.ones_like(ids_BT)) != 0
    pad_id = own_pad_id(context)
    found = []
    for influence_T, real_T, ids_T in zip(influence_BT, real_BT, ids_BT, strict=True):
        read = influence_T > LEAST_INFLUENCE * influence_T.max()
        last_real = int(real_T.nonzero()[-1])
        found.append(
            _Reading(
                int(read.nonzero()[-1]) if read.any() else -1,
                last_real,
                bool((read & ~real_T).any()),
                int(ids_T[last_real]) == pad_id,
            )
        )
    return found
