from __future__ import annotations

from collections.abc import Iterator

import torch

from luthier.check.as_before import attending, evaluating
from luthier.check.context import CheckContext, Skip
from luthier.check.model_rows import (
    comparable,
    distance,
    most_distance,
    real_logits,
    short_rows,
    too_far,
)
from luthier.models.forward import base_model
from luthier.records import Finding
from luthier.registry import check

NUM_ROWS = 2
MAX_TOKENS = 64


@check("attention")
def attention(context: CheckContext) -> Iterator[Finding]:
    """The chosen attention implementation computes what the model's own plain one computes.

    What it does: logits of 2 training rows (cut to 64 tokens each), padded on the right, with the chosen implementation
    and with ``eager``, which every model writes out in full; they agree relative to their spread to 0.001 in fp32 and 0.1
    in 16 bits. A sliding window of more tokens than that is not looked into. The choice is put back.

    Why is this bad: a fast kernel that leaves out what this model needs (soft-capped scores, a sliding window, a scale of
    its own, the padding mask) computes another model. It trains well, and is worse wherever it is used otherwise.

    Example: Gemma 2 with ``sdpa``, which knows no soft-capping.

    Fix: ``model.attention=eager``, or ``attn_implementation="eager"`` when the model is loaded.

    Catalogue: 50, 55
    """
    base = base_model(context.model)
    chosen = base.config._attn_implementation
    if chosen == "eager":
        raise Skip("the model uses eager attention, with which others are compared, or has none")
    if chosen is None or not base._can_set_attn_implementation():
        raise Skip("the model has no attention that could be exchanged")
    rows = short_rows(context, NUM_ROWS, MAX_TOKENS)
    with evaluating(context.model):
        comparable(context)
        own = real_logits(context, rows)
        with attending(context.model, "eager"):
            eager = real_logits(context, rows)
    apart = distance(own, eager)
    if not apart <= most_distance(context):
        best = float((own.argmax(-1) == eager.argmax(-1)).to(torch.float32).mean())
        yield too_far(
            context,
            "attention",
            apart,
            f"logits with {chosen} attention and with eager are {apart:.3g} of their spread apart; "
            f"the best one is the same at {best:.0%} of the places",
            context.fix(
                "model.attention=eager", 'load the model with attn_implementation="eager", or mend the kernel'
            ),
        )
