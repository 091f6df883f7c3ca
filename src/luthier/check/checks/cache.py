from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from transformers import GenerationConfig

from luthier.check.context import CheckContext, Skip
from luthier.check.model_rows import (
    batch_of,
    comparable,
    cut,
    distance,
    evaluating,
    figure,
    forward,
    most_distance,
    only_causal,
    short_rows,
)
from luthier.models.forward import base_model
from luthier.records import Finding, Row
from luthier.registry import check

# Of different lengths, so that one is padded on the left, as generation does it.
LENGTHS = (32, 24)
NEW_TOKENS = 3


@check("cache")
def cache(context: CheckContext) -> Iterator[Finding]:
    """Generation with a cache of keys and values gives the logits that it gives without.

    What it does: lets ``generate`` write 3 tokens greedily behind 2 training rows (cut to 32 and 24 tokens, padded on the
    left), with ``use_cache`` and without; as long as both wrote the same, their logits agree relative to their spread to
    0.001 in fp32 and 0.1 in 16 bits.

    Why is this bad: training never uses the cache, generation always does. If they differ, every loss is right and every
    generated answer is another model's.

    Example: a layer of one's own that takes each new token for the first of its row; positions that count padding.

    Fix: the model's code must take its positions from the cache; ``use_cache=False`` is slow and right.

    Catalogue: 51, 57
    """
    only_causal(context)
    base = base_model(context.model)
    if not base.can_generate():
        raise Skip("the model cannot generate")
    rows = [cut(row, n) for row, n in zip(short_rows(context, 2, LENGTHS[0]), LENGTHS, strict=False)]
    with evaluating(context.model):
        comparable(context)
        steps = {used: _generate(context, rows, use_cache=used) for used in (True, False)}
    worst = 0.0
    known = min(len(logits) for logits, _ in steps.values())
    (with_cache, wrote), (without, wrote_too) = steps[True], steps[False]
    for place in range(known):
        same = (wrote[:, :place] == wrote_too[:, :place]).all(-1)
        apart = distance(with_cache[place][same], without[place][same])
        worst = apart if apart != apart else max(worst, apart)
    if not worst <= most_distance(context):
        yield Finding(
            "cache",
            "error",
            f"generated logits with a cache and without are {worst:.3g} of their spread apart",
            f"model {context.model_name}",
            "mend how the model counts positions with a cache, or generate with use_cache=False",
            measured=figure(worst),
            expected=f"at most {most_distance(context)}",
        )


def _generate(context: CheckContext, rows: Sequence[Row], *, use_cache: bool) -> tuple[list[Tensor], Tensor]:
    """Logits of each new token, shape (B, V) each, and the new tokens, shape (B, T)."""
    batch = batch_of(context, rows, "left")
    config = base_model(context.model).config.get_text_config()
    pad_id = getattr(config, "pad_token_id", None)
    settings = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        pad_token_id=pad_id if pad_id is not None else int(batch.input_ids_BT[-1, 0]),
        eos_token_id=config.eos_token_id,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with forward(context):
        output = context.model.generate(  # type: ignore[operator] # typed as a tensor or a module
            input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, generation_config=settings
        )
    return [step.float() for step in output.logits], output.sequences[:, batch.input_ids_BT.shape[1] :]
