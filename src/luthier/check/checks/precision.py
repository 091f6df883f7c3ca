from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from luthier.check.as_before import evaluating
from luthier.check.context import CheckContext, Skip, shown
from luthier.check.model_rows import batch_of, inputs_of, short_rows, watching
from luthier.check.origin import is_added, plain_name
from luthier.check.trainer import TrainerContext
from luthier.models.forward import base_model
from luthier.records import Finding
from luthier.registry import check

NUM_ROWS = 2
MAX_TOKENS = 64
# Largest number that fp16 holds, and the part of it that other rows and trained weights may well add.
LARGEST = 65504.0
HEADROOM = 16
# Numbers of a parameter that are looked at, spread over all of it.
MOST_NUMBERS = 100_000


@check("precision")
def precision(context: CheckContext) -> Iterator[Finding]:
    """What is trained is kept in fp32, one kind of layer in one number format, and no number is too large for fp16.

    What it does: reads the number formats of all parameters and the training's own settings. For parameters trained in
    bf16 it says which share of them a step of the learning rate would not change. If the training computes in fp16, it
    measures the largest output of any layer over 2 training rows (cut to 64 tokens each).

    Why is this bad: in bf16 a weight of 0.02 has neighbours 0.0001 apart, and a smaller step is rounded away. In fp16
    Adam's epsilon of 1e-8 is zero, and small gradients too; outputs of models made in bf16 may be larger than it holds.
    Layers in another format than their siblings are mostly left over from a load that went wrong.

    Example: ``from_pretrained(..., dtype="auto")`` and ``bf16=True``, which does not make a copy in fp32; fp16 training of
    a bf16 model, whose scaler skips step after step.

    Fix: ``model.float()`` before training with ``bf16=True``; bf16 in place of fp16; for one layer ``layer.to(dtype)``.

    Catalogue: 72, 73
    """
    plan = context.training.plan  # rows and a model alone are trained by nobody
    named = {n: p for n, p in context.model.named_parameters() if p.is_floating_point() and not p.is_meta}
    context.looked_at(f"{len(named):,} parameters")
    args = context.trainer.args if isinstance(context, TrainerContext) else None
    yield from _trained(context, named, plan.peak_learning_rate)
    yield from _mixed(context, named)
    computes_fp16 = bool(args is not None and args.fp16) or any(
        p.dtype == torch.float16 for p in named.values()
    )
    if computes_fp16:
        yield from _range(context)


def _trained(context: CheckContext, named: Mapping[str, Tensor], learning_rate: float) -> Iterator[Finding]:
    trained = {n: p for n, p in named.items() if p.requires_grad}
    half = [n for n, p in trained.items() if p.dtype == torch.float16]
    brain = [n for n, p in trained.items() if p.dtype == torch.bfloat16]
    fix = "load the model with dtype=torch.float32 (or call model.float()) and train with bf16=True"
    if half:
        yield Finding(
            "precision",
            "error",
            f"{len(half)} of {len(trained)} trained parameters are kept in fp16 ({shown(half)}): Adam's epsilon of 1e-8 is 0 "
            "in it, and weights become infinite or NaN",
            f"model {context.model_name}",
            fix,
            measured=len(half),
            expected=0,
        )
    if brain:
        kept = _share_kept([trained[n] for n in brain], learning_rate)
        flag = context.trainer.args.bf16 if isinstance(context, TrainerContext) else False
        yield Finding(
            "precision",
            "note",
            f"{len(brain)} of {len(trained)} trained parameters are kept in bf16 ({shown(brain)}): a step of "
            f"{learning_rate:.3g} leaves {kept:.0%} of their numbers as they are"
            + ("; TrainingArguments.bf16 makes no copy of them in fp32" if flag else ""),
            f"model {context.model_name}",
            fix,
            measured=len(brain),
            expected=0,
        )


@torch.no_grad()
def _share_kept(parameters: list[Tensor], learning_rate: float) -> float:
    """Share of the numbers that adding or subtracting the learning rate rounds back to what they were."""
    kept, count = 0.0, 0
    for parameter in parameters:
        numbers = parameter.detach().flatten()
        numbers = numbers[:: max(1, len(numbers) // MOST_NUMBERS)]
        weight = parameter.numel() / max(1, len(numbers))
        same = (numbers + learning_rate == numbers) & (numbers - learning_rate == numbers)
        kept += float(same.sum()) * weight
        count += parameter.numel()
    return kept / max(1, count)


def _mixed(context: CheckContext, named: Mapping[str, Tensor]) -> Iterator[Finding]:
    """The same weights of different layers in different formats, and formats that cannot be multiplied."""
    kinds: dict[tuple[str, bool], dict[torch.dtype, list[str]]] = {}
    for name, p in named.items():
        key = (re.sub(r"\.\d+\.", ".*.", name), p.requires_grad)
        kinds.setdefault(key, {}).setdefault(p.dtype, []).append(name)
    odd: dict[str, str] = {}
    for formats in kinds.values():
        usual = max(formats, key=lambda kind: len(formats[kind]))
        for kind, names in formats.items():
            if kind != usual:
                odd |= {plain_name(n): f"{_short(kind)}, the others {_short(usual)}" for n in names}
    if odd:
        names = [f"{name} ({how})" for name, how in odd.items()]
        yield Finding(
            "precision",
            "warning",
            f"{len(odd)} parameters have another number format than the same ones in other layers: {shown(names)}",
            f"model {context.model_name}",
            "bring them into one: model.to(dtype), before the adapter or the optimizer is made",
            measured=len(odd),
            expected=0,
        )
    if len({p.dtype for p in named.values()}) > 1 and isinstance(context, TrainerContext):
        yield from _unmatched(context, named)


def _unmatched(context: TrainerContext, named: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Formats that meet in a product although nothing casts them."""
    batch = batch_of(context, short_rows(context, 1, 16))
    try:
        with evaluating(context.model), context.computing():
            context.model(**inputs_of(batch))
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        context.forward_failed = True
        counts = {
            kind: sum(p.dtype == kind for p in named.values()) for kind in {p.dtype for p in named.values()}
        }
        parts = ", ".join(
            f"{count} {_short(kind)}" for kind, count in sorted(counts.items(), key=lambda c: -c[1])
        )
        rare = min(counts, key=lambda kind: counts[kind])
        names = [plain_name(n) for n, p in named.items() if p.dtype == rare and not is_added(n)]
        yield Finding(
            "precision",
            "error",
            f"parameters of {len(counts)} number formats ({parts}) meet in one product, and nothing casts them: {error}; "
            f"those of {_short(rare)}: {shown(names)}",
            "TrainingArguments.bf16",
            "set TrainingArguments.bf16=True, or bring all parameters into one number format",
            measured=len(counts),
            expected=1,
        )


def _range(context: CheckContext) -> Iterator[Finding]:
    """The largest output of any layer, against what fp16 holds."""
    largest, layer = _largest_output(context)
    made_in = _made_in(context)
    if largest > LARGEST / HEADROOM or largest != largest:
        over = not largest <= LARGEST
        yield Finding(
            "precision",
            "error" if over else "warning",
            f"the output of {layer} reaches {largest:,.0f}, and fp16 holds at most {LARGEST:,.0f}",
            "TrainingArguments.fp16",
            "train in bf16 (bf16=True, fp16=False) or in fp32",
            measured=round(largest) if largest < float("inf") else str(largest),
            expected=f"at most {LARGEST / HEADROOM:,.0f}",
        )
    elif made_in == "bfloat16":
        yield Finding(
            "precision",
            "warning",
            f"the model was made in bf16 and is trained in fp16; the largest output over {NUM_ROWS} rows is {largest:,.0f} of "
            f"{LARGEST:,.0f}, and gradients have no such margin",
            "TrainingArguments.fp16",
            "train in bf16 (bf16=True, fp16=False) or in fp32",
            measured=round(largest),
            expected="a model that was made in fp16 or fp32",
        )


def _largest_output(context: CheckContext) -> tuple[float, str]:
    """The largest number that any layer gives over a few rows, and that layer."""
    found = (0.0, "the model")

    def see(name: str, output: Tensor) -> None:
        nonlocal found
        size = float(output.abs().max())
        if not size <= found[0] and found[0] == found[0]:
            found = (size, plain_name(name))

    batches = [batch_of(context, [row]) for row in short_rows(context, NUM_ROWS, MAX_TOKENS)]
    try:
        with evaluating(context.model), context.computing(), watching(context.model, see):
            for batch in batches:
                context.model(input_ids=batch.input_ids_BT)
    except RuntimeError as error:
        raise Skip(f"fp16 cannot be computed here: {error}") from error
    return found


def _made_in(context: CheckContext) -> str:
    """The number format that the model's own files were written in, or that it has now."""
    config = base_model(context.model).config
    path = Path(config.name_or_path or "") / "config.json"
    if config.name_or_path and path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))
        return str(saved.get("dtype") or saved.get("torch_dtype") or "")
    return str(getattr(config, "dtype", "") or "").removeprefix("torch.")


def _short(kind: torch.dtype) -> str:
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return names.get(kind, str(kind).removeprefix("torch."))
