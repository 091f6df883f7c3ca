"""What checks of the model share: a few short real rows, their losses and logits, and how far these are apart.

Shapes: B rows, T tokens, V logits (vocabulary or classes), N losses (one for each trained token, or for each row where
the model gives labels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from luthier.check.context import CheckContext, Skip
from luthier.encoding.batches import Batch, collate
from luthier.models.classifier import class_nll, class_targets, head_of
from luthier.models.forward import base_model, token_scores
from luthier.plan import window
from luthier.records import Finding, Row

# Logits and losses of a sane model stay under 1,000; beyond this their differences are rounding.
_LARGEST = 1e6

Side = Literal["left", "right"]

# Sums in another order move logits by 1e-6 of their spread in fp32; in bf16, whose products have 3 digits, by 0.014 in a
# random model of 30 layers. What sees the wrong tokens moves them by a tenth and more.
MOST_DISTANCE = {True: 1e-3, False: 0.1}


def short_rows(context: CheckContext, count: int, max_tokens: int) -> list[Row]:
    """At most ``count`` training rows, spread over the split, each cut to ``max_tokens`` around its first trained tokens.

    Raises:
        Skip: No row has a trained token, or an id that the model has no embedding for would end in a crash.
    """
    if context.objective == "tags":
        raise Skip("models that label each token are not looked into")
    spread = context.spread("train", count)
    if context.objective == "classes":
        rows = [cut(row, max_tokens) for row in spread if len(row.input_ids)]
    else:
        rows = [cut(row, max_tokens) for row in spread if _first_trained(row)]
    if not rows:
        raise Skip("there is no training row with a trained token (see untrained-row)")
    only_embedded(context, [row.input_ids for row in rows])
    context.looked_at(f"{len(rows)} training rows of up to {max(len(row.input_ids) for row in rows)} tokens")
    return rows


def only_embedded(context: CheckContext, rows_ids: Iterable[Any]) -> None:
    """Ends a check of rows that would crash the model.

    Args:
        context: What is checked.
        rows_ids: Ids of each row, padding included where there is any; arrays or a tensor, not empty.

    Raises:
        Skip: One holds an id that the model has no embedding for.
    """
    size = embedding_rows(context.model)
    if any(int(ids.min()) < 0 or int(ids.max()) >= size for ids in rows_ids):
        raise Skip("rows hold ids that the model has no embedding for (see vocabulary)")


def cut(row: Row, max_tokens: int) -> Row:
    """The row's beginning if something is trained in it, else the part around the first trained token."""
    first = _first_trained(row)
    part = window(len(row.input_ids), first, max_tokens)
    return replace(
        row,
        input_ids=row.input_ids[part],
        loss_weights=row.loss_weights[part],
        span_ids=row.span_ids[part],
        num_prompt_tokens=first - part.start,
    )


def _first_trained(row: Row) -> int:
    """Position of the first trained token that something stands before; 0 if there is none."""
    places = np.flatnonzero(np.asarray(row.loss_weights)[1:])
    return int(places[0]) + 1 if len(places) else 0


def batch_of(context: CheckContext, rows: Sequence[Row], side: Side = "right") -> Batch:
    """The rows as one batch on the model's device, padded with what the model takes for padding, which is often EOS."""
    base, pad_id = base_model(context.model), own_pad_id(context)
    if pad_id is None:
        eos_id = getattr(base.config.get_text_config(), "eos_token_id", None) or 0
        pad_id = eos_id[0] if isinstance(eos_id, list) else eos_id
    return collate(rows, int(pad_id), side).to(base.device)


def own_pad_id(context: CheckContext) -> int | None:
    """The token that the model's config takes for padding."""
    config = base_model(context.model).config.get_text_config()
    pad_id: int | None = getattr(config, "pad_token_id", None)
    return pad_id


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """What the model's own forward needs of a batch."""
    return {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}


def losses(context: CheckContext, rows: Sequence[Row], side: Side = "right") -> tuple[Tensor, Tensor]:
    """The loss of each trained token, or of each row where the model gives labels, as one batch.

    Returns:
        Losses in nats, fp32, shape (N,), with their gradient graph; and the index of each one's row, shape (N,).
    """
    if context.objective == "tokens":
        plain = context.plain_forward
        batch = batch_of(context, rows, side)
        with context.forward():
            scores = token_scores(context.model, batch, plain=plain)
        return scores.nll_N, scores.rows_N
    logits_BC = class_logits(context, rows, side)
    head = head_of(base_model(context.model))
    if head is not None:
        labels = class_targets(head, [row.meta["label"] for row in rows], logits_BC.device)
        return class_nll(logits_BC, labels, head), torch.arange(len(rows), device=logits_BC.device)
    labels = torch.tensor([row.meta["label"] for row in rows], device=logits_BC.device)
    if labels.ndim == 1 and logits_BC.shape[-1] > 1 and not are_classes(labels, logits_BC.shape[-1]):
        raise Skip(f"labels are not all among the model's {logits_BC.shape[-1]} classes")
    if logits_BC.shape[-1] == 1:  # regression
        found = functional.mse_loss(logits_BC[:, 0], labels.float().reshape(-1), reduction="none")
    elif labels.ndim > 1:  # several labels a row
        found = functional.binary_cross_entropy_with_logits(logits_BC, labels.float(), reduction="none").mean(
            dim=-1
        )
    else:
        found = functional.cross_entropy(logits_BC, labels.long(), reduction="none")
    return found, torch.arange(len(rows), device=found.device)


def class_logits(context: CheckContext, rows: Sequence[Row], side: Side = "right") -> Tensor:
    """What a classifier says of some rows, as one batch where it takes one: fp32, shape (B, V)."""
    return torch.cat([logits(context, **inputs_of(batch)) for batch in _batches(context, rows, side)])


def _batches(context: CheckContext, rows: Sequence[Row], side: Side = "right") -> list[Batch]:
    """One batch; or one for each row where the model labels rows and no token is known to be padding (see pooled-position)."""
    alone = context.objective == "classes" and own_pad_id(context) is None
    return [batch_of(context, group, side) for group in ([[row] for row in rows] if alone else [rows])]


def are_classes(labels: Tensor, num_classes: int) -> bool:
    """Whether labels are numbers of classes that the model has."""
    return bool(((labels >= 0) & (labels < num_classes) & (labels == labels.long())).all())


def logits(context: CheckContext, **inputs: Any) -> Tensor:
    """What the model's own forward says of some inputs: fp32, shape (B, T, V), or (B, V) where it labels rows.

    Raises:
        Skip: It gives none, or its forward pass has failed before.
        UserError: Its forward pass fails.
    """
    return _logits(context, context.model, inputs)


def real_logits(context: CheckContext, rows: Sequence[Row], model: torch.nn.Module | None = None) -> Tensor:
    """Logits of all tokens of some rows, or of the rows where these are labelled; fp32, shape (N, V).

    Args:
        context: What is checked.
        rows: Go through the model as one batch where it takes one.
        model: Another one than the context's.
    """
    parts = []
    for batch in _batches(context, rows):
        found = _logits(context, context.model if model is None else model, inputs_of(batch))
        parts.append(found[batch.attention_mask_BT != 0] if found.ndim == 3 else found)
    return torch.cat(parts)


def _logits(context: CheckContext, model: torch.nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    with context.forward():
        output = model(**inputs)
    found = getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise Skip("the model's forward gives no logits")
    return found.float()


def comparable(context: CheckContext) -> None:
    """Ends a check that compares forward passes where none can be compared.

    Raises:
        Skip: Logits are not finite, or two passes over the same row give different ones.
    """
    if context.comparable is None:
        seen = list(context.seen)  # this is no part of what the check looks at
        row = short_rows(context, 1, 16)[0]
        if context.objective == "tokens":
            row = replace(row, loss_weights=np.ones(len(row.input_ids), np.float32))
            first, second = (losses(context, [row])[0] for _ in range(2))
        else:
            first, second = (class_logits(context, [row]) for _ in range(2))
        if not torch.isfinite(first).all() or float(first.detach().abs().max()) > _LARGEST:
            context.comparable = "what the model gives is not finite (see weights and initial-loss)"
        elif not torch.allclose(first, second, rtol=1e-3, atol=1e-3):
            context.comparable = "two evaluations of one row differ (see dropout-off)"
        else:
            context.comparable = ""
        context.seen[:] = seen
    if context.comparable:
        raise Skip(context.comparable)


@contextmanager
def watching(model: torch.nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Room for forward passes of which each layer without parts of its own tells its name and its output of floats."""

    def hook(name: str) -> Callable[..., None]:
        def watch(module: torch.nn.Module, arguments: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) and output else output
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                see(name, value)

        return watch

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    hooks = [module.register_forward_hook(hook(name)) for name, module in leaves]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def distance(first: Tensor, second: Tensor) -> float:
    """How far two sets of logits of the same tokens are apart: root mean square of the difference by their spread.

    Args:
        first: Shape (..., V).
        second: As the first.

    Returns:
        0 if they are equal, about 1.4 if they have nothing in common; NaN if one of them is not finite.
    """
    if not first.numel():
        return 0.0
    # A head with one output (a regression) has no spread over classes: there it is the size of the numbers.
    mean = first.mean(-1, keepdim=True) if first.shape[-1] > 1 else 0.0
    spread = (first - mean).square().mean().sqrt()
    return float((first - second).square().mean().sqrt() / spread.clamp(min=1e-6))


def too_far(context: CheckContext, check: str, apart: float, what: str, fix: str, where: str = "") -> Finding:
    """A finding of logits that are further from each other than ``most_distance``; ``where`` is the model unless said."""
    return Finding(
        check,
        "error",
        what,
        where or f"model {context.model_name}",
        fix,
        measured=figure(apart),
        expected=f"at most {most_distance(context)}",
    )


def figure(value: float) -> float | str:
    """A measured value with three digits for a finding, which JSON can hold: as text if it is not finite."""
    return float(f"{value:.3g}") if math.isfinite(value) else str(value)


def most_distance(context: CheckContext) -> float:
    """What ``distance`` may be between two ways to compute the same."""
    reduced = torch.cuda.is_available() and torch.get_float32_matmul_precision() != "highest"
    return MOST_DISTANCE[context.is_exact and not reduced]


def only_causal(context: CheckContext) -> None:
    """Ends a check of next tokens where the model predicts none.

    Raises:
        Skip: It gives labels, or fills in tokens that are masked.
    """
    context.only_tokens()
    if "MaskedLM" in type(base_model(context.model)).__name__:
        raise Skip("the model fills in masked tokens and predicts no next one")


def row_losses(context: CheckContext, rows: Sequence[Row], side: Side = "right") -> Tensor:
    """Mean loss of each row, fp32 on the CPU, shape (num_rows,)."""
    loss_N, rows_N = losses(context, rows, side)
    sums = torch.zeros(len(rows), device=loss_N.device).index_add_(0, rows_N, loss_N)
    return (sums / torch.bincount(rows_N, minlength=len(rows))).cpu()


def embedding_rows(model: PreTrainedModel | PeftModel) -> int:
    """Ids that the model has an embedding for."""
    embeddings = base_model(model).get_input_embeddings()
    return int(embeddings.weight.shape[0])  # type: ignore[index]  # any embedding has a weight matrix
