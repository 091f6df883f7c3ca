from __future__ import annotations

from collections.abc import Iterator

import torch

from luthier.check.as_before import attending, evaluating
from luthier.check.context import CheckContext, Skip
from luthier.check.model_rows import (
    batch_of,
    comparable,
    distance,
    embedding_rows,
    logits,
    most_distance,
    only_causal,
    short_rows,
    too_far,
)
from luthier.models.forward import base_model
from luthier.records import Finding
from luthier.registry import check

NUM_ROWS = 2
MAX_TOKENS = 64


@check("causality")
def causality(context: CheckContext) -> Iterator[Finding]:
    """A token's prediction depends on the tokens before it alone.

    What it does: replaces the second half of 2 training rows (cut to 64 tokens each) by other tokens; the logits of the
    first half stay as they were, relative to their spread to 0.001 in fp32 and 0.1 in 16 bits. If they move, it says
    whether they also do with eager attention.

    Why is this bad: a model that sees the token it is to predict learns to copy it. The loss falls to almost nothing, in
    evaluation too, and generation, which has no future to look at, writes nonsense.

    Example: a config with ``is_causal: false`` from an embedding model; a mask of four dimensions that is all ones.

    Fix: the causal mask of the attention; ``config.is_causal``, a custom mask, or a patched attention.

    Catalogue: 46, 55
    """
    only_causal(context)
    rows = [row for row in short_rows(context, NUM_ROWS, MAX_TOKENS) if len(row.input_ids) >= 4]
    if not rows:
        raise Skip("no row has four tokens, of which the last ones could be changed")
    ids = [batch_of(context, [row]).input_ids_BT for row in rows]
    with evaluating(context.model):
        comparable(context)
        moved = _moved(context, ids)
        found = [] if moved <= most_distance(context) else [_finding(context, moved, ids)]
    yield from found


def _moved(context: CheckContext, ids: list[torch.Tensor]) -> float:
    """How far the logits of the first halves move when the second ones change; the most of any row."""
    most = 0.0
    for ids_BT in ids:
        half = ids_BT.shape[1] // 2
        other_BT = ids_BT.clone()
        other_BT[:, half:] = (other_BT[:, half:] + 1) % embedding_rows(context.model)
        before, after = (logits(context, input_ids=i)[:, :half] for i in (ids_BT, other_BT))
        apart = distance(before, after)
        most = apart if apart != apart else max(most, apart)
    return most


def _finding(context: CheckContext, moved: float, ids: list[torch.Tensor]) -> Finding:
    config = base_model(context.model).config
    cause = ""
    if getattr(config, "is_causal", True) is False:
        cause = ": config.is_causal is False"
    elif (chosen := config._attn_implementation) not in (None, "eager") and base_model(
        context.model
    )._can_set_attn_implementation():
        with attending(context.model, "eager"):
            eager = _moved(context, ids)
        also = "eager attention too" if not eager <= most_distance(context) else "not with eager attention"
        cause = f" with {chosen} attention, and {also}"
    return too_far(
        context,
        "causality",
        moved,
        f"logits move by {moved:.3g} of their spread when tokens after them change{cause}",
        "set config.is_causal=True, and use no mask or attention that lets a token see later ones",
    )
