"""Rows one after another in one sequence, none of which sees another: no padding in any matrix product.

The model's own layers run on the flat sequence; attention alone is told where rows begin and end, through
transformers' attention interface. Shapes: N tokens of the pack, R rows, H heads, K heads of keys and values, G = H / K,
D width of a head; Q queries and T keys of a tile, which is a part of a long row or several short rows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from luthier.models.compiled import compiled

NAME = "luthier_packed"

# Queries of a tile: large enough for a matrix unit, small enough that a tile's scores stay in the cache.
TILE = 256


@dataclass(frozen=True)
class Tile:
    """Queries that follow each other, with all keys that any of them sees.

    Attributes:
        queries: Their tokens in the pack.
        keys: Tokens of the keys.
        first_Q: First key that each query sees, counted from the tile's first key, int64.
    """

    queries: slice
    keys: slice
    first_Q: Tensor

    @property
    def offset(self) -> int:
        """Keys before the first query: query i sees keys up to ``offset + i``."""
        return int(self.queries.start - self.keys.start)


@functools.lru_cache(maxsize=32)
def tiles(lengths: tuple[int, ...], window: int | None, device: torch.device) -> list[Tile]:
    """All queries of a pack in tiles: several short rows together, a long row in parts.

    Args:
        lengths: Tokens of each row, in order.
        window: Tokens that a token sees at most, itself included.
        device: Of the index tensors.
    """
    ends = torch.tensor(lengths).cumsum(0)
    steps = torch.arange(int(ends[-1]))
    first_N = torch.repeat_interleave(ends - torch.tensor(lengths), torch.tensor(lengths))
    if window:
        first_N = torch.maximum(first_N, steps - window + 1)
    found, start, end = [], 0, 0
    for length in (*lengths, None):
        if length is not None and end + length - start <= TILE:
            end += length
            continue
        for first in range(start, end, TILE):  # several parts only of a long row
            queries = slice(first, min(first + TILE, end))
            keys = slice(int(first_N[first]), queries.stop)
            found.append(Tile(queries, keys, (first_N[queries] - keys.start).clamp(min=0).to(device)))
        start, end = end, end + (length or 0)
    return found


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    row_lengths: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each row of a pack; transformers' own where nothing is packed.

    Args:
        module: The layer.
        query: Shape (1, H, N, D).
        key: Shape (1, K, N, D).
        value: Shape (1, K, N, D).
        attention_mask: Only looked at where nothing is packed.
        dropout: Of the attention weights; with it each row goes through torch's attention.
        scaling: Of the scores; ``D ** -0.5`` if None.
        sliding_window: Tokens that a token sees at most, itself included.
        row_lengths: Tokens of each row of the pack, int64 on the CPU, shape (R,).
        others: For transformers' own.

    Returns:
        Shape (1, N, H, D), and None for the attention weights.
    """
    if row_lengths is None:
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
    # As autocast does for an operation of torch's own: rotation leaves queries and keys of fp32 weights in 32 bits.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if query.is_cuda and not dropout:
        return _on_gpu(query, key, value, row_lengths, scaling, sliding_window), None
    if dropout:
        lengths = row_lengths.tolist()
        each = [
            functional.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True
            )
            for q, k, v in zip(*(t.split(lengths, dim=2) for t in (query, key, value)), strict=True)
        ]
        return torch.cat(each, dim=2).transpose(1, 2), None
    out_NHD: Tensor
    out_NHD, _ = packed_attention(
        *(t[0].transpose(0, 1) for t in (query, key, value)), row_lengths, scaling, sliding_window or 0
    )
    return out_NHD[None], None


def _on_gpu(
    query: Tensor, key: Tensor, value: Tensor, row_lengths: Tensor, scaling: float, window: int | None
) -> Tensor:
    """The same by torch's flash attention for rows of different lengths. Never run by us: there was no GPU."""
    from torch.nn.attention.varlen import varlen_attn

    ends = functional.pad(row_lengths.cumsum(0), (1, 0)).to(query.device, torch.int32)
    longest = int(row_lengths.max())
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    out_NHD: Any = varlen_attn(
        q,
        k,
        v,
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        window_size=((window or 0) - 1, 0),
        enable_gqa=True,
    )
    out_1NHD: Tensor = out_NHD[None]
    return out_1NHD


@custom_op("luthier::packed_attention", mutates_args=())
def packed_attention(
    q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, row_lengths: Tensor, scaling: float, window: int
) -> tuple[Tensor, Tensor]:
    """Attention inside each row; and the logarithm of each token's sum of weights, shape (N, H), fp32.

    One operation to the compiler. Forward is torch's own kernel for processors, row by row; its backward is several times
    slower than matrix products, so that is written out here, tile by tile.
    """
    out_NHD = torch.empty(q_NHD.shape, dtype=q_NHD.dtype, device=q_NHD.device)
    total_NH = torch.empty(q_NHD.shape[:2], dtype=torch.float32, device=q_NHD.device)
    start = 0
    for length in row_lengths.tolist():
        row = slice(start, start + length)
        start += length
        q, k, v = (t[row].transpose(0, 1)[None] for t in (q_NHD, k_NKD, v_NKD))
        mask = _window_mask(length, window, q) if 0 < window < length else None
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, is_causal=mask is None, attn_mask=mask, scale=scaling
        )
        out_NHD[row], total_NH[row] = out[0].transpose(0, 1), total[0].transpose(0, 1)
    return out_NHD, total_NH


def _window_mask(length: int, window: int, like: Tensor) -> Tensor:
    """0 where a token is seen and minus infinity elsewhere, shape (T, T)."""
    seen = torch.ones(length, length, dtype=torch.bool, device=like.device).tril().triu(1 - window)
    return torch.zeros(length, length, dtype=like.dtype, device=like.device).masked_fill(~seen, float("-inf"))


@custom_op("luthier::packed_attention_backward", mutates_args=())
def _backward(
    dout_NHD: Tensor,
    out_NHD: Tensor,
    total_NH: Tensor,
    q_NHD: Tensor,
    k_NKD: Tensor,
    v_NKD: Tensor,
    row_lengths: Tensor,
    scaling: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dq_NHD = torch.empty(q_NHD.shape, dtype=q_NHD.dtype, device=q_NHD.device)
    dk_NKD, dv_NKD = (torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in (k_NKD, v_NKD))
    mean_NH = _mean_gradient(dout_NHD, out_NHD)
    for tile in tiles(tuple(row_lengths.tolist()), window or None, q_NHD.device):
        queries, keys = tile.queries, tile.keys
        dq_NHD[queries], dk, dv = _tile_gradients(
            dout_NHD[queries],
            total_NH[queries],
            mean_NH[queries],
            q_NHD[queries],
            k_NKD[keys],
            v_NKD[keys],
            tile.first_Q,
            tile.offset,
            scaling,
        )
        dk_NKD[keys] += dk
        dv_NKD[keys] += dv
    return dq_NHD, dk_NKD.to(k_NKD.dtype), dv_NKD.to(v_NKD.dtype)


@compiled
def _mean_gradient(dout_NHD: Tensor, out_NHD: Tensor) -> Tensor:
    """Mean of a token's gradients of weights under its weights, shape (N, H)."""
    return (dout_NHD.float() * out_NHD.float()).sum(-1)


@compiled
def _tile_gradients(
    dout_QHD: Tensor,
    total_QH: Tensor,
    mean_QH: Tensor,
    q_QHD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    first_Q: Tensor,
    offset: int,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; scores are computed again.

    Source: Dao 2023, arXiv:2307.08691, algorithm 2, with all keys of a tile at once.
    """
    queries, heads, _ = q_QHD.shape
    keys, num_keys, width = k_TKD.shape
    shared = (num_keys, heads // num_keys, keys, width)
    q, dout = q_QHD.transpose(0, 1), dout_QHD.transpose(0, 1)
    # Keys and values once for every head: as tall products of the heads that share them it is slower for long rows.
    k, v = (t.transpose(0, 1)[:, None].expand(shared).reshape(heads, keys, width) for t in (k_TKD, v_TKD))
    scores, dweights = (a @ b.transpose(1, 2) for a, b in ((q, k), (dout, v)))
    key_T = torch.arange(keys, device=q.device)
    last_Q = torch.arange(queries, device=q.device) + offset
    hidden_QT = (key_T > last_Q[:, None]) | (key_T < first_Q[:, None])
    weights = (scores.float() * scaling - total_QH.t()[..., None]).exp().masked_fill(hidden_QT, 0.0)
    dscores = (weights * (dweights.float() - mean_QH.t()[..., None]) * scaling).to(q.dtype)
    dk, dv = (a.transpose(1, 2) @ b for a, b in ((dscores, q), (weights.to(q.dtype), dout)))
    return (
        (dscores @ k).transpose(0, 1),
        dk.view(shared).sum(1, dtype=torch.float32).transpose(0, 1),
        dv.view(shared).sum(1, dtype=torch.float32).transpose(0, 1),
    )


@packed_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scaling: float, window: int) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@_backward.register_fake
def _(
    dout: Tensor,
    out: Tensor,
    total: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    scaling: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scaling, ctx.window = inputs
    ctx.save_for_backward(*output, *tensors)


def _gradients(ctx: Any, dout_NHD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _backward(dout_NHD, *ctx.saved_tensors, ctx.scaling, ctx.window)
    return *gradients, None, None, None


packed_attention.register_autograd(_gradients, setup_context=_save)

ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def inputs(row_lengths: tuple[int, ...], device: torch.device) -> dict[str, Any]:
    """What a model's forward is given beside the ids, so that its attention hears of the pack.

    A mask of four dimensions is what transformers hands on as it is; none is made of all pairs of tokens.
    """
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    return {"row_lengths": torch.tensor(row_lengths), "attention_mask": mask}


def can_pack(model: PreTrainedModel) -> str | None:
    """Why rows of this model cannot be packed; None if they can."""
    config = model.config.get_text_config()
    if getattr(model.config, "is_encoder_decoder", False):
        return "encoder-decoder models are not packed"
    if not model._supports_attention_backend:
        return f"{type(model).__name__} keeps a state, or an attention of its own, that would leak from row to row"
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - {"full_attention", "sliding_attention"}:
        return f"layers of kind {', '.join(sorted(kinds))} would leak from row to row"
    if getattr(config, "attn_logit_softcapping", None):
        return "attention scores are soft-capped"
    if model.device.type not in ("cpu", "cuda"):
        return f"attention inside packs is not written for {model.device.type}"
    if model.device.type == "cuda" and getattr(model, "product_dtype", model.dtype) == torch.float32:
        return "flash attention on a GPU needs bf16"
    if getattr(config, "attention_dropout", None) and getattr(config, "sliding_window", None):
        return "attention weights have dropout, inside a window"
    return None
