from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from luthier.check.as_before import evaluating
from luthier.check.context import CheckContext, Skip
from luthier.check.model_rows import (
    batch_of,
    comparable,
    cut,
    distance,
    logits,
    most_distance,
    only_causal,
    own_pad_id,
    short_rows,
    too_far,
)
from luthier.models.forward import base_model
from luthier.records import Finding, Row
from luthier.registry import check

# Of different lengths, so that one is padded on the left, as generation does it.
LENGTHS = (48, 32)
NEW_TOKENS = 4


@check("cache")
def cache(context: CheckContext) -> Iterator[Finding]:
    """Generation with a cache of keys and values gives the logits of one pass over the whole text.

    What it does: lets ``generate`` write 4 tokens greedily behind 2 training rows (cut to 48 and 32 tokens, padded on the
    left) with ``use_cache``; its logits are those of one forward pass over prompt and tokens, relative to their spread to
    0.001 in fp32 and 0.1 in 16 bits.

    Why is this bad: training never uses the cache, generation always does. If they differ, every loss is right and every
    generated answer is another model's.

    Example: a layer of one's own that takes each new token for the first of its row; positions that count padding.

    Fix: the model's code must take its positions from the cache; ``use_cache=False`` is slow and right.

    Catalogue: 51, 57
    """
    only_causal(context)
    if not base_model(context.model).can_generate():
        raise Skip("the model cannot generate")
    rows = [cut(row, n) for row, n in zip(short_rows(context, 2, LENGTHS[0]), LENGTHS, strict=False)]
    with evaluating(context.model):
        comparable(context)
        worst = _apart(context, rows)
    if not worst <= most_distance(context):
        yield too_far(
            context,
            "cache",
            worst,
            f"logits generated with a cache are {worst:.3g} of their spread from those of one pass over the same tokens",
            "mend how the model counts positions with a cache, or generate with use_cache=False",
        )


def _apart(context: CheckContext, rows: Sequence[Row]) -> float:
    """How far logits with a cache are from those without."""
    batch = batch_of(context, rows, "left")
    base = base_model(context.model)
    config = base.config.get_text_config()
    pad_id = own_pad_id(context)
    settings = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        pad_token_id=pad_id if pad_id is not None else int(batch.input_ids_BT[-1, 0]),
        eos_token_id=getattr(config, "eos_token_id", None),
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with context.forward():
        output = context.model.generate(  # type: ignore[operator] # typed as a tensor or a module
            input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, generation_config=settings
        )
    with_cache = torch.stack([step.float() for step in output.logits], dim=1)
    ids_BT = output.sequences[:, :-1]  # nothing was asked of the last one
    start = batch.input_ids_BT.shape[1] - 1
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[:, : start + 1] = batch.attention_mask_BT
    inputs: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": mask_BT}
    if "position_ids" in inspect.signature(base.forward).parameters:
        inputs["position_ids"] = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    return distance(with_cache, logits(context, **inputs)[:, start:])
