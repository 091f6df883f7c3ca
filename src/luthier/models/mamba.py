"""Mamba and Mamba-2 on a processor: transformers' layers, their loop over tokens replaced by ``luthier.models.scan``.

What a layer computes is what its own code computes, with these differences. Several tokens behind a cache go on from the
cached state, where transformers' Mamba begins again from zero; and one token with the limits of step sizes, which
transformers' Mamba-2 then forgets. An attention mask of row numbers (1, 2, ...) in the
place of ones marks the rows of a pack, at whose beginnings the state is forgotten.

Shapes: B rows, L tokens, D channels, K taps of the short convolution.
"""

from __future__ import annotations

import logging
import math
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from luthier.models.scan import chunked_scan, selective_scan

# Of a layer's outputs, relative to the largest: the last digits in fp32, three digits in bf16.
MOST_DIFFERENCE = {torch.bfloat16: 0.03, torch.float16: 0.01, torch.float32: 1e-4, torch.float64: 1e-8}

_NO_LIMIT = (0.0, math.inf)


def speed_up(model: nn.Module) -> int:
    """Puts the fast forward over that of every Mamba layer on a processor, where a try gives what its own code gives.

    Returns:
        How many layers there are now.
    """
    layers = [(layer, _FORWARDS[type(layer)]) for layer in model.modules() if type(layer) in _FORWARDS]
    if not layers or not _agrees(*layers[0]):
        return 0
    for layer, forward in layers:
        layer.forward = MethodType(forward, layer)
    return len(layers)


def _mamba_forward(
    self: Any,
    hidden_states: Tensor,
    cache_params: Cache | None = None,
    attention_mask: Tensor | None = None,
    **others: Any,
) -> Tensor:
    if _leaves_it(self, hidden_states, cache_params):
        return _own(self, hidden_states, cache_params, attention_mask, others)
    dtype = hidden_states.dtype
    wide = torch.promote_types(dtype, torch.float32)
    mask_BL1, rows_BL, starts_BL = _masks(attention_mask, hidden_states)
    state = None if cache_params is None else cache_params.get_recurrent_state(self.layer_idx)
    x_BLD, gate_BLD = self.in_proj(_masked(hidden_states, mask_BL1)).to(wide).chunk(2, dim=-1)
    x_BLD = _masked(self.act(_convolution(self, x_BLD, cache_params, rows_BL)), mask_BL1)
    step, b, c = self.x_proj(x_BLD.to(dtype)).split(
        [self.time_step_rank, self.ssm_state_size, self.ssm_state_size], dim=-1
    )
    step_BLD = functional.softplus(functional.linear(step, self.dt_proj.weight).to(wide) + self.dt_proj.bias)
    y_BLD, last = selective_scan(
        x_BLD, step_BLD, -self.A_log.to(wide).exp(), b.to(wide), c.to(wide), state, starts_BL
    )
    if cache_params is not None:
        cache_params.update_recurrent_state(last, self.layer_idx)
    y_BLD = torch.addcmul(y_BLD, x_BLD, self.D.to(wide)) * self.act(gate_BLD)
    found: Tensor = self.out_proj(y_BLD.to(dtype))
    return found


def _mamba2_forward(
    self: Any,
    hidden_states: Tensor,
    cache_params: Cache | None = None,
    attention_mask: Tensor | None = None,
    **others: Any,
) -> Tensor:
    if _leaves_it(self, hidden_states, cache_params):
        return _own(self, hidden_states, cache_params, attention_mask, others)
    dtype = hidden_states.dtype
    wide = torch.promote_types(dtype, torch.float32)
    mask_BL1, rows_BL, starts_BL = _masks(attention_mask, hidden_states)
    state = None if cache_params is None else cache_params.get_recurrent_state(self.layer_idx)
    gate, xbc, step = self.in_proj(_masked(hidden_states, mask_BL1)).split(
        [self.intermediate_size, self.conv_dim, self.num_heads], dim=-1
    )
    xbc = _masked(self.act(_convolution(self, xbc.to(wide), cache_params, rows_BL)), mask_BL1)
    states = self.n_groups * self.ssm_state_size
    x, b, c = xbc.split([self.intermediate_size, states, states], dim=-1)
    x_BLHP = x.unflatten(-1, (self.num_heads, self.head_dim))
    b, c = (t.unflatten(-1, (self.n_groups, self.ssm_state_size)) for t in (b, c))
    step_BLH = functional.softplus(step.to(wide) + self.dt_bias).clamp(*self.time_step_limit)
    y_BLHP, last = chunked_scan(x_BLHP, step_BLH, -self.A_log.to(wide).exp(), b, c, state, starts_BL)
    if cache_params is not None:
        cache_params.update_recurrent_state(last, self.layer_idx)
    y_BLHP = torch.addcmul(y_BLHP, x_BLHP, self.D.to(wide)[:, None])
    found: Tensor = self.out_proj(self.norm(y_BLHP.flatten(2), gate).to(dtype))
    return found


_FORWARDS: dict[type[nn.Module], Any] = {MambaMixer: _mamba_forward, Mamba2Mixer: _mamba2_forward}


def _leaves_it(layer: Any, hidden_states: Tensor, cache: Cache | None) -> bool:
    """Whether the layer's own code does it: on a GPU, and for the next token behind a cache, where it is right and short.

    transformers 5.23's step of Mamba-2 forgets the limits of step sizes.
    """
    if hidden_states.device.type != "cpu":
        return True
    if tuple(getattr(layer, "time_step_limit", _NO_LIMIT)) != _NO_LIMIT:
        return False
    return (
        hidden_states.shape[1] == 1
        and cache is not None
        and cache.get_conv_state(layer.layer_idx) is not None
        and not cache.is_recording_past(layer.layer_idx)
    )


def _own(layer: Any, hidden_states: Tensor, cache: Cache | None, mask: Tensor | None, others: Any) -> Tensor:
    found: Tensor = type(layer).forward(layer, hidden_states, cache, mask, **others)
    return found


def _masks(mask: Tensor | None, hidden_states: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What is padding (0, else 1), the row of each token, and where rows begin; each only where there is any."""
    if mask is None or mask.ndim != 2:
        return None, None, None
    rows_BL = mask[:, -hidden_states.shape[1] :]
    mask_BL1 = None if bool(rows_BL.all()) else (rows_BL != 0)[..., None]
    if not len(rows_BL) or int(rows_BL.max()) <= 1:
        return mask_BL1, None, None
    starts_BL = functional.pad(rows_BL[:, 1:] != rows_BL[:, :-1], (1, 0), value=False)
    return mask_BL1, rows_BL, starts_BL


def _masked(x_BLD: Tensor, mask_BL1: Tensor | None) -> Tensor:
    return x_BLD if mask_BL1 is None else x_BLD * mask_BL1


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _convolution(layer: Any, x_BLD: Tensor, cache: Cache | None, rows_BL: Tensor | None) -> Tensor:
    """Each channel's own sum over the last K tokens, of the cache too, but not of another row of a pack."""
    dtype, length, taps = x_BLD.dtype, x_BLD.shape[1], layer.conv_kernel_size
    if cache is not None:
        x_BLD = cache.update_conv_state(x_BLD.mT, layer.layer_idx, conv_kernel_size=taps).mT.to(dtype)
    x_BLD = functional.pad(x_BLD, (0, 0, taps - 1, 0))[:, -(length + taps - 1) :]
    weight_KD = layer.conv1d.weight[:, 0].to(dtype).t().contiguous()
    y_BLD: Tensor = _ShortConvolution.apply(x_BLD, weight_KD, rows_BL)  # type: ignore[no-untyped-call]
    return y_BLD if layer.conv1d.bias is None else y_BLD + layer.conv1d.bias


class _ShortConvolution(torch.autograd.Function):
    """``y_l = sum_k w_k x_(l + k)`` of L + K - 1 tokens; rows of a pack are kept apart by their numbers, shape (B, L)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_KD: Tensor, rows_BL: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_KD, rows_BL)
        length = x.shape[1] - len(weight_KD) + 1
        y = x[:, -length:] * weight_KD[-1]
        for tap, weight_D in enumerate(weight_KD[:-1]):
            y.addcmul_(_of_the_row(x[:, tap : tap + length], rows_BL, len(weight_KD) - 1 - tap), weight_D)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_KD, rows_BL = ctx.saved_tensors
        dy, length = gradients[0], gradients[0].shape[1]
        dx, dweight_KD = torch.zeros_like(x), torch.empty_like(weight_KD)
        for tap, weight_D in enumerate(weight_KD):
            part = slice(tap, tap + length)
            dy_tap = _of_the_row(dy, rows_BL, len(weight_KD) - 1 - tap)
            dx[:, part].addcmul_(dy_tap, weight_D)
            dweight_KD[tap] = (dy_tap * x[:, part]).sum(dim=(0, 1))
        return dx, dweight_KD, None


def _of_the_row(x_BLD: Tensor, rows_BL: Tensor | None, back: int) -> Tensor:
    """Zero for tokens whose row has begun less than ``back`` tokens before them."""
    if rows_BL is None or not back:
        return x_BLD
    earlier_BL = functional.pad(rows_BL, (back, 0))[:, : rows_BL.shape[1]]
    return x_BLD * (earlier_BL == rows_BL)[..., None]


@torch.no_grad()
def _agrees(layer: Any, forward: Any) -> bool:
    """Whether the layer's own code gives the same for a few tokens: another version of transformers may compute otherwise."""
    weight = layer.conv1d.weight  # in its own format where that of the products has 4 bits
    if weight.device.type != "cpu":
        return False
    steps = torch.arange(5 * layer.in_proj.in_features, dtype=torch.float32)
    x = (steps * 0.7).sin().view(1, 5, -1).to(weight.dtype)
    log = logging.getLogger("transformers.integrations.hub_kernels")
    silent, log.disabled = log.disabled, True  # it would warn of the slow way, which is then not taken
    try:
        own, ours = (f(layer, x).double() for f in (type(layer).forward, forward))
    finally:
        log.disabled = silent
    most = float((own - ours).abs().max())
    limit: float = MOST_DIFFERENCE[weight.dtype]
    return most <= limit * float(own.abs().max())
