"""Layers of a model computed in fewer and larger steps, with the same results: LoRA as one product, norms and gates compiled.

Each replacement is a ``forward`` put over that of one layer object; ``unfuse`` takes them away. Shapes: N tokens, I inputs,
O outputs, r rank.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional

Compiled = Callable[..., Tensor]


class _LoraProduct(torch.autograd.Function):
    """``x W' + scale (x A') B'`` as the one product ``[x, x A'] [W, scale B]'``.

    Both parts are added up inside the product, in 32 bits: added afterwards, a small update would be lost to the rounding
    of an output in bf16. The frozen weight gets no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        a_rI: Tensor,
        b_Or: Tensor,
        joined_OJ: Tensor,
        bias_O: Tensor | None,
        scale: float,
    ) -> Tensor:
        rank, inputs = a_rI.shape
        dtype = joined_OJ.dtype
        x_NI = x_NI.to(dtype)
        reduced_Nr = x_NI @ a_rI.to(dtype).t()
        joined_OJ[:, inputs:] = b_Or * scale
        y_NO = functional.linear(torch.cat([x_NI, reduced_Nr], dim=1), joined_OJ, bias_O)
        ctx.save_for_backward(x_NI, reduced_Nr, a_rI)
        ctx.joined_OJ, ctx.scale, ctx.rank = joined_OJ, scale, rank
        return y_NO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dy_NO = gradients[0]
        x_NI, reduced_Nr, a_rI = ctx.saved_tensors
        dtype = x_NI.dtype
        inputs = x_NI.shape[1]
        dz_NJ = dy_NO.to(dtype) @ ctx.joined_OJ
        dreduced_Nr = dz_NJ[:, inputs:]
        dx_NI = (
            torch.addmm(dz_NJ[:, :inputs], dreduced_Nr, a_rI.to(dtype)) if ctx.needs_input_grad[0] else None
        )
        da_rI = (dreduced_Nr.t() @ x_NI).to(a_rI.dtype)
        db_Or = (dy_NO.t() @ reduced_Nr).to(a_rI.dtype) * ctx.scale
        return dx_NI, da_rI, db_Or, None, None, None


def fuse_lora(model: nn.Module) -> int:
    """Puts the one product in the place of every plain LoRA layer; how many there were.

    Left as they are: layers with dropout, several adapters, variants such as DoRA, or a base that is trained or quantised.
    """
    fused = 0
    for layer in model.modules():
        if not isinstance(layer, LoraLinear) or not _is_plain(layer):
            continue
        (name,) = layer.active_adapters
        base: Any = layer.get_base_layer()
        weight, rank = base.weight, layer.r[name]
        outputs, inputs = weight.shape
        # The frozen weight moves into the joined one, of which it stays a view: no second copy is held.
        joined = torch.empty(outputs, inputs + rank, dtype=weight.dtype, device=weight.device)
        joined[:, :inputs] = weight.detach()
        weight.data = joined[:, :inputs]
        layer._luthier_joined = joined
        layer.forward = MethodType(_lora_forward, layer)  # type: ignore[method-assign]
        fused += 1
    return fused


def _is_plain(layer: LoraLinear) -> bool:
    names = layer.active_adapters
    base = layer.get_base_layer()
    return (
        len(names) == 1
        and names[0] in layer.lora_A
        and names[0] not in layer.lora_variant
        and isinstance(layer.lora_dropout[names[0]], nn.Identity)
        and not layer.lora_bias[names[0]]
        and not layer.fan_in_fan_out
        and type(base) is nn.Linear
        and not base.weight.requires_grad
        and base.weight.is_floating_point()
    )


def _lora_forward(self: LoraLinear, x: Tensor, *arguments: Any, **others: Any) -> Tensor:
    if self.disable_adapters or self.merged or arguments or others:
        usual: Tensor = type(self).forward(self, x, *arguments, **others)
        return usual
    (name,) = self.active_adapters
    base: Any = self.get_base_layer()
    flat = x.reshape(-1, x.shape[-1])
    # Autocast would cast what is of the right type already.
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _LoraProduct.apply(  # type: ignore[no-untyped-call]
            flat,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self._luthier_joined,
            base.bias,
            self.scaling[name],
        )
    return y.view(*x.shape[:-1], y.shape[-1])


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root mean square normalisation, in 32 bits, as LLaMA's code has it.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
    """
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``. Source: Shazeer 2020, arXiv:2002.05202, eq. 6."""
    return functional.silu(gate) * up


@functools.cache
def _compiled() -> tuple[Compiled, Compiled]:
    return torch.compile(rms_norm, dynamic=True), torch.compile(swiglu, dynamic=True)


def fuse_elementwise(model: nn.Module) -> int:
    """Compiles norms and gated activations of the usual form, where a try gives what the layer's own code gives; how many.

    Nothing is compiled where that fails (no C++ compiler): the layers stay as they are.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            norm, gate = _compiled()
            norm(torch.ones(2, 8), torch.ones(8), 1e-6), gate(torch.ones(2, 8), torch.ones(2, 8))
    except Exception:  # whatever a missing or broken compiler raises
        return 0
    fused = 0
    forward: Callable[..., Tensor]
    for layer in model.modules():
        if type(layer).__name__.endswith("RMSNorm") and hasattr(layer, "variance_epsilon"):
            forward = _norm_forward
        elif all(hasattr(layer, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            forward = _gated_forward
        else:
            continue
        if _agrees(layer, forward):
            layer.forward = MethodType(forward, layer)
            fused += 1
    return fused


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    return _compiled()[0](hidden_states, self.weight, self.variance_epsilon)


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.down_proj(_compiled()[1](self.gate_proj(x), self.up_proj(x)))
    return y


@torch.no_grad()
def _agrees(layer: Any, forward: Callable[..., Tensor]) -> bool:
    """Whether the layer's own code gives the same; Gemma's norm adds 1 to its weight, for one."""
    weight = layer.weight if hasattr(layer, "weight") else layer.gate_proj.weight
    x = torch.linspace(-2, 2, weight.shape[-1], device=weight.device).to(weight.dtype).repeat(2, 1)
    own, ours = layer(x), forward(layer, x)
    return own.dtype == ours.dtype and torch.allclose(own.float(), ours.float(), rtol=1e-2, atol=1e-3)


def unfuse(model: nn.Module) -> None:
    """Takes all replacements away; the model computes by its own code again."""
    for layer in model.modules():
        replaced = vars(layer).get("forward")
        if isinstance(replaced, MethodType) and replaced.__func__ in (
            _lora_forward,
            _norm_forward,
            _gated_forward,
        ):
            del layer.forward
        if isinstance(layer, LoraLinear) and hasattr(layer, "_luthier_joined"):
            base: Any = layer.get_base_layer()
            base.weight.data = base.weight.data.clone()
            del layer._luthier_joined
