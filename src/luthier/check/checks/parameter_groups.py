from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

from torch import Tensor

from luthier.check.context import CheckContext, shown
from luthier.records import Finding
from luthier.registry import check

# Decay that takes less than this off a norm's weight over the whole run changes nothing that one could measure.
MOST_DECAY = 0.01
NAMES_SHOWN = 5


@check("parameter-groups")
def parameter_groups(context: CheckContext) -> Iterator[Finding]:
    """The optimizer holds each trainable parameter once, no tensors but the model's, and decays no norms or biases.

    What it does: makes the optimizer that the training will use (of a ``Trainer``, grouped as the one that was passed to
    it), finds each of its tensors among the model's parameters, and computes what weight decay takes off vectors over all
    steps of the schedule.

    Why is this bad: a parameter in no group stays as it is, though it gets gradients; an optimizer over the tensors of
    another model trains nothing at all, and the log looks normal but for a loss that does not fall; decay pulls the
    weights of norms from 1 towards 0.

    Example: an optimizer that was made before ``get_peft_model`` or ``from_pretrained`` made the model that is trained;
    a norm that is named ``ln_f`` or ``norm_f``, which the patterns of ``Trainer`` do not know.

    Fix: make the optimizer last, over ``model.parameters()`` of the very model that is trained; leave vectors out of the
    group with decay.

    Catalogue: 74
    """
    model = context.model
    training = context.training
    optimizer = training.optimizer()
    names = {id(p): name for name, p in model.named_parameters()}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    groups = len(optimizer.param_groups)
    context.looked_at(f"{len(held)} tensors in {groups} group{'s' * (groups > 1)}")
    where = training.plan.key("optimizer")

    stray = [p for p in held if id(p) not in names]
    if stray:
        yield _finding(
            f"{len(stray)} of the {len(held)} tensors that the optimizer holds are none of the model's: they belong to another model",
            where,
            "make the optimizer after the model (and its adapter), over its parameters",
            len(stray),
        )
    counts = Counter(names[id(p)] for p in held if id(p) in names)
    lacking = [name for name in trainable if not counts[name]]
    if lacking and not stray:
        yield _finding(
            f"{len(lacking)} of {len(trainable)} trainable parameters are in no group of the optimizer: {shown(lacking, NAMES_SHOWN)}",
            where,
            "add them to a group, or make the optimizer without groups of your own",
            len(lacking),
        )
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        yield _finding(
            f"{len(twice)} parameters are in the optimizer twice, and get two updates a step: {shown(twice, NAMES_SHOWN)}",
            where,
            "leave each in one group",
            len(twice),
        )
    yield from _decayed_vectors(context, trainable, optimizer.param_groups)


def _decayed_vectors(
    context: CheckContext, trainable: Mapping[str, Tensor], groups: list[dict[str, object]]
) -> Iterator[Finding]:
    plan = context.training.plan
    vectors = {id(p): name for name, p in trainable.items() if p.ndim < 2}
    for group in groups:
        decay, rate = float(group.get("weight_decay") or 0.0), float(group.get("lr") or 0.0)  # type: ignore[arg-type]
        found = [vectors[id(p)] for p in group["params"] if id(p) in vectors]  # type: ignore[attr-defined]
        if not decay or not found:
            continue
        scale = rate / plan.peak_learning_rate if plan.peak_learning_rate else 1.0
        lost = 1 - math.exp(sum(math.log1p(-min(0.999, r * scale * decay)) for r in plan.learning_rates))
        yield Finding(
            "parameter-groups",
            "warning" if lost > MOST_DECAY else "note",
            f"{len(found)} vectors (norms, biases) are in a group with weight decay {decay:g}, which alone takes {lost:.2%} off "
            f"them over the run: {shown(found, NAMES_SHOWN)}",
            plan.key("weight_decay"),
            "put parameters of one dimension into a group with weight_decay=0",
            measured=len(found),
            expected=0,
        )


def _finding(what: str, where: str, fix: str, measured: int) -> Finding:
    return Finding("parameter-groups", "error", what, where, fix, measured=measured, expected=0)
