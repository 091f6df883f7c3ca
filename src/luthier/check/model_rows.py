"""What checks of the model share: a few short real rows, evaluation without traces, and how exact numbers can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.check.context import CheckContext, Skip
from luthier.encoding.batches import Batch, collate
from luthier.models.forward import base_model
from luthier.models.load import choose_precision
from luthier.records import Row


def short_rows(context: CheckContext, count: int, max_tokens: int) -> list[Row]:
    """At most ``count`` training rows, spread over the split, each cut to ``max_tokens`` around its first trained tokens.

    Raises:
        Skip: No row has a trained token, or an id that the model has no embedding for would end in a crash.
    """
    rows = [cut(row, max_tokens) for row in context.spread("train", count) if _first_trained(row)]
    if not rows:
        raise Skip("there is no training row with a trained token (see untrained-row)")
    size = embedding_rows(context.model)
    if max(int(np.max(row.input_ids)) for row in rows) >= size:
        raise Skip("rows hold ids that the model has no embedding for (see vocabulary)")
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


def batch_of(context: CheckContext, rows: Sequence[Row]) -> Batch:
    """The rows as one batch on the model's device, padded on the right with the id that real models confuse most: EOS."""
    return collate(rows, context.tokenizer.eos_id or 0).to(base_model(context.model).device)


def embedding_rows(model: PreTrainedModel | PeftModel) -> int:
    """Ids that the model has an embedding for."""
    embeddings = base_model(model).get_input_embeddings()
    return int(embeddings.weight.shape[0])  # type: ignore[index]  # any embedding has a weight matrix


@contextmanager
def evaluating(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Evaluation mode without gradients; the model is in its former mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def is_fp32(context: CheckContext) -> bool:
    """Whether the model computes in 32 bits, so that only rounding of the last digits may differ."""
    return (
        choose_precision(context.recipe.model) == "fp32" and base_model(context.model).dtype == torch.float32
    )
