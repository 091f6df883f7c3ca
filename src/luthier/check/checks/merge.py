from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor
from torch.nn import functional

from luthier.check.as_before import evaluating, unchanged
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.check.model_rows import distance, most_distance, real_logits, too_far
from luthier.check.steps import fill_zeros, said, step_rows
from luthier.models.forward import base_model
from luthier.records import Finding, Row
from luthier.registry import check

NUM_ROWS = 4
MAX_TOKENS = 64
# Weights that are merged, and kept beside for that: all of a small model, some layers of a large one.
MOST_BYTES = 2**30
# An update of which half is rounded away is no longer the one that was trained.
MOST_LOST = 0.5
# A trained adapter's B: some hundredths at most.
MOST_NOISE = 0.05


_BITSANDBYTES = ("Params4bit", "Int8Params")


@dataclass(frozen=True, slots=True)
class Merged:
    """What merging changes.

    Attributes:
        far: Distance of the merged model's logits from the adapter's (root mean square by their spread).
        kl: Mean divergence of the merged model from base with adapter, in nats.
        adapter_kl: The same of the base alone: what the adapter changes at all.
        agreement: Share of tokens (or rows) at which both find the same one most likely.
        lost: Share of the adapter's weight update that is not in the merged weights.
        num: Tokens or rows compared.
        layers: Layers merged.
    """

    far: float
    kl: float
    adapter_kl: float
    agreement: float
    lost: float
    num: int
    layers: int


@check("merge")
def merge(context: CheckContext) -> Iterator[Finding]:
    """The adapter merged into its base model says the same as both together.

    What it does: gives an untrained adapter weights of the size that the planned steps would make, merges its layers (up
    to 1 GiB of them) in the base model's number format, and compares the logits of 4 training rows before and after: to
    0.1% of their spread in fp32, 10% in bf16. It measures the share of the update that is rounded away. Divergence and
    agreement are reported in any case. All weights are put back bit by bit.

    Weights in 4 or 8 bits (bitsandbytes) are merged as peft does it, which rounds them anew: how far that goes is a warning.

    Why is this bad: what is published is the merged model. In bf16 an update of 1e-4 of a weight is rounded away, and the
    merged model is the base model again; in 4 bits most updates are.

    Example: ``merge_and_unload()`` of an adapter that was trained at a learning rate of 1e-6 into a base in bf16.

    Fix: load the base model in fp32 to merge, and save it in fp32 (``luthier merge`` does both); dequantise a quantised one
    first (``luthier merge`` does); untie embeddings before an adapter changes one of them.

    Catalogue: 60, 66, 67
    """
    model = context.model
    if not isinstance(model, PeftModel):
        raise Skip("the model has no adapter")
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer) and hasattr(m, "merge")]
    if not layers or any(config.is_prompt_learning for config in model.peft_config.values()):
        raise Skip("this kind of adapter cannot be merged")
    base = base_model(model)
    quantised = [p for p in base.parameters() if not p.is_floating_point()]
    if any(type(p).__name__ not in _BITSANDBYTES for p in quantised):
        raise Skip("the base model is quantised in a way that merging cannot be tried in")
    if isinstance(context, RunContext) and (quantised or not context.is_exact):
        raise Skip(
            "`luthier merge` merges in fp32 (what is quantised it dequantises first) and proves its result"
        )
    rows = step_rows(context, NUM_ROWS, MAX_TOKENS)
    with unchanged(model), evaluating(model):
        fill_zeros(model, _noise(context))
        found = _merged(context, model, layers, [row.row for row in rows])
    context.looked_at(
        f"{found.layers} of {len(layers)} layers merged, {said(rows)}: {found.kl:.2g} nats apart (the adapter itself changes "
        f"{found.adapter_kl:.2g}), the most likely is the same for {found.agreement:.1%} of {found.num}"
    )
    yield from _requantised(context, found) if quantised else _judged(context, model, found)


def _noise(context: CheckContext) -> float:
    """About the size of an adapter's B after the planned steps: between a random walk and steps in one direction."""
    try:
        plan = context.training.plan
    except Skip:
        return MOST_NOISE / 10
    rates = plan.learning_rates
    mean = sum(rates) / max(1, len(rates))
    return float(min(MOST_NOISE, max(1e-8, mean * max(1, len(rates)) ** 0.75)))


def _requantised(context: CheckContext, found: Merged) -> Iterator[Finding]:
    """What merging into a quantised base loses."""
    if found.far <= most_distance(context) and found.lost <= MOST_LOST:
        return
    yield Finding(
        "merge",
        "warning",
        f"merged into its quantised base, the model is {found.kl:.2g} nats away from base and adapter (the adapter itself "
        f"changes {found.adapter_kl:.2g}): rounding the weights anew makes an error of {found.lost:.0%} of the update",
        f"model {context.model_name}, quantised",
        "dequantise the base model first (model.dequantize(torch.float32)), merge, and save in fp32; or use base and adapter together",
        measured=round(found.lost, 2),
        expected=f"at most {MOST_LOST}",
    )


def _judged(context: CheckContext, model: PeftModel, found: Merged) -> Iterator[Finding]:
    dtype = str(next(base_model(model).parameters()).dtype).removeprefix("torch.")
    if not found.far <= most_distance(context):
        yield too_far(
            context,
            "merge",
            found.far,
            f"merged, the model's logits are {found.far:.4f} of their spread away from those with the adapter ({found.kl:.2g} nats; "
            f"the most likely is the same for {found.agreement:.1%})"
            + (
                ": output head and embedding share their weights, and merging changes both"
                if _tied(model)
                else ""
            ),
            "use base and adapter together with peft, or merge in fp32 and compare",
            f"model {context.model_name}, adapter in {dtype}",
        )
    elif found.lost > MOST_LOST:
        yield Finding(
            "merge",
            "warning",
            f"merging into {dtype} would round away {found.lost:.0%} of the update that these learning rates make",
            f"model {context.model_name} in {dtype}",
            "load the base model with dtype=torch.float32 to merge, and save it so; or use base and adapter together",
            measured=round(found.lost, 2),
            expected=f"at most {MOST_LOST}",
        )


def _tied(model: PeftModel) -> bool:
    """Whether a layer that would be merged shares its weight with another one."""
    base: Any = base_model(model)
    pair = [base.get_input_embeddings(), base.get_output_embeddings()]
    weights = [getattr(getattr(m, "base_layer", m), "weight", None) for m in pair]
    shared = weights[0] is not None and weights[0] is weights[1]
    return shared and any(isinstance(m, BaseTunerLayer) for m in pair)


def _merged(context: CheckContext, model: PeftModel, layers: Sequence[Any], rows: Sequence[Row]) -> Merged:
    chosen = _some(layers)
    both = real_logits(context, rows)
    with model.disable_adapter():
        alone = real_logits(context, rows)
    deltas = error = total = 0.0
    with _weights_as_before(chosen):
        for layer in chosen:
            before, delta = _weight(layer), _delta(layer)
            layer.merge(safe_merge=False)
            if delta is not None and delta.shape == before.shape:
                deltas += float(delta.square().sum())
                error += float((_weight(layer) - before - delta).square().sum())
                total += float(before.square().sum())
        merged = real_logits(context, rows)
    return Merged(
        far=distance(both, merged),
        kl=_kl(both, merged),
        adapter_kl=_kl(both, alone),
        agreement=float((both.argmax(-1) == merged.argmax(-1)).double().mean()),
        # Parts of an adapter that cancel each other leave the last digits of fp32, of which nothing can be lost.
        lost=(error / deltas) ** 0.5 if deltas > 1e-13 * total else 0.0,
        num=len(both),
        layers=len(chosen),
    )


def _some(layers: Sequence[Any]) -> list[Any]:
    """Layers spread over the model whose weights stay under the limit together."""
    sizes = [
        sum(p.numel() * p.element_size() for p in layer.get_base_layer().parameters()) for layer in layers
    ]
    every = max(1, -(-sum(sizes) // MOST_BYTES))
    return list(layers[::every])


def _weight(layer: Any) -> Tensor:
    """A copy of a layer's own weight, float64, dequantised if need be."""
    weight: Tensor = dequantize_module_weight(layer.get_base_layer()).detach()
    return weight.to(torch.float64, copy=True)


def _delta(layer: Any) -> Tensor | None:
    """What an adapter adds to a layer's weight, float64; None where peft cannot say."""
    total: Tensor | None = None
    for adapter in layer.active_adapters:
        if adapter not in getattr(layer, "lora_A", {}) or getattr(layer, "use_dora", {}).get(adapter):
            return None
        part = layer.get_delta_weight(adapter).double()
        total = part if total is None else total + part
    return total


@contextmanager
def _weights_as_before(layers: Sequence[Any]) -> Iterator[None]:
    """Room for merging; base weights have their bits, and layers are unmerged, afterwards."""
    before = [{p: p.detach().clone() for p in layer.get_base_layer().parameters()} for layer in layers]
    data = [{p: p.data for p in values} for values in before]
    merged = [list(layer.merged_adapters) for layer in layers]
    caches = [dict(getattr(layer, "_caches", {})) for layer in layers]
    # bitsandbytes' parameters: merging puts new ones in their place, and changes what the old ones know of themselves.
    own = [dict(layer.get_base_layer().named_parameters(recurse=False)) for layer in layers]
    known = [{p: dict(vars(p)) for p in values} for values in before]
    states = [getattr(layer.get_base_layer(), "quant_state", None) for layer in layers]
    try:
        yield
    finally:
        for layer, values, tensors, names, cache in zip(layers, before, data, merged, caches, strict=True):
            for parameter, value in values.items():
                parameter.data = tensors[parameter]  # some merges put another tensor in its place
                parameter.data.copy_(value)
            layer.merged_adapters[:] = names
            if hasattr(layer, "_caches"):
                layer._caches.clear()
                layer._caches.update(cache)
        for layer, parameters, facts, state in zip(layers, own, known, states, strict=True):
            base = layer.get_base_layer()
            for name, parameter in parameters.items():
                setattr(base, name, parameter)
            for parameter, values in facts.items():
                vars(parameter).clear()
                vars(parameter).update(values)
            if state is not None:
                base.quant_state = state


def _kl(p_NV: Tensor, q_NV: Tensor) -> float:
    """Mean divergence of q from p, in nats."""
    p_NV, q_NV = functional.log_softmax(p_NV.double(), -1), functional.log_softmax(q_NV.double(), -1)
    return max(0.0, float((p_NV.exp() * (p_NV - q_NV)).sum(-1).mean()))
