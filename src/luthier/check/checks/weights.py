from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from luthier.check.context import CheckContext, Skip, shown
from luthier.check.origin import is_added, plain_name, unloaded
from luthier.models.forward import base_model
from luthier.records import Finding
from luthier.registry import check

# What fp16 holds at most; the largest weights of published models are a few hundred. Memory that nobody wrote to is 1e37.
LARGEST = 65504.0
# Rows of an embedding differ in length by less than 6 in published models; drawn with a spread of 1 where the others
# have 0.02 they are 50 times as long.
MOST_RATIO = 20.0


@check("weights")
def weights(context: CheckContext) -> Iterator[Finding]:
    """Every parameter is there, finite, of a sane size, and was read from the model's files.

    What it does: looks at all parameters: none is on the meta device, none holds NaN, infinity or a number beyond 65504,
    no matrix is one number repeated (an adapter's own zeros are left out), no row of the embeddings is 20 times as long
    as the usual one. If the model names a local folder with safetensors, no parameter of its decoder is absent there and
    at the same time as random as when it was made.

    Why is this bad: the run ends in NaN at its first step, or trains around a layer that knows nothing; a random layer
    shows as nothing but a somewhat higher loss.

    Example: ``resize_token_embeddings`` that left new rows unset; a checkpoint saved from a wrapper, so that the names of
    some layers have a prefix, and loading drew them anew.

    Fix: load the model from whole files in the class that they were saved from, and read what loading it says.

    Catalogue: 59, 70, 71
    """
    try:
        model = context.model
    except Skip:
        if not context.hollow:
            raise
        yield _hollow(context)
        return
    named = dict(model.named_parameters())
    context.looked_at(f"{len(named):,} parameters of {sum(p.numel() for p in named.values()):,} numbers")
    faults: dict[str, list[str]] = {"broken": [], "huge": [], "constant": [], "zero": []}
    largest = 0.0
    base = base_model(model)
    rows = list(_rows(context))
    # A head for classes is class-head's, and of an embedding its rows are named.
    heads = [m for m in base.children() if context.objective != "tokens" and m is not base.base_model]
    named_below = {id(p) for head in heads for p in head.parameters()}
    named_below |= {id(matrix) for matrix, finding in rows if finding.severity == "error"}
    for name, parameter in named.items():
        kind, size = _fault(name, parameter)
        if kind in ("broken", "huge") and id(parameter) in named_below:
            continue
        if kind:
            faults[kind].append(name)
            largest = max(largest, size)
    fix = "load the model again from whole files; new layers and rows need a sane start"
    for kind, names in faults.items():
        if names:
            yield Finding(
                "weights",
                "warning" if kind == "zero" else "error",
                f"{len(names)} of {len(named)} parameters {_MEANING[kind].format(largest=largest)}: {shown(names, 5)}",
                f"model {context.model_name}",
                fix,
                measured=len(names),
                expected=0,
            )
    yield from (finding for _, finding in rows)
    yield from _unloaded(context)


def _hollow(context: CheckContext) -> Finding:
    return Finding(
        "weights",
        "error",
        f"{len(context.hollow)} parameters are on the meta device, where they have no numbers: {shown(context.hollow, 5)}",
        "the model",
        "load them: from_pretrained without a device_map that leaves layers out, or model.to_empty and load_state_dict",
        measured=len(context.hollow),
        expected=0,
    )


_MEANING = {
    "broken": "hold NaN or infinity",
    "huge": "hold numbers up to {largest:.3g}",
    "constant": "are matrices of one number repeated",
    "zero": "are matrices of zeros, which pass nothing on until they are trained",
}


@torch.no_grad()
def _fault(name: str, parameter: Tensor) -> tuple[str, float]:
    """What is wrong with a parameter, empty if nothing is; and its largest number."""
    if not parameter.is_floating_point() or not parameter.numel():
        return "", 0.0
    least, most = (float(value) for value in torch.aminmax(parameter.detach()))
    size = max(abs(least), abs(most))
    if not size < float("inf"):
        return "broken", 0.0
    if size > LARGEST:
        return "huge", size
    if min(parameter.shape, default=0) > 1 and parameter.ndim > 1 and least == most and not is_added(name):
        if name.endswith("bias"):  # of several experts
            return "", size
        return ("constant", size) if size else ("zero", size)
    return "", size


@torch.no_grad()
def _rows(context: CheckContext) -> Iterator[tuple[Tensor, Finding]]:
    """Embeddings of which rows are much longer than the others or not finite, unless most are."""
    base = base_model(context.model)
    layers = {"input": base.get_input_embeddings(), "output": base.get_output_embeddings()}
    known: list[Tensor] = []
    for side, layer in layers.items():
        matrix = getattr(layer, "weight", None)
        if not isinstance(matrix, Tensor) or matrix.is_meta or not matrix.is_floating_point():
            continue
        if any(matrix is other for other in known) or matrix.ndim != 2:
            continue
        known.append(matrix)
        lengths = matrix.detach().float().square().sum(-1).sqrt()
        usual = float(lengths[torch.isfinite(lengths)].median()) if torch.isfinite(lengths).any() else 0.0
        bad = torch.nonzero(~(lengths <= MOST_RATIO * usual) if usual else ~torch.isfinite(lengths))[:, 0]
        if not len(bad):
            continue
        worst = float(lengths[bad].max()) / usual if usual else math.nan
        how = (
            f"up to {worst:.3g} times as long as the usual one ({usual:.3g})"
            if worst < math.inf
            else "not finite"
        )
        yield (
            matrix,
            Finding(
                "weights",
                "warning" if worst < math.inf else "error",
                f"{len(bad)} of {len(lengths):,} rows of the {side} embedding are {how}: ids {shown(list(map(str, bad.tolist())), 5)}{_used(context, bad)}",
                f"model {context.model_name}",
                context.fix(
                    "name added tokens in model.new_tokens, whose rows start as the mean of the others",
                    "model.resize_token_embeddings(len(tokenizer), mean_resizing=True), or copy the mean of the other rows",
                ),
                measured=len(bad),
                expected=0,
            ),
        )


def _used(context: CheckContext, ids: Tensor) -> str:
    """In how many of a few training rows they occur."""
    rows = list(context.spread("train", 200))
    wanted = set(ids.tolist())
    count = sum(not wanted.isdisjoint(map(int, row.input_ids)) for row in rows)
    return f", in {count} of {len(rows)} training rows" if rows else ""


def _unloaded(context: CheckContext) -> Iterator[Finding]:
    base = base_model(context.model)
    lacking, unfit = unloaded(context.model)
    # A new head is meant to be random; the decoder and what predicts tokens with it are not.
    inner = {plain_name(n) for n, _ in base.base_model.named_parameters(prefix=base.base_model_prefix)}
    inner |= (
        {plain_name(n) for n, _ in base.base_model.named_parameters()} if base.base_model is base else set()
    )
    head = base.get_output_embeddings()
    inner |= {plain_name(n) for n, p in base.named_parameters() if head is not None and p is head.weight}
    lacking = [name for name in lacking if name in inner]
    if lacking:
        left = f"; {len(unfit)} tensors in them fit nowhere ({shown(unfit)})" if unfit else ""
        yield Finding(
            "weights",
            "error",
            f"{len(lacking)} parameters are random: no file of the model has them ({shown(lacking)}){left}",
            f"model {context.model_name}",
            "rename the tensors to what the model expects, or load them into the class that they were saved from",
            measured=len(lacking),
            expected=0,
        )
