from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from luthier.check.as_before import modules_as_before, unchanged
from luthier.check.context import CheckContext, shown
from luthier.check.model_rows import cut, losses, short_rows
from luthier.check.steps import fill_zeros, said, step_rows
from luthier.check.trainer import TrainerContext
from luthier.models.forward import base_model
from luthier.records import Finding, Row
from luthier.registry import check

NUM_ROWS = 2
MAX_TOKENS = 128
NAMES_SHOWN = 5
# Rows in which new tokens are looked for.
MOST_ROWS = 2000
_CHECKPOINTING_FIX = (
    'gradient_checkpointing_kwargs={"use_reentrant": False}, and model.enable_input_require_grads()'
)
_FIX = "see model.adapter.targets and model.freeze; for numbers that are not finite, model.precision=fp32"
_OTHER_FIX = "see which parameters require a gradient and reach the loss; for numbers that are not finite, compute in fp32"


@check("gradients")
def gradients(context: CheckContext) -> Iterator[Finding]:
    """Every trainable parameter gets a finite gradient that is not zero, and nothing else gets one.

    What it does: one forward and backward pass over 2 training rows (cut to 128 tokens each), and over one that holds a
    new token if the recipe adds some; of a ``Trainer`` its own training step, with the checkpointing that it will switch
    on. Parameters that are all zero at the start (LoRA's B, which makes A's gradient exactly zero) get a little noise for
    that, and are put back bit by bit. Where gradients are lacking and activations are recomputed (checkpointing), it is
    tried without. New tokens of a ``Trainer``'s tokenizer that stand in the first 2000 rows must have an embedding that
    is trained.

    Why is this bad: a parameter without a gradient is not trained, whatever the log says; a head that is left out gives
    random answers after all is saved; a gradient that is not finite ends the run at its first step.

    Example: reentrant gradient checkpointing in front of frozen embeddings; an adapter that was loaded for inference; new
    tokens under an adapter that leaves the embedding frozen.

    Fix: ``model.adapter.targets``, ``model.freeze``; ``use_reentrant=False`` and ``model.enable_input_require_grads()``;
    ``trainable_token_indices`` or ``modules_to_save`` for new tokens; fp32 for what is not finite.

    Catalogue: 58, 61, 62, 63, 68, 69, 71, 73
    """
    model = context.model
    parameters = dict(model.named_parameters())
    with unchanged(model):
        if isinstance(context, TrainerContext):
            fill_zeros(model)
            found = _of_a_step(context)
        else:
            rows = short_rows(context, NUM_ROWS, MAX_TOKENS) + _row_with_new_token(context)
            fill_zeros(model)
            model.train()  # what is special to training (checkpointing, dropout) is what may cut a gradient off
            if any(p.requires_grad for p in parameters.values()):
                losses(context, rows)[0].mean().backward()
            found = {name: None if p.grad is None else p.grad.detach() for name, p in parameters.items()}

        trained = [name for name, p in parameters.items() if p.requires_grad]
        if not trained:
            yield _finding(
                context,
                f"none of the model's {len(parameters)} parameters is trainable",
                [],
                measured="none",
                expected="some",
            )
            return
        # Two rows need not reach each expert, nor in a Trainer's step the single tokens that peft trains.
        rare = r"\.experts\." + (r"|\.trainable_tokens_" if isinstance(context, TrainerContext) else "")
        absent = [name for name in trained if _is_absent(found[name]) and not re.search(rare, name)]
        why = _without_checkpointing(context, absent) if absent else ""
    broken = [n for n in trained if found[n] is not None and not torch.isfinite(found[n]).all()]  # type: ignore[arg-type]
    absent = [name for name in absent if name not in broken]
    frozen = [n for n, gradient in found.items() if gradient is not None and not parameters[n].requires_grad]
    of = f"of {len(trained)} trainable parameters get"
    if absent:
        yield _finding(
            context, f"{len(absent)} {of} no gradient{why}", absent, _CHECKPOINTING_FIX if why else ""
        )
    if broken:
        yield _finding(context, f"{len(broken)} {of} a gradient that is not finite", broken)
    if frozen:
        yield _finding(context, f"{len(frozen)} frozen parameters get a gradient", frozen)
    if isinstance(context, TrainerContext):
        yield from _untrained_tokens(context)


def _is_absent(gradient: Tensor | None) -> bool:
    return gradient is None or not gradient.any()


def _of_a_step(context: TrainerContext) -> dict[str, Tensor | None]:
    """Gradients of one step of a Trainer, by parameter; those of frozen ones too, if they had any before."""
    rows = step_rows(context, NUM_ROWS, MAX_TOKENS)
    context.looked_at(f"one step over {said(rows)}")
    parameters = dict(context.model.named_parameters())
    found = {name: None if p.requires_grad else p.grad for name, p in parameters.items()}
    if any(p.requires_grad for p in parameters.values()):
        found |= context.training.step([[row.index for row in rows]], MAX_TOKENS).gradients
    return found


def _without_checkpointing(context: CheckContext, absent: list[str]) -> str:
    """What is known of the cause, if the gradients that are lacking arrive when no activation is recomputed."""
    if not isinstance(context, TrainerContext):
        return ""
    args, model = context.trainer.args, context.model
    on = [module for module in model.modules() if vars(module).get("gradient_checkpointing")]
    names = [n for n in ("activation_checkpointing", "gradient_checkpointing") if getattr(args, n, None)]
    if not on and not names:
        return ""
    before = {name: getattr(args, name) for name in names}
    with modules_as_before(model):
        for module in on:
            module.gradient_checkpointing = False  # type: ignore[assignment] # modules hold anything
        for name in names:
            setattr(args, name, False)
        try:
            again = _of_a_step(context)
        finally:
            for name, value in before.items():
                setattr(args, name, value)
    arrive = sum(not _is_absent(again[name]) for name in absent)
    if not arrive:
        return ""
    return f"; {arrive} of these do without gradient checkpointing: recomputed layers whose inputs need no gradient give none"


def _untrained_tokens(context: TrainerContext) -> Iterator[Finding]:
    """New tokens in the rows whose embedding nothing trains, or that the output head can never learn to say."""
    new = np.asarray(context.new_tokens)
    if not len(new):
        return
    base, rows = base_model(context.model), context.training_rows()
    used: set[int] = set()
    trained: set[int] = set()
    for index in range(min(len(rows), MOST_ROWS)):
        row = rows.row(index)
        here = np.isin(row.input_ids, new)
        used.update(row.input_ids[here].tolist())
        trained.update(row.input_ids[here & (row.loss_weights != 0)].tolist())
    context.looked_at(f"new tokens of {min(len(rows), MOST_ROWS):,} rows")
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    places = (
        ("embedding is", embedding, used),
        ("row of the output head is", head if context.objective == "tokens" else None, trained),
    )
    for name, layer, ids in places:
        if layer is None or not (dead := ids - _trained_ids(layer, ids)):
            continue
        some = sorted(dead)[:NAMES_SHOWN]
        yield _finding(
            context,
            f"{len(dead)} of {len(new)} new tokens stand in rows, but their {name} never trained: "
            + ", ".join(map(repr, context.tokenizer.hf.convert_ids_to_tokens(some))),
            [],
            "LoraConfig(trainable_token_indices=[...]), or modules_to_save=['embed_tokens', 'lm_head']",
            measured=len(dead),
            where=f"trainer.processing_class, ids {', '.join(map(str, some))}",
        )


def _trained_ids(layer: torch.nn.Module, ids: set[int]) -> set[int]:
    """Those of some ids whose row of an embedding or head is trained."""
    if not any(p.requires_grad for p in layer.parameters()):
        tied = [m for m in layer.modules() if getattr(m, "tied_adapter", None) is not None]
        if not tied:
            return set()
    for module in layer.modules():
        indices: Mapping[str, list[int]] | None = getattr(module, "token_indices", None)
        if indices is not None:  # peft's rows of single tokens
            return ids & {index for some in indices.values() for index in some}
    return ids


def _finding(
    context: CheckContext,
    what: str,
    names: list[str],
    fix: str = "",
    *,
    measured: int | str | None = None,
    expected: int | str = 0,
    where: str = "the model",
) -> Finding:
    return Finding(
        "gradients",
        "error",
        what,
        f"parameters {shown(names, NAMES_SHOWN)}" if names else where,
        fix or context.fix(_FIX, _OTHER_FIX),
        measured=measured if measured is not None else len(names),
        expected=expected,
    )


def _row_with_new_token(context: CheckContext) -> list[Row]:
    """The first training row that holds a new token, cut to the part around it, of which the token behind it is trained."""
    new = context.new_tokens
    for row in context.training_rows() if new else ():
        places = np.flatnonzero(np.isin(row.input_ids[:-1], new))
        if len(places):
            weights = (np.arange(len(row.input_ids)) == places[0] + 1).astype(np.float32)
            return [cut(replace(row, loss_weights=weights), MAX_TOKENS)]
    return []
