"""What checks of the model share: a few short real rows, their losses, and a model that is as before afterwards.

Shapes: N losses (one for each trained token, or for each row where the model gives labels).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from luthier.check.context import CheckContext, Skip
from luthier.encoding.batches import Batch, collate
from luthier.models.forward import base_model, token_scores
from luthier.records import Row

Side = Literal["left", "right"]


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
    size = embedding_rows(context.model)
    if max(int(np.max(row.input_ids)) for row in rows) >= size:
        raise Skip("rows hold ids that the model has no embedding for (see vocabulary)")
    context.looked_at(f"{len(rows)} training rows of up to {max(len(row.input_ids) for row in rows)} tokens")
    return rows


def cut(row: Row, max_tokens: int) -> Row:
    """The row's beginning if something is trained in it, else the part around the first trained token."""
    first = _first_trained(row)
    start = 0 if first < max_tokens * 3 // 4 else first - max_tokens // 2
    part = slice(start, start + max_tokens)
    return replace(
        row,
        input_ids=row.input_ids[part],
        loss_weights=row.loss_weights[part],
        span_ids=row.span_ids[part],
        num_prompt_tokens=first - start,
    )


def _first_trained(row: Row) -> int:
    """Position of the first trained token that something stands before; 0 if there is none."""
    places = np.flatnonzero(np.asarray(row.loss_weights)[1:])
    return int(places[0]) + 1 if len(places) else 0


def batch_of(context: CheckContext, rows: Sequence[Row], side: Side = "right") -> Batch:
    """The rows as one batch on the model's device, padded with what the model takes for padding, which is often EOS."""
    config = base_model(context.model).config.get_text_config()
    pad_id = getattr(config, "pad_token_id", None)
    if pad_id is None:
        eos_id = getattr(config, "eos_token_id", None) or 0
        pad_id = eos_id[0] if isinstance(eos_id, list) else eos_id
    return collate(rows, int(pad_id), side).to(base_model(context.model).device)


def losses(context: CheckContext, rows: Sequence[Row], side: Side = "right") -> tuple[Tensor, Tensor]:
    """The loss of each trained token, or of each row where the model gives labels, as one batch.

    Returns:
        Losses in nats, fp32, shape (N,), with their gradient graph; and the index of each one's row, shape (N,).
    """
    batch = batch_of(context, rows, side)
    if context.objective == "tokens":
        scores = token_scores(context.model, batch, plain=context.plain_forward)
        return scores.nll_N, scores.rows_N
    output = context.model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT)
    logits_BC = output.logits.float()
    labels = torch.tensor([row.meta["label"] for row in rows], device=logits_BC.device)
    if logits_BC.shape[-1] == 1:  # regression
        found = functional.mse_loss(logits_BC[:, 0], labels.float().reshape(-1), reduction="none")
    elif labels.ndim > 1:  # several labels a row
        found = functional.binary_cross_entropy_with_logits(logits_BC, labels.float(), reduction="none").mean(
            dim=-1
        )
    else:
        found = functional.cross_entropy(logits_BC, labels.long(), reduction="none")
    return found, torch.arange(len(rows), device=found.device)


def row_losses(context: CheckContext, rows: Sequence[Row], side: Side = "right") -> Tensor:
    """Mean loss of each row, fp32 on the CPU, shape (num_rows,)."""
    loss_N, rows_N = losses(context, rows, side)
    sums = torch.zeros(len(rows), device=loss_N.device).index_add_(0, rows_N, loss_N)
    return (sums / torch.bincount(rows_N, minlength=len(rows))).cpu()


def embedding_rows(model: PreTrainedModel | PeftModel) -> int:
    """Ids that the model has an embedding for."""
    embeddings = base_model(model).get_input_embeddings()
    return int(embeddings.weight.shape[0])  # type: ignore[index]  # any embedding has a weight matrix


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module is in its former mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with same_draws(), torch.no_grad():
            yield
    finally:
        _set_modes(modes)


@contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Room for training steps: trained weights, buffers, modes, gradients and generators are as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    values: dict[Tensor, Tensor] = {p: p.detach().clone() for p in model.parameters() if p.requires_grad}
    values |= {b: b.detach().clone() for b in model.buffers()}
    gradients = {p: p.grad for p in model.parameters()}
    try:
        with same_draws(), torch.enable_grad():
            yield
    finally:
        with torch.no_grad():
            for tensor, value in values.items():
                tensor.copy_(value)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        _set_modes(modes)


@contextmanager
def same_draws() -> Iterator[None]:
    """Python's, numpy's and torch's generators are as before afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def _set_modes(modes: dict[torch.nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode
