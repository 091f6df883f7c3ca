from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from luthier.check.context import CheckContext
from luthier.check.model_rows import cut, losses, short_rows, unchanged
from luthier.records import Finding, Row
from luthier.registry import check

NUM_ROWS = 2
MAX_TOKENS = 128
NAMES_SHOWN = 5
# Large enough for a gradient in bf16 to arrive, small enough to leave the logits in their range.
NOISE = 0.01


@check("gradients")
def gradients(context: CheckContext) -> Iterator[Finding]:
    """Every trainable parameter gets a finite gradient that is not zero, and nothing else gets one.

    What it does: one forward and backward pass over 2 training rows (cut to 128 tokens each), and over one that holds a
    new token if the recipe adds some. Parameters that are all zero at the start (LoRA's B, which makes A's
    gradient exactly zero) get a little noise for that, and are put back bit by bit.

    Why is this bad: a parameter without a gradient is not trained, whatever the log says; a head that is left out gives
    random answers after all is saved; a gradient that is not finite ends the run at its first step.

    Example: gradient checkpointing in front of frozen embeddings; an adapter that was loaded for inference.

    Fix: ``model.adapter.targets``, ``model.freeze``; ``model.precision=fp32`` for one that is not finite.

    Catalogue: 58, 61, 62, 63, 68, 69, 71, 73
    """
    model = context.model
    rows = short_rows(context, NUM_ROWS, MAX_TOKENS) + _row_with_new_token(context)
    parameters = dict(model.named_parameters())
    with unchanged(model):
        _fill_zeros(parameters)
        model.train()  # what is special to training (checkpointing, dropout) is what may cut a gradient off
        if any(p.requires_grad for p in parameters.values()):
            losses(context, rows)[0].mean().backward()
        found = {name: None if p.grad is None else p.grad.detach() for name, p in parameters.items()}

    trained = [name for name, p in parameters.items() if p.requires_grad]
    if not trained:
        yield _finding("none of the model's {all} parameters is trainable", [], parameters)
        return
    absent, broken, frozen = [], [], []
    for name, gradient in found.items():
        if not parameters[name].requires_grad:
            frozen += [name] if gradient is not None else []
        elif gradient is None or not gradient.any():
            absent.append(name)
        elif not torch.isfinite(gradient).all():
            broken.append(name)
    if absent:
        yield _finding(
            f"{{count}} of {len(trained)} trainable parameters get no gradient", absent, parameters
        )
    if broken:
        yield _finding(
            f"{{count}} of {len(trained)} trainable parameters get a gradient that is not finite",
            broken,
            parameters,
        )
    if frozen:
        yield _finding("{count} frozen parameters get a gradient", frozen, parameters)


def _finding(what: str, names: list[str], parameters: dict[str, torch.nn.Parameter]) -> Finding:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return Finding(
        "gradients",
        "error",
        what.format(count=len(names), all=len(parameters)),
        f"parameters {', '.join(names[:NAMES_SHOWN])}{more}" if names else "the model",
        "see model.adapter.targets and model.freeze; for numbers that are not finite, model.precision=fp32",
        measured=len(names),
        expected=0,
    )


@torch.no_grad()
def _fill_zeros(parameters: dict[str, torch.nn.Parameter]) -> None:
    """Puts small noise into trainable parameters that are all zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters.values():
        if parameter.requires_grad and not parameter.any():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * NOISE)


def _row_with_new_token(context: CheckContext) -> list[Row]:
    """The first training row that holds a new token, cut to the part around it; nothing if there is none."""
    new = context.new_tokens
    for row in context.rows["train"] if new else ():
        places = np.flatnonzero(np.isin(row.input_ids, new))
        if len(places):
            return [cut(row, max(MAX_TOKENS, int(places[0]) + 1))]
    return []
