from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from luthier.check.context import CheckContext, Skip
from luthier.check.origin import plain_name
from luthier.models.forward import base_model
from luthier.records import Finding
from luthier.registry import check

# Names of classification heads in transformers' models.
HEADS = ("score", "classifier", "classification_head", "qa_outputs")
SHOWN = 6


@check("adapter-targets")
def adapter_targets(context: CheckContext) -> Iterator[Finding]:
    """Each entry of an adapter's target modules matches, in each layer that has such a module, and what it adds is trained.

    What it does: matches every entry of ``target_modules`` and ``modules_to_save`` against the model's modules; counts,
    for each kind of module, the layers that got the adapter and those that have one; and looks whether the adapter's
    parameters are trainable.

    Why is this bad: peft complains only if nothing matches at all. An entry with no match trains less than was asked for;
    a pattern for the digits 0-9 leaves out layers 10 and up.

    Example: ``target_modules=["q_proj", "v_proj", "gate_proj"]`` for a model whose MLP is one ``fc1``.

    Fix: ``target_modules="all-linear"``, or the names that the finding lists; ``is_trainable=True``.

    Catalogue: 61, 62, 69
    """
    model = context.model
    if not isinstance(model, PeftModel):
        raise Skip("the model has no adapter")
    modules = dict(base_model(model).named_modules())
    original = _original_names(modules)
    for adapter in model.active_adapters:
        config: Any = model.peft_config[adapter]
        if config.is_prompt_learning or _is_held(modules.values(), adapter):
            continue
        adapted = {plain_name(n) for n, m in modules.items() if isinstance(m, BaseTunerLayer)}
        context.looked_at(f"{len(adapted)} of {len(original)} modules have adapter {adapter}")
        kept = {plain_name(n) for n, m in modules.items() if isinstance(m, ModulesToSaveWrapper)}
        yield from _entries(context, config, original, adapted, kept)
        yield from _layers(context, config, original, adapted)
        yield from _trainable(context, adapter, config)


def _is_held(modules: Iterable[nn.Module], adapter: str) -> bool:
    """Whether peft is told to keep all of an adapter as it is, beside one that is trained."""
    kept = [getattr(m, "frozen_peft_weight_names", {}).get(adapter, ()) for m in modules]
    return any({"lora_A", "lora_B"} <= set(names) for names in kept)


def _original_names(modules: Mapping[str, nn.Module]) -> set[str]:
    """Names of the modules that the model had before, without those inside of adapters."""
    inside = re.compile(r"\.(lora_|modules_to_save|token_adapter|ia3_|vera_|original_module|base_layer)")
    return {name for name in modules if name and not inside.search(name)}


def _matches(name: str, entry: str) -> bool:
    return name == entry or name.endswith(f".{entry}")


def _entries(
    context: CheckContext, config: Any, original: set[str], adapted: set[str], kept: set[str]
) -> Iterator[Finding]:
    """Entries that match nothing."""
    targets = getattr(config, "target_modules", None)
    saved = list(getattr(config, "modules_to_save", None) or [])
    if any(_matches(name, head) for name in kept for head in HEADS):
        saved = [
            e for e in saved if e not in HEADS
        ]  # a task adds all names that a head may have, of which a model has one
    asked = {"modules_to_save": (saved, kept)}
    if targets and not isinstance(targets, str):
        # peft writes "all-linear" out as full names, those among them that are excluded as well.
        excluded = getattr(config, "exclude_modules", None) or []
        short = [] if isinstance(excluded, str) else excluded
        entries = [e for e in sorted(targets) if "." not in e or not any(_matches(e, name) for name in short)]
        asked["target_modules"] = (entries, adapted)
    for setting, (entries, names) in asked.items():
        counts = {entry: sum(_matches(name, entry) for name in names) for entry in entries}
        dead = [entry for entry, count in counts.items() if not count]
        if not dead:
            continue
        kinds = sorted(
            {name.rpartition(".")[2] for name in original if not name.rpartition(".")[2].isdigit()}
        )
        there = [entry for entry in dead if any(_matches(name, entry) for name in original)]
        why = (
            "" if not there else f" ({', '.join(there)}: the model has some, which are excluded or left out)"
        )
        yield Finding(
            "adapter-targets",
            "error",
            f"{len(dead)} of {len(entries)} entries of {setting} match 0 modules: {', '.join(dead)}{why}; the others match "
            + (", ".join(f"{entry} {count}" for entry, count in counts.items() if count) or "none"),
            context.fix("recipe key model.adapter.targets", f"LoraConfig({setting}=...)"),
            f"all-linear, or names that this model has: {', '.join(kinds[:20])}",
            measured=len(dead),
            expected=0,
        )


def _layers(context: CheckContext, config: Any, original: set[str], adapted: set[str]) -> Iterator[Finding]:
    """Kinds of modules that have the adapter in some layers and not in others, unless that was asked for."""
    if getattr(config, "layers_to_transform", None) is not None or getattr(config, "exclude_modules", None):
        return
    there: dict[tuple[str, str], set[int]] = {}
    done: dict[tuple[str, str], set[int]] = {}
    for name in original:
        if not (match := re.match(r"(.*?\.|)(\d+)\.(.*)$", name)):
            continue
        kind = (match[1], match[3])
        there.setdefault(kind, set()).add(int(match[2]))
        if name in adapted:
            done.setdefault(kind, set()).add(int(match[2]))
    partly = {kind: sorted(there[kind] - layers) for kind, layers in done.items() if there[kind] - layers}
    if not partly:
        return
    worst = max(partly, key=lambda kind: len(partly[kind]))
    lacking, total = partly[worst], len(there[worst])
    shown = ", ".join(map(str, lacking[:SHOWN])) + (" ..." if len(lacking) > SHOWN else "")
    names = ", ".join(kind[1].rpartition(".")[2] for kind in list(partly)[:SHOWN])
    yield Finding(
        "adapter-targets",
        "warning",
        f"{len(lacking)} of {total} layers have no adapter at {names}: layers {shown}, while the others have one",
        context.fix(
            "recipe key model.adapter.targets", f"LoraConfig(target_modules={config.target_modules!r})"
        ),
        "a pattern that matches all layers; layers_to_transform if only these are meant",
        measured=len(lacking),
        expected=0,
    )


def _trainable(context: CheckContext, adapter: str, config: Any) -> Iterator[Finding]:
    """An adapter whose own parameters are all frozen; some kinds of adapter train only a part of theirs."""
    own = [p for n, p in context.model.named_parameters() if re.search(rf"\.{re.escape(adapter)}(\.|$)", n)]
    if not own or any(p.requires_grad for p in own):
        return
    loaded = getattr(config, "inference_mode", False)
    yield Finding(
        "adapter-targets",
        "error",
        f"0 of {len(own)} parameters of adapter {adapter} are trainable"
        + (": it was loaded for inference" if loaded else ""),
        f"adapter {adapter}",
        "PeftModel.from_pretrained(..., is_trainable=True)"
        if loaded
        else "requires_grad_(True) for those that are frozen",
        measured=0,
        expected=len(own),
    )
