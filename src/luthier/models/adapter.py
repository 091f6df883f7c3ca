"""Adapters: made by the recipe, loaded with every tensor in its place, saved so that plain peft loads them.

A model in training has the adapter ``default``, which is trained, and perhaps a second one, ``held``, which is active
beside it and never changes: an earlier adapter that this one is stacked on, or the negative of first weights that were
taken out of the base. So the base model itself never changes, and both together are saved as one adapter of plain LoRA.
"""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.errors import UserError, one_line
from luthier.models.classifier import HEAD, head_of
from luthier.recipe import FROM_WEIGHTS, Adapter

TRAINED, HELD = "default", "held"
WEIGHTS = "adapter_model.safetensors"

_LINEAR = (nn.Linear, Conv1D)
_MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
_KEY = "recipe key model.adapter"
# What peft calls the ways to begin.
_INITS: dict[str, bool | str] = {
    "default": True,
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "olora": "olora",
    "pissa": "pissa",
    "pissa-fast": "pissa_niter_16",
}


def add_adapter(base: PreTrainedModel, adapter: Adapter, new_ids: list[int]) -> PeftModel:
    """A base model with a new adapter, to be trained.

    Args:
        base: As it came; its weights stay as they are, whatever ``adapter.init`` says.
        adapter: The recipe's settings.
        new_ids: Tokens whose embeddings are trained with it.

    Raises:
        UserError: Names or patterns that match nothing, layers that peft cannot adapt, or ranks that do not fit them.
    """
    if adapter.init in FROM_WEIGHTS and head_of(base) is not None:
        raise UserError(
            f"init={adapter.init} takes a second adapter that holds, beside which peft trains no head",
            f"{_KEY}.init",
            "set model.adapter.init=default",
        )
    with _made():
        model = get_peft_model(base, lora_config(base, adapter, new_ids))
    _check_patterns(model, adapter)
    if adapter.init in FROM_WEIGHTS:
        _begin_from_weights(model, adapter)
    return model


def stack_adapter(model: PeftModel, adapter: Adapter) -> PeftModel:
    """A new adapter, to be trained, beside the one that a model has, which is held from now on.

    Raises:
        UserError: As ``add_adapter``; or the old adapter is more than two matrices a layer.
    """
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    if others := sorted(key for key in saved if not re.search(r"\.lora_[AB]\.weight$", key)):
        raise UserError(
            f"only plain LoRA can be stacked on; the earlier adapter holds {len(others)} other tensors, first {others[0]}",
            "recipe key model.start_from",
            "set model.start_mode=merge",
        )
    old: Any = model.peft_config[TRAINED]
    old.inference_mode, old.lora_dropout = False, 0.0
    tensors = {f"{key.removesuffix('.weight')}.{HELD}.weight": value for key, value in saved.items()}
    new = add_adapter(model.unload(), adapter, [])
    with _made():
        new.add_adapter(HELD, old)
    parameters = dict(new.named_parameters())
    with torch.no_grad():
        for key, value in tensors.items():
            parameters[key].copy_(value)
    return _hold(new)


def with_adapter(
    base: PreTrainedModel | PeftModel, adapter: Path, *, dropout: float = 0.0, trained: bool = False
) -> PeftModel:
    """A base model with a saved adapter, every tensor of which is proven to have found its place.

    Args:
        base: Its base model.
        adapter: The folder.
        dropout: In training.
        trained: Whether to train it on.

    Raises:
        UserError: The adapter is damaged, or made for another model.
    """
    where, fix = str(adapter), "name the model that the adapter was trained on, or train it again"
    try:
        config = LoraConfig.from_pretrained(str(adapter))
        config.lora_dropout, config.inference_mode = dropout, not trained
        with safe_open(adapter / WEIGHTS, "pt") as file:
            saved = set(file.keys())
        with quiet_peft(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # named below
            model = PeftModel.from_pretrained(base, str(adapter), is_trainable=trained, config=config)
    except Exception as error:  # peft raises anything at all over damaged files
        raise UserError(f"the adapter cannot be loaded: {one_line(error)}", where, fix) from error
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if wrong := sorted(saved ^ wanted):
        raise UserError(
            f"{len(saved - wanted)} tensors of the adapter fit nothing in the model and {len(wanted - saved)} are "
            f"lacking, first {wrong[0]}",
            where,
            fix,
        )
    return model.eval()


def save_adapter(
    model: PeftModel, folder: Path, base_name: str, state: dict[str, Tensor] | None = None
) -> None:
    """Writes what plain peft loads around the base model as it came: one adapter, all parts of it together.

    New tokens are in it as rows of the embedding. ``state`` holds the tensors where the model has shards of them.
    """
    config: Any = copy.copy(model.peft_config[TRAINED])
    config.base_model_name_or_path, config.inference_mode = base_name, True
    if HELD in model.peft_config:
        config, tensors = _joined(model, config)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(folder)
        return
    before, model.peft_config[TRAINED] = model.peft_config[TRAINED], config
    try:
        # "auto" would add the whole embedding to new rows that are saved already.
        model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=state)
    finally:
        model.peft_config[TRAINED] = before
    (folder / "README.md").unlink(missing_ok=True)  # peft's template, with nothing filled in


def lora_config(model: PreTrainedModel, adapter: Adapter, new_ids: list[int]) -> LoraConfig:
    """What the recipe's settings are called in peft."""
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    if adapter.targets != "all-linear":
        _check_targets(model, adapter.targets, tied)
    tokens: dict[str, list[int]] | None = None
    if new_ids:
        # Of a tied pair peft wraps the other one by itself.
        trained = [model.get_input_embeddings(), *([] if tied or head is None else [head])]
        tokens = {
            name.rpartition(".")[2]: new_ids
            for name, m in model.named_modules()
            if any(m is t for t in trained)
        }
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type] # any number will do
        rank_pattern=dict(adapter.rank_pattern),
        alpha_pattern=dict(adapter.alpha_pattern),
        use_rslora=adapter.variant == "rslora",
        use_dora=adapter.variant == "dora",
        init_lora_weights=True if adapter.init in FROM_WEIGHTS else _INITS[adapter.init],  # type: ignore[arg-type] # one of peft's names
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets,
        exclude_modules=(_unused(model) or None) if adapter.targets == "all-linear" else None,
        task_type=TaskType.CAUSAL_LM if head_of(model) is None else TaskType.SEQ_CLS,
        modules_to_save=None if head_of(model) is None else [HEAD],
        trainable_token_indices=tokens,
    )


def lora_layers(model: PeftModel) -> dict[str, Any]:
    """The adapted linear layers by name, as they are called in the base model."""
    return {
        name: layer
        for name, layer in model.get_base_model().named_modules()
        if isinstance(layer, LoraLayer) and len(layer.lora_A)
    }


def target_names(base: PreTrainedModel, adapter: Adapter) -> set[str]:
    """Names of the layers that these settings adapt, in a base model without adapters."""
    linear = {name for name, module in base.named_modules() if isinstance(module, _LINEAR)}
    if adapter.targets != "all-linear":
        return {name for name in linear if any(_is_called(name, target) for target in adapter.targets)}
    ends = (base.get_output_embeddings(), getattr(base, HEAD, None))
    head = {name for name, module in base.named_modules() if any(module is end for end in ends)}
    return {name for name in linear - head if name.rpartition(".")[2] not in _unused(base)}


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _unused(base: PreTrainedModel) -> list[str]:
    """Layers whose weights the model's code reads past any adapter, which would never be used."""
    return ["out_proj", "dt_proj"] if base.config.model_type in _MAMBA else []


def _begin_from_weights(model: PeftModel, adapter: Adapter) -> None:
    """Fills the adapter with a part of the base weights, which a held one takes off again: ``W + s (B A - B0 A0)``.

    The same function as peft's, which takes the part out of the weights themselves: what is left would be rounded anew
    in bf16 or 4 bits, and the result would need a base model of its own.

    Source: PiSSA, Meng et al. 2024, arXiv:2404.02948, eqs. 2-5; OLoRA, Büyükakyüz 2024, arXiv:2406.01775.
    """
    layers = lora_layers(model)
    for name, layer in layers.items():
        base: Any = layer.get_base_layer()
        rank, most = layer.r[TRAINED], min(layer.in_features, layer.out_features)
        if rank > most:
            raise UserError(
                f"init={adapter.init} takes {rank} directions out of {name}, which has {most}",
                f"{_KEY}.rank",
                f"set a rank of at most {most}, or give that layer its own in model.adapter.rank_pattern",
            )
        if adapter.init == "olora" and isinstance(base, Conv1D):
            raise UserError(
                f"{name} holds its weights transposed, for which peft has no OLoRA",
                f"{_KEY}.init",
                "set model.adapter.init=pissa",
            )
        weight = base.weight
        base.weight = nn.Parameter(dequantize_module_weight(base).detach().float().clone(), False)
        try:
            if adapter.init == "olora":
                layer.olora_init(TRAINED)
            else:
                layer.pissa_init(TRAINED, _INITS[adapter.init])
        finally:
            base.weight = weight
    config: Any = copy.copy(model.peft_config[TRAINED])
    config.trainable_token_indices, config.lora_dropout = None, 0.0
    with _made():
        model.add_adapter(HELD, config)
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_A[HELD].weight.copy_(layer.lora_A[TRAINED].weight)
            layer.lora_B[HELD].weight.copy_(-layer.lora_B[TRAINED].weight)
    _hold(model)


def _hold(model: PeftModel) -> PeftModel:
    """Makes both adapters active, and the held one untrained for good: peft switches all active ones on now and then."""
    for layer in lora_layers(model).values():
        layer.frozen_peft_weight_names = {**layer.frozen_peft_weight_names, HELD: ("lora_A", "lora_B")}
    tuner: Any = model.base_model
    tuner.set_adapter([TRAINED, HELD])
    return model


def _joined(model: PeftModel, config: Any) -> tuple[Any, dict[str, Tensor]]:
    """Trained and held adapter as one: ``[s1 B1, s2 B2] [A1; A2]``, with a scale of 1."""
    saved = get_peft_model_state_dict(model, adapter_name=TRAINED, save_embedding_layers=False)
    tensors = {key: value for key, value in saved.items() if ".lora_" not in key}
    ranks: dict[str, int] = {}
    for name, layer in lora_layers(model).items():
        parts = [part for part in (TRAINED, HELD) if part in layer.lora_A]
        down = torch.cat([layer.lora_A[part].weight.detach() for part in parts], 0)
        up = torch.cat([layer.lora_B[part].weight.detach() * layer.scaling[part] for part in parts], 1)
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.contiguous()
        ranks[name] = len(down)
    usual = Counter(ranks.values()).most_common(1)[0][0]
    other = {re.escape(name): rank for name, rank in ranks.items() if rank != usual}
    config.r = config.lora_alpha = usual
    config.rank_pattern, config.alpha_pattern = other, dict(other)
    config.use_rslora, config.init_lora_weights, config.lora_dropout = False, True, 0.0
    held: Any = model.peft_config[HELD]
    if config.target_modules != held.target_modules:
        config.target_modules, config.exclude_modules = set(ranks), None
    return config, tensors


def _check_targets(model: PreTrainedModel, targets: list[str], tied: bool) -> None:
    """Every entry must match: peft complains only if none of them does."""
    where = f"{_KEY}.targets"
    linear = {name: module for name, module in model.named_modules() if isinstance(module, _LINEAR)}
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    if not targets:
        raise UserError("the adapter has no targets", where, f"all-linear, or some of: {', '.join(kinds)}")
    for target in targets:
        matches = [module for name, module in linear.items() if _is_called(name, target)]
        if not matches:
            near = difflib.get_close_matches(target, kinds, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"linear layers of this model: {', '.join(kinds)}"
            raise UserError(f"the adapter target {target!r} matches no linear layer", where, fix)
        if tied and any(module is model.get_output_embeddings() for module in matches):
            raise UserError(
                f"{target!r} is the output head, which shares its weights with the embedding: merging would change both",
                where,
                "leave it out, or train the whole model with model.adapter=null",
            )


def _check_patterns(model: PeftModel, adapter: Adapter) -> None:
    """Every pattern must decide about some layer: peft takes no notice of others."""
    names = list(lora_layers(model))
    for key in ("rank_pattern", "alpha_pattern"):
        patterns: dict[str, float] = getattr(adapter, key)
        # peft's own reading of patterns, which gives back the name where none matches.
        used = {get_pattern_key(list(patterns), name) for name in names} if patterns else set()
        if unused := [pattern for pattern in patterns if pattern not in used]:
            raise UserError(
                f"{unused[0]!r} decides about no adapted layer",
                f"{_KEY}.{key}",
                f"patterns match the end of a name, such as {names[-1]}, and the first that matches counts",
            )


@contextmanager
def _made() -> Iterator[None]:
    """What peft cannot make becomes an error that says so."""
    try:
        with quiet_peft():
            yield
    except (ValueError, re.error) as error:
        raise UserError(
            f"the adapter cannot be made: {one_line(error)}",
            _KEY,
            "name other layers in model.adapter.targets",
        ) from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without what peft 0.21 warns of that is dealt with here, or is no matter."""
    with warnings.catch_warnings():
        for message in (
            "`is_gradient_checkpointing` is deprecated",  # with transformers 5.23
            "Using Rank-Stabilized LoRA with rank_pattern",  # what it cannot convert at saving: it is not asked to
            "The following (rank|alpha)_pattern keys did not match",  # an error here
            "fan_in_fan_out is set to False",  # it then sets it as it must be
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
