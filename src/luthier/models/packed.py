"""Rows one after another in one sequence, none of which sees another: no padding in any matrix product.

The model's own layers run on the flat sequence; attention alone is told where rows begin and end, through
transformers' attention interface. Shapes: N tokens of the pack, R rows, T tokens of the longest row, H heads, K heads of
keys and values, G = H / K, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "luthier_packed"

# Up to here all scores of a row are written out, which matrix units like better than a flash kernel's small tiles; for
# longer rows their square no longer fits.
MOST_TOKENS_WRITTEN_OUT = 1024


@dataclass(frozen=True)
class Pack:
    """Where the rows of a pack lie.

    Attributes:
        lengths: Tokens of each row, in order, shape (R,).
        device: Where its index tensors are.
    """

    lengths: tuple[int, ...]
    device: torch.device

    @cached_property
    def rows_N(self) -> Tensor:
        """Index of each token's row."""
        lengths = torch.tensor(self.lengths, device=self.device)
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.device), lengths)

    @cached_property
    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """Rows of similar length together, so that little is padded inside attention.

        Returns:
            For each group the tokens of its rows, shape (R, T), where padding behind a row repeats its last token; and
            the place of each real token in that table, flat, in the order of the pack.
        """
        starts = torch.tensor([0, *self.lengths], device=self.device).cumsum(0)
        found = []
        for members in _similar(self.lengths):
            lengths = torch.tensor([self.lengths[i] for i in members], device=self.device)
            steps = torch.arange(int(lengths.max()), device=self.device)
            index = starts[torch.tensor(members, device=self.device)][:, None] + torch.minimum(
                steps[None], lengths[:, None] - 1
            )
            real = steps[None] < lengths[:, None]
            found.append((index, real.reshape(-1).nonzero()[:, 0]))
        return found


def _similar(lengths: Sequence[int]) -> list[list[int]]:
    """Row indices in groups whose longest is at most a quarter longer than the shortest."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[groups[-1][0]] <= 1.25 * lengths[index] + 8:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    pack: Pack | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each row of a pack; transformers' own where nothing is packed.

    Args:
        module: The layer.
        query: Shape (1, H, N, D).
        key: Shape (1, K, N, D).
        value: Shape (1, K, N, D).
        attention_mask: Only looked at where nothing is packed.
        dropout: Of the attention weights.
        scaling: Of the scores; ``D ** -0.5`` if None.
        sliding_window: Tokens that a token sees at most, itself included.
        pack: Where the rows lie.
        others: For transformers' own.

    Returns:
        Shape (1, N, H, D), and None for the attention weights.
    """
    if pack is None:
        usual: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module,
            query,
            key,
            value,
            attention_mask,
            dropout,
            scaling,
            sliding_window=sliding_window,
            **others,
        )
        return usual
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries, keys, values = (t[0].transpose(0, 1) for t in (query, key, value))
    parts, places = [], []
    for index_RT, real in pack.groups:
        q, k, v = (t[index_RT].transpose(1, 2) for t in (queries, keys, values))
        written_out = index_RT.shape[1] <= MOST_TOKENS_WRITTEN_OUT and not dropout
        if written_out:
            out_RHTD = _written_out(q, k, v, scaling, sliding_window)
        else:
            mask = _mask(index_RT.shape[1], sliding_window, q) if sliding_window else None
            out_RHTD = functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=True,
            )
        parts.append(out_RHTD.transpose(1, 2).flatten(0, 1)[real])
        places.append(index_RT.reshape(-1)[real])
    if len(parts) == 1 and len(pack.lengths) == 1:
        return parts[0][None], None
    out_NHD = torch.empty_like(queries).index_copy(0, torch.cat(places), torch.cat(parts))
    return out_NHD[None], None


def _written_out(q: Tensor, k: Tensor, v: Tensor, scaling: float, sliding_window: int | None) -> Tensor:
    """Attention as two matrix products; shapes (R, H, T, D) and (R, K, T, D) in, (R, H, T, D) out.

    Heads that share keys are put below each other, so that a product is G times as tall.
    """
    rows, heads, length, width = q.shape
    groups = heads // k.shape[1]
    q = q.reshape(rows, k.shape[1], groups * length, width)
    scores = (q @ k.transpose(2, 3)).view(rows, k.shape[1], groups, length, length)
    # In 32 bits, and padding behind a row is never seen: it lies in every real token's future.
    weights = functional.softmax(scores.float() * scaling + _mask(length, sliding_window, q), dim=-1)
    mixed = weights.to(v.dtype).view(rows, k.shape[1], groups * length, length) @ v
    return mixed.view(rows, heads, length, width)


def _mask(length: int, sliding_window: int | None, like: Tensor) -> Tensor:
    """0 where a token is seen and minus infinity elsewhere, fp32, shape (T, T)."""
    steps = torch.arange(length, device=like.device)
    hidden = steps[None] > steps[:, None]
    if sliding_window:
        hidden |= steps[None] <= steps[:, None] - sliding_window
    return torch.zeros(length, length, device=like.device).masked_fill(hidden, float("-inf"))


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def inputs(pack: Pack) -> dict[str, Any]:
    """What a model's forward is given beside the ids, so that its attention hears of the pack.

    A mask of four dimensions is what transformers hands on as it is; none is made of all pairs of tokens.
    """
    return {"pack": pack, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=pack.device)}


def can_pack(model: PreTrainedModel) -> str | None:
    """Why rows of this model cannot be packed; None if they can."""
    if getattr(model.config, "is_encoder_decoder", False):
        return "encoder-decoder models are not packed"
    if not model._supports_attention_backend:
        return f"{type(model).__name__} keeps a state, or an attention of its own, that would leak from row to row"
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
    if kinds - {"full_attention", "sliding_attention"}:
        return f"layers of kind {', '.join(sorted(kinds))} would leak from row to row"
    if getattr(model.config, "attn_logit_softcapping", None):
        return "attention scores are soft-capped"
    return None
