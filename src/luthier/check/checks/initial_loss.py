from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from luthier.check.as_before import evaluating
from luthier.check.context import CheckContext, RunContext, Skip, shown
from luthier.check.model_rows import (
    batch_of,
    comparable,
    embedding_rows,
    logits,
    only_causal,
    short_rows,
    watching,
)
from luthier.check.origin import is_added, looks_fresh, plain_name, stored, unloaded
from luthier.models.forward import base_model, token_scores
from luthier.records import Finding, Row
from luthier.registry import check

NUM_ROWS = 8
MAX_TOKENS = 64
# A model that has learned anything is far below a uniform guess: SmolLM2-135M on Python has 0.20 of ln V.
MOST_OF_UNIFORM = 0.9
# Both are the same sums over the same numbers; bf16 logits differ by 0.4% each and far less on average.
MOST_DIFFERENCE = 0.01
# A model whose logits have the wrong size knows its text once they are divided: well enough that it is no chance.
MOST_RESCALED = 0.6
# Factors by which logits are divided to see whether only their size is wrong: 2 ** (-6 ... 6).
SCALES = [2.0**k for k in range(-6, 7)]
# Share of numbers that lie in matrices which look freshly drawn, above which all were: a few never do, such as those that
# start with zeros; and in tiny models some do after training.
MOST_FRESH = 0.9
# Weights of one kind differ by less than this from layer to layer, and by nothing from their own file.
MOST_RATIO = {"sibling": 4.0, "file": 1.25}


@check("initial-loss")
def initial_loss(context: CheckContext) -> Iterator[Finding]:
    """Before training the model already knows something, and our loss is transformers' own.

    What it does: the mean loss of 8 training rows (cut to 64 tokens each, new tokens left out) is finite, and on their
    trained tokens or on all of their tokens well under ln V, that of guessing among all V tokens; and on one row the
    scores that training uses agree with ``model(input_ids, labels=labels).loss`` to 1%. If they do not, it looks for the
    cause: weights that the model's files do not have or that look freshly drawn, logits of the wrong size and the weights
    that make them so, parameters or layers that are not finite, labels that are shifted once too often or not at all. A
    model that starts from random weights (``model.scratch``) must lie within a tenth of ln V instead.

    Why is this bad: a loss near ln V means random weights: names in the file did not match, or the file is none of this
    model's. Far above it, weights are damaged, scaled, or belong to another tokenizer. A loss that differs from the
    model's own is scaled, shifted by a token, or made from other logits.

    Example: a checkpoint whose parameter names have a prefix that the model does not, loaded with a mere warning.

    Fix: see what loading the model says about missing keys. To train from random weights on purpose: ``model.scratch``,
    or ``check.waive=[initial-loss]`` for a folder of them.

    Catalogue: 30, 31, 32, 36, 59, 70, 71
    """
    only_causal(context)
    rows = short_rows(context, NUM_ROWS, MAX_TOKENS)
    uniform = math.log(embedding_rows(context.model))
    with evaluating(context.model):
        found = list(_law(context, rows, uniform))
        with suppress(Skip):  # where two passes differ by themselves, theirs and ours do
            comparable(context)
            found += _own_loss(context, rows[0])
    yield from found


def _law(context: CheckContext, rows: Sequence[Row], uniform: float) -> Iterator[Finding]:
    trained, everything = _mean_losses(context, rows)
    where = f"model {context.model_name}"
    measured = (
        f"{trained:.3f}, {trained / uniform:.2f} of ln V = {uniform:.3f}, on trained tokens and {everything:.3f}, "
        f"{everything / uniform:.2f} of it, on all tokens of the rows"
    )
    least = min(trained, everything)
    fresh = isinstance(context, RunContext) and context.recipe.model.scratch is not None
    if not math.isfinite(trained + everything):
        yield Finding(
            "initial-loss",
            "error",
            f"the loss before training is {trained:.3f}, and {everything:.3f} on all tokens: {_not_finite(context, rows[0])}",
            where,
            "load the model in fp32 (or bf16 if it was made so) from files that are whole",
            measured=str(trained),
            expected=f"at most {MOST_OF_UNIFORM * uniform:.3f}",
        )
    elif fresh:
        if abs(everything / uniform - 1) > 1 - MOST_OF_UNIFORM:
            yield Finding(
                "initial-loss",
                "error",
                f"the loss before training is {measured}: random weights should guess, with a loss near ln V",
                where,
                "a loss over it says that the first weights are too large (initializer_range in model.scratch.config); "
                "under it, that the model sees what it is to predict",
                measured=round(everything, 3),
                expected=f"{uniform:.3f}, up or down by a tenth",
            )
    elif least > MOST_OF_UNIFORM * uniform:
        cause, fix, on_purpose = _why_high(context, rows)
        yield Finding(
            "initial-loss",
            "warning" if on_purpose else "error",
            f"the loss before training is {measured}: {cause}",
            where,
            fix,
            measured=round(trained, 3),
            expected=f"at most {MOST_OF_UNIFORM * uniform:.3f}",
        )
    elif trained > MOST_OF_UNIFORM * uniform:
        yield Finding(
            "initial-loss",
            "note",
            f"the loss before training is {measured}: the model knows such text, but the answers are as hard as a guess",
            where,
            "see whether the answers belong to their prompts",
            measured=round(trained, 3),
            expected=f"at most {MOST_OF_UNIFORM * uniform:.3f}",
        )


def _mean_losses(context: CheckContext, rows: Sequence[Row]) -> tuple[float, float]:
    """Mean loss in nats of the trained tokens, and of all tokens that have something before them; without new tokens."""
    new = torch.tensor(context.new_tokens)
    all_N, trained_N = [], []
    plain = context.plain_forward
    for row in rows:
        batch = batch_of(context, [replace(row, loss_weights=np.ones(len(row.input_ids), np.float32))])
        with context.forward():
            nll_N = token_scores(context.model, batch, plain=plain).nll_N.cpu()
        known = ~torch.isin(batch.input_ids_BT[0, 1:].cpu(), new)
        trained = torch.from_numpy(np.array(row.loss_weights[1:]) != 0)
        all_N.append(nll_N[known])
        trained_N.append(nll_N[known & trained])
    everything = float(torch.cat(all_N).mean()) if sum(map(len, all_N)) else 0.0
    return float(torch.cat(trained_N).mean()) if sum(map(len, trained_N)) else everything, everything


def _why_high(context: CheckContext, rows: Sequence[Row]) -> tuple[str, str, bool]:
    """The cause of a loss at or above ln V, what to do about it, and whether it may well be on purpose."""
    model = context.model
    scale, best, uniform = _best_scale(context, rows)
    if scale != 1 and best <= MOST_RESCALED * uniform:
        size = f"{scale:g} times too large" if scale > 1 else f"{1 / scale:g} times too small"
        return (
            f"the logits are about {size} (divided by {scale:g} they give {best:.3f}); {_sizes(context)}",
            "load the model again from files that are whole; look for code that scales its norms or its head",
            False,
        )
    lacking, unfit = unloaded(model)
    if lacking:
        left = f", and {len(unfit)} tensors in them fit nowhere ({shown(unfit)})" if unfit else ""
        return (
            f"{len(lacking)} parameters are random because no file of {base_model(model).config.name_or_path} has them "
            f"({shown(lacking)}){left}",
            "rename the tensors to what the model expects, or load them into the class that they were saved from",
            False,
        )
    strange = _strange_sizes(context)
    if strange:
        return (
            f"weights of a strange size: {strange}",
            "load the model again from files that are whole",
            False,
        )
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and not is_added(n)]
    fresh = sum(p.numel() for p in matrices if looks_fresh(p)) / max(1, sum(p.numel() for p in matrices))
    if fresh > MOST_FRESH:
        # What was made of a config names no folder: nobody expects it to know anything.
        purpose = not isinstance(context, RunContext) and not base_model(model).config.name_or_path
        return (
            f"{fresh:.0%} of the weights look freshly drawn: are these random weights?",
            context.fix(
                "see what loading it says about missing keys; to start from random weights: check.waive=[initial-loss]",
                "load trained weights with from_pretrained, and see what it says about missing keys; "
                "from random weights on purpose this is as it should be",
            ),
            purpose,
        )
    return (
        "no scale of the logits makes it better: are these random weights, or is the tokenizer another model's?",
        context.fix(
            "see what loading it says about missing keys; to start from random weights: check.waive=[initial-loss]",
            "take the tokenizer that belongs to the model, and see what loading it says about missing keys",
        ),
        False,
    )


def _best_scale(context: CheckContext, rows: Sequence[Row]) -> tuple[float, float, float]:
    """By which of ``SCALES`` the logits of two rows must be divided for the least loss; that loss; and ln V.

    Of the trained tokens or of all, whichever comes out better: the model need not know both.
    """
    sums = {"trained": torch.zeros(len(SCALES)), "all": torch.zeros(len(SCALES))}
    counts = dict.fromkeys(sums, 0)
    for row in rows[:2]:
        batch = batch_of(context, [row])
        labels_T = batch.input_ids_BT[0, 1:]
        logits_TV = logits(context, input_ids=batch.input_ids_BT)[0, :-1]
        masks = {
            "trained": batch.loss_weights_BT[0, 1:] != 0,
            "all": torch.ones_like(labels_T, dtype=torch.bool),
        }
        for name, mask_T in masks.items():
            counts[name] += int(mask_T.sum())
            for place, scale in enumerate(SCALES):
                parts_N = functional.cross_entropy(
                    logits_TV[mask_T] / scale, labels_T[mask_T], reduction="sum"
                )
                sums[name][place] += parts_N.cpu()
    means = [sums[name] / counts[name] for name in sums if counts[name]]
    best = min(means, key=lambda mean: float(mean.min()))
    place = int(best.argmin())
    return SCALES[place], float(best[place]), math.log(embedding_rows(context.model))


def _sizes(context: CheckContext) -> str:
    """Which weights are of a strange size; else how large those are that set the size of the logits."""
    if strange := _strange_sizes(context):
        return strange
    base = base_model(context.model)
    vectors = [(n, p) for n, p in base.named_parameters() if p.ndim == 1 and n.endswith("weight")]
    head = base.get_output_embeddings()
    said = []
    if vectors:
        name, gains = vectors[-1]
        said.append(f"the last norm {plain_name(name)} has gains of {_size(gains):.3g} (root mean square)")
    if head is not None and isinstance(head.weight, Tensor):
        said.append(f"the head's weights {_size(head.weight):.3g}")
    return " and ".join(said)


def _strange_sizes(context: CheckContext) -> str:
    """Parameters whose size is not that of their own file, or of the same matrices in other layers; empty if none is."""
    own = {
        plain_name(n): _size(p)
        for n, p in context.model.named_parameters()
        if not is_added(n) and p.is_floating_point()
    }
    for name, path in stored(context.model).items():
        if name in own:
            with safe_open(path, "pt") as file:
                size = _size(file.get_tensor(name))
            ratio = own[name] / size if size else 1.0
            if math.isfinite(ratio) and not 1 / MOST_RATIO["file"] <= ratio <= MOST_RATIO["file"]:
                return f"{name} is {ratio:.3g} times what {path.name} holds"
    kinds: dict[str, dict[str, float]] = {}
    for name, p in context.model.named_parameters():
        if p.ndim >= 2 and plain_name(name) in own:
            kind = re.sub(r"\.\d+\.", ".*.", plain_name(name))
            kinds.setdefault(kind, {})[plain_name(name)] = own[plain_name(name)]
    for sizes in kinds.values():
        if len(sizes) < 3 or not all(map(math.isfinite, sizes.values())):
            continue
        middle = float(np.median(list(sizes.values())))
        for name, size in sizes.items():
            if middle and not 1 / MOST_RATIO["sibling"] <= size / middle <= MOST_RATIO["sibling"]:
                return f"{name} is {size / middle:.3g} times as large as in the other layers"
    return ""


@torch.no_grad()
def _size(parameter: Tensor) -> float:
    """Root mean square."""
    return float(parameter.detach().float().square().mean().sqrt()) if parameter.numel() else 0.0


def _not_finite(context: CheckContext, row: Row) -> str:
    """Where the first number that is not finite comes from."""
    model = context.model
    broken = [n for n, p in model.named_parameters() if not bool(torch.isfinite(p.detach()).all())]
    if broken:
        return f"{len(broken)} parameters hold numbers that are not finite ({shown(broken)})"
    first: list[str] = []

    def see(name: str, output: Tensor) -> None:
        if not first and not bool(torch.isfinite(output).all()):
            first.append(name)

    with watching(model, see):
        logits(context, input_ids=batch_of(context, [row]).input_ids_BT)
    kind = str(next(model.parameters()).dtype).removeprefix("torch.")
    if first:
        return f"every parameter is finite, but the output of {first[0]} is not: {kind} cannot hold it"
    return "every parameter and the output of every layer is finite"


def _own_loss(context: CheckContext, row: Row) -> Iterator[Finding]:
    batch = batch_of(context, [row])
    plain = context.plain_forward
    labels_BT = batch.input_ids_BT.masked_fill(batch.loss_weights_BT == 0, -100)
    with context.forward():
        ours = float(token_scores(context.model, batch, plain=plain).nll_N.mean())
        output = context.model(input_ids=batch.input_ids_BT, labels=labels_BT)
    if output.loss is None:
        return
    theirs = float(output.loss)
    if getattr(output, "aux_loss", None) is not None:  # of a mixture of experts, which its loss holds
        theirs -= float(output.aux_loss) * float(
            getattr(base_model(context.model).config, "router_aux_loss_coef", 0.0)
        )
    if abs(ours - theirs) <= MOST_DIFFERENCE * abs(theirs) or not math.isfinite(ours):
        return
    ratio = theirs / ours if ours else math.inf
    yield Finding(
        "initial-loss",
        "error",
        f"the loss of row {row.id} is {ours:.4f} as trained, and {theirs:.4f} by the model itself, {ratio:.2f} times as "
        f"much: {_why_other(output.logits, batch.input_ids_BT, labels_BT, theirs, ours)}",
        f"model {context.model_name}",
        context.fix(
            "report this: loss scaling or the output head of this model is not what is assumed",
            "let the model's loss be the mean cross-entropy of logits[:, :-1] and labels[:, 1:]",
        ),
        measured=round(ours, 4),
        expected=round(theirs, 4) if math.isfinite(theirs) else str(theirs),
    )


def _why_other(
    logits_BTV: Tensor | None, ids_BT: Tensor, labels_BT: Tensor, theirs: float, ours: float
) -> str:
    """What the model's own loss is, if it is one of the usual mistakes."""
    if logits_BTV is not None and logits_BTV.shape[:2] == ids_BT.shape:
        every = logits_BTV[0].float()
        known = {
            "labels are not shifted against the logits": (every, labels_BT[0]),
            "labels are shifted twice against the logits": (every[:-2], labels_BT[0, 2:]),
            "it counts tokens that are not trained": (every[:-1], ids_BT[0, 1:]),
        }
        for reason, (logits_TV, labels_T) in known.items():
            if math.isclose(float(functional.cross_entropy(logits_TV, labels_T)), theirs, rel_tol=1e-3):
                return reason
    count = int((labels_BT[:, 1:] != -100).sum())
    if count > 1 and math.isclose(theirs, count * ours, rel_tol=1e-3):
        return f"it is the sum over the {count} trained tokens, not their mean"
    return "it is scaled, or made of other logits"
