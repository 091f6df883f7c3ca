"""Layers of a model computed in fewer and larger steps, with the same results: LoRA as one product, decoder layers compiled.

Each replacement is a ``forward`` put over that of one layer object; ``unfuse`` takes them away. Shapes: N tokens, I inputs,
O outputs, r rank.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.library import custom_op
from torch.nn import functional
from transformers import PreTrainedModel

from luthier.models import compiled
from luthier.models.forward import base_model, decoder_layers


@custom_op("luthier::lora_product", mutates_args=())
def lora_product(
    x_NI: Tensor, a_rI: Tensor, b_Or: Tensor, joined_OJ: Tensor, bias_O: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """``x W' + scale (x A') B'`` as the one product ``[x, x A'] [W, scale B]'``; and ``x A'``.

    Both parts are added up inside the product, in 32 bits: added afterwards, a small update would be lost to the rounding
    of an output in bf16. The frozen weight gets no gradient. One operation to the compiler.

    Args:
        x_NI: Inputs.
        a_rI: First matrix of the adapter.
        b_Or: Second one; only its gradient is looked at.
        joined_OJ: ``[W, scale B]``, whose type is that of the product.
        bias_O: Of the layer.
        scale: Of the update.
    """
    x_NI = x_NI.to(joined_OJ.dtype)
    reduced_Nr = x_NI @ a_rI.to(x_NI.dtype).t()
    return functional.linear(torch.cat([x_NI, reduced_Nr], dim=1), joined_OJ, bias_O), reduced_Nr


@custom_op("luthier::lora_product_backward", mutates_args=())
def _backward(
    dy_NO: Tensor, x_NI: Tensor, reduced_Nr: Tensor, a_rI: Tensor, joined_OJ: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, inputs = joined_OJ.dtype, x_NI.shape[1]
    dy_NO, low_NI = dy_NO.to(dtype), x_NI.to(dtype)
    dz_NJ = dy_NO @ joined_OJ
    dreduced_Nr = dz_NJ[:, inputs:]
    dx_NI = torch.addmm(dz_NJ[:, :inputs], dreduced_Nr, a_rI.to(dtype))
    da_rI = (dreduced_Nr.t() @ low_NI).to(a_rI.dtype)
    db_Or = (dy_NO.t() @ reduced_Nr).to(a_rI.dtype) * scale
    return dx_NI.to(x_NI.dtype), da_rI, db_Or


@lora_product.register_fake
def _(
    x: Tensor, a: Tensor, b: Tensor, joined: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    # No len(): it would fix the number of tokens.
    return joined.new_empty(x.shape[0], joined.shape[0]), joined.new_empty(x.shape[0], a.shape[0])


@_backward.register_fake
def _(
    dy: Tensor, x: Tensor, reduced: Tensor, a: Tensor, joined: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), a.new_empty(a.shape), a.new_empty(joined.shape[0], a.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_NI, a_rI, _, joined_OJ, _, ctx.scale = inputs
    ctx.save_for_backward(x_NI, output[1], a_rI, joined_OJ)


def _gradients(ctx: Any, dy_NO: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(dy_NO, *ctx.saved_tensors, ctx.scale), None, None, None


lora_product.register_autograd(_gradients, setup_context=_save)


def fuse_lora(model: PreTrainedModel | PeftModel) -> int:
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
        layer.forward = MethodType(_lora_forward, layer)  # type: ignore[method-assign] # that is the point
        fused += 1
    if fused:
        decoder: Any = base_model(model).base_model
        decoder._luthier_hook = decoder.register_forward_pre_hook(_refresh)
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
        and type(base.weight) is nn.Parameter  # not one in shards
        and not base.weight.requires_grad
        and base.weight.is_floating_point()
    )


@torch.no_grad()
def _refresh(model: nn.Module, _: Any) -> None:
    """Before each forward pass: the adapters' second matrices as they are now, in the joined weights."""
    for layer in model.modules():
        if isinstance(layer, LoraLinear) and hasattr(layer, "_luthier_joined"):
            (name,) = layer.active_adapters
            joined: Any = layer._luthier_joined
            joined[:, layer.in_features :] = layer.lora_B[name].weight * layer.scaling[name]


def _lora_forward(self: LoraLinear, x: Tensor) -> Tensor:
    if self.disable_adapters or self.merged:
        usual: Tensor = type(self).forward(self, x)
        return usual
    (name,) = self.active_adapters
    base: Any = self.get_base_layer()
    y: Tensor
    y, _ = lora_product(
        x.reshape(-1, x.shape[-1]),
        self.lora_A[name].weight,
        self.lora_B[name].weight,
        self._luthier_joined,
        base.bias,
        self.scaling[name],
    )
    return y.view(*x.shape[:-1], y.shape[-1])


def compile_layers(model: nn.Module) -> int:
    """Compiles the decoder's layers for training, and the small functions of ``compiled``; how many layers.

    All layers of a kind share the compiled code. Without a gradient, as in evaluation, layers run as they are: compiling
    them once more would not earn back its time.
    """
    layers = decoder_layers(model)
    for layer in layers:
        kind: Any = type(layer)  # hashable, whatever its instances are
        layer.forward = MethodType(_compiled_forward(kind), layer)
    if layers:
        # Otherwise the first layer alone, whose input has no gradient, would be compiled anew.
        first: Any = layers[0]
        first._luthier_hook = first.register_forward_pre_hook(_with_gradient)
        compiled.switch(True)
    return len(layers)


def _with_gradient(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    if arguments and torch.is_grad_enabled() and arguments[0].is_leaf:
        arguments[0].requires_grad_()


@functools.cache
def _compiled_forward(kind: type[nn.Module]) -> Callable[..., Any]:
    fast = torch.compile(kind.forward, dynamic=True)

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *arguments: Any, **others: Any) -> Any:
        chosen = fast if torch.is_grad_enabled() else kind.forward
        return chosen(self, *arguments, **others)

    forward._luthier = True  # type: ignore[attr-defined] # the mark by which unfuse knows it
    return forward


@contextmanager
def fused_lora(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """The adapter as one product while the model is asked; nothing may change its weights meanwhile."""
    if any(hasattr(layer, "_luthier_joined") for layer in model.modules()) or not fuse_lora(model):
        yield
        return
    decoder: Any = base_model(model).base_model
    decoder._luthier_hook.remove()
    _refresh(decoder, None)
    try:
        yield
    finally:
        unfuse_lora(model)


def unfuse(model: PreTrainedModel | PeftModel) -> None:
    """Takes all replacements away; the model computes by its own code again."""
    compiled.switch(False)
    unfuse_lora(model)
    for layer in model.modules():
        if hasattr(getattr(vars(layer).get("forward"), "__func__", None), "_luthier"):
            del layer.forward
        if hasattr(layer, "_luthier_hook"):
            hook: Any = layer._luthier_hook
            hook.remove()
            del layer._luthier_hook


def unfuse_lora(model: PreTrainedModel | PeftModel) -> None:
    """Takes the one product away from every LoRA layer."""
    for layer in model.modules():
        if isinstance(layer, LoraLinear) and hasattr(layer, "_luthier_joined"):
            base: Any = layer.get_base_layer()
            base.weight.data = base.weight.data.clone()
            del layer._luthier_joined, layer.forward
    decoder: Any = base_model(model).base_model
    if hasattr(decoder, "_luthier_hook"):
        decoder._luthier_hook.remove()
        del decoder._luthier_hook
