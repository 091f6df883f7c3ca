from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import set_seed

from luthier.check.as_before import no_dropout, quiet, unchanged
from luthier.check.context import CheckContext, Skip, shown
from luthier.check.steps import (
    StepRow,
    only_small,
    only_trainable,
    only_trained,
    restrict,
    said,
    set_gradients,
    step_rows,
)
from luthier.check.trainer import TrainerContext
from luthier.errors import one_line
from luthier.plan import Training
from luthier.records import Finding
from luthier.registry import check

NUM_ROWS = 2
MAX_TOKENS = 48
# Weights whose optimizer state is written; the model itself is written whole.
MOST_BYTES = 2**28
# The same sums over the same bits give the same step; on a GPU additions come in any order, and Adam's first steps are
# as large for a tiny gradient as for a large one. A lost optimizer state changes a step by tens of percent.
MOST_DIFFERENCE = 0.01
NAMES_SHOWN = 5


@check("resume")
def resume(context: CheckContext) -> Iterator[Finding]:
    """A step after a checkpoint is saved and loaded is the step that would have been made without.

    What it does: two steps of the training itself over 2 rows (cut to 48 tokens; dropout off), with its own optimizer
    over at most 256 MiB of the trained weights; saves as the training does; makes a third step; fills all trained weights
    with NaN, loads what was saved into them and into a new optimizer, and makes the third step again. All trained weights
    must be back, and the two third steps agree to 1%. The order of the rows is not part of it. Whole models of more than
    1 GiB are not written.

    Why is this bad: a resumed run that has lost its optimizer state or a part of its weights jumps, and the rest of it is
    another run.

    Example: a ``save_model`` of one's own that writes the adapter and not the head; ``save_only_model=True``; transformers'
    ``Trainer`` with a GPT-NeoX or a mixture of experts, some of whose tensors have other names in their files.

    Fix: save with the model's own ``save_pretrained``; ``save_only_model=False``; ``ignore_data_skip=False``.

    Catalogue: 63, 77, 78
    """
    model, training = context.model, context.training
    only_trainable(model)
    only_small(model)
    rows = step_rows(context, NUM_ROWS, MAX_TOKENS)
    context.looked_at(f"3 steps over {said(rows)}, the last one twice")
    with TemporaryDirectory() as name, quiet(), unchanged(model), no_dropout(model):
        optimizer = training.optimizer()
        chosen = restrict(optimizer, MOST_BYTES, model.parameters())
        for _ in range(2):
            _make_step(training, model, optimizer, rows)
        before = [p.detach().clone() for p in chosen]
        try:
            training.save(Path(name), optimizer)
            _make_step(training, model, optimizer, rows)
            straight = [p.detach().clone() for p in chosen]
            lost, anew = _restore(training, model, Path(name))
        except Skip:
            raise
        except Exception as error:  # whatever foreign ways to save raise
            yield _broken(error)
            return
        if lost:
            yield _lost(model, lost, Path(name))
        else:
            _make_step(training, model, anew, rows)
            yield from _compared(context, anew, chosen, before, straight)
    if isinstance(context, TrainerContext) and context.trainer.args.ignore_data_skip:
        yield Finding(
            "resume",
            "note",
            "a resumed run begins at row 0 of the epoch again: ignore_data_skip=True",
            "TrainingArguments.ignore_data_skip",
            "ignore_data_skip=False",
        )


def _make_step(
    training: Training, model: torch.nn.Module, optimizer: torch.optim.Optimizer, rows: Sequence[StepRow]
) -> None:
    set_seed(0)  # a step that draws is to draw the same after resuming
    step = training.step([[row.index for row in rows]], MAX_TOKENS)
    only_trained(step)
    if not step.norm < float("inf"):
        raise Skip("gradients are not finite (see gradient-norm)")
    set_gradients(model, step, training.plan.max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _restore(
    training: Training, model: torch.nn.Module, folder: Path
) -> tuple[list[str], torch.optim.Optimizer]:
    """Trained parameters that loading does not bring back, and a new optimizer that it was given."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.fill_(torch.nan)
    anew = training.optimizer()
    restrict(anew, MOST_BYTES, model.parameters())
    training.restore(folder, anew)
    return [name for name, p in trained.items() if bool(p.isnan().any())], anew


def _lost(model: torch.nn.Module, lost: list[str], folder: Path) -> Finding:
    """The finding for trained parameters that did not come back, which the files may hold under other names."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names.update(file.keys())
    others = [] if isinstance(model, PeftModel) else sorted(names - model.state_dict().keys())
    if others:
        cause = f"; the file has names that the model has not ({', '.join(others[:2])}): they are changed when it is saved, and not when it is loaded to resume"
        fix = "load the checkpoint with from_pretrained(checkpoint) before resuming from it"
    else:
        cause = ""
        fix = (
            "save with the model's own save_pretrained; modules_to_save for what is trained beside an adapter"
        )
    return Finding(
        "resume",
        "warning" if others else "error",  # what is in the file is not lost, only not resumed from
        f"{len(lost)} trained parameters are not brought back from a checkpoint: {shown(lost, NAMES_SHOWN)}{cause}",
        "what save_model writes",
        fix,
        measured=len(lost),
        expected=0,
    )


def _compared(
    context: CheckContext,
    anew: torch.optim.Optimizer,
    chosen: Sequence[Tensor],
    before: Sequence[Tensor],
    straight: Sequence[Tensor],
) -> Iterator[Finding]:
    plan = context.training.plan
    moved = _norm(straight, before)
    apart = _norm([p.detach() for p in chosen], straight) / moved if moved else 0.0
    if apart <= MOST_DIFFERENCE:
        return
    why = "" if any(anew.state.values()) else ": the optimizer starts anew, as nothing of it was saved"
    yield Finding(
        "resume",
        "error" if plan.saves_optimizer else "note",
        f"the step after resuming differs by {apart:.3f} of its length from the step without{why}",
        plan.key("save_only_model") if not plan.saves_optimizer else "what a checkpoint holds",
        "save_only_model=False, if the run may have to be resumed"
        if not plan.saves_optimizer
        else "save and load the optimizer's whole state with the weights",
        measured=round(apart, 3),
        expected=f"at most {MOST_DIFFERENCE}",
    )


def _norm(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    squares = (float((a.double() - b.double()).square().sum()) for a, b in zip(first, second, strict=True))
    return math.sqrt(sum(squares))


def _broken(error: Exception) -> Finding:
    return Finding(
        "resume",
        "error",
        f"a checkpoint cannot be saved and loaded: {one_line(error)}",
        "what save_model writes",
        "save with the model's own save_pretrained",
        measured=type(error).__name__,
        expected="a checkpoint that loads",
    )
