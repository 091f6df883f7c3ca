from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import PeftModel
from torch import Tensor, nn

from luthier.check.context import CheckContext, Skip
from luthier.models.forward import base_model
from luthier.records import Finding
from luthier.registry import check


@check("tied-embeddings")
def tied_embeddings(context: CheckContext) -> Iterator[Finding]:
    """Input and output embedding are one matrix if and only if the config says so, and no adapter pulls them apart.

    What it does: compares ``config.tie_word_embeddings`` with whether both are one tensor; and in a model that ties them
    looks for an adapter, or a copy in ``modules_to_save``, on one of the two.

    Why is this bad: saving and loading goes by the config. Shared tensors under a config that does not tie them are saved
    once, and the head comes back random; different tensors under one that does may come back as one. Merging an adapter
    of the head changes the embedding too, which nothing was trained for.

    Example: ``target_modules=["q_proj", "lm_head"]`` for a model of the size that ties its embeddings.

    Fix: leave embedding and head out of the adapter; or untie: give the head a copy of the matrix and set
    ``config.tie_word_embeddings=False`` before the adapter is added.

    Catalogue: 60, 62
    """
    base = base_model(context.model)
    layers = {"embedding": base.get_input_embeddings(), "head": base.get_output_embeddings()}
    if any(layer is None for layer in layers.values()):
        raise Skip("the model has no output embedding")
    first, second = (_matrix(layer) for layer in layers.values())
    if first is None or second is None or first.shape != second.shape:
        raise Skip("its embeddings are of different shapes, so that they cannot be tied")
    context.looked_at("2 embeddings")
    says = bool(getattr(base.config.get_text_config(), "tie_word_embeddings", False))
    is_one = first is second or (first.data_ptr() == second.data_ptr() and not first.is_meta)
    where = "config.tie_word_embeddings"
    if is_one and not says:
        yield Finding(
            "tied-embeddings",
            "error",
            "embedding and head are 1 tensor, but config.tie_word_embeddings is False: it is saved once, and the head "
            "is random after loading",
            where,
            "set config.tie_word_embeddings=True, or give the head a copy: head.weight = Parameter(weight.clone())",
            measured=1,
            expected=2,
        )
    elif says and not is_one:
        apart = _apart(first, second)
        yield Finding(
            "tied-embeddings",
            "warning",
            "config.tie_word_embeddings is True, but embedding and head are 2 tensors, "
            f"{apart:.3g} of their size apart: what loads the result may make them one",
            where,
            "set config.tie_word_embeddings=False, or call model.tie_weights()",
            measured=2,
            expected=1,
        )
    if says and isinstance(context.model, PeftModel):
        yield from _adapted(layers)


def _adapted(layers: dict[str, nn.Module]) -> Iterator[Finding]:
    adapted = {role for role, layer in layers.items() if _has(layer, "lora_")}
    copied = {role for role, layer in layers.items() if _has(layer, "modules_to_save")}
    if adapted:
        roles = " and ".join(sorted(adapted))
        yield Finding(
            "tied-embeddings",
            "warning",
            f"the adapter has {len(adapted)} of 2 tied embeddings among its targets ({roles}): merging it changes both, "
            "so that the merged model is another than the one trained",
            "LoraConfig.target_modules",
            "leave embed_tokens and lm_head out, or untie them first (a copy, and config.tie_word_embeddings=False)",
            measured=len(adapted),
            expected=0,
        )
    if len(copied) == 1:
        yield Finding(
            "tied-embeddings",
            "note",
            f"modules_to_save has 1 of 2 tied embeddings ({next(iter(copied))}): the other one stays as it was, and a merged "
            "model must be saved untied",
            "LoraConfig.modules_to_save",
            "set LoraConfig.ensure_weight_tying=True to train both as one, or leave it out",
            measured=1,
            expected="0 or 2",
        )


def _has(layer: nn.Module, part: str) -> bool:
    return any(part in name for name, _ in layer.named_parameters())


def _matrix(layer: nn.Module) -> Tensor | None:
    """The matrix itself, inside what peft puts around it."""
    inner = getattr(layer, "original_module", layer)
    if hasattr(inner, "token_adapter"):
        inner = inner.token_adapter
    inner = getattr(inner, "base_layer", inner)
    weight = getattr(inner, "weight", None)
    return weight if isinstance(weight, Tensor) else None


@torch.no_grad()
def _apart(first: Tensor, second: Tensor) -> float:
    """Size of the difference, relative to the first one's."""
    if first.is_meta or second.is_meta:
        return float("nan")
    return float((first - second).float().norm() / first.float().norm().clamp(min=1e-12))
