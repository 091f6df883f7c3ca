from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from luthier.check.columns import noted
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.check.trainer import TrainerContext
from luthier.encoding.batches import Classes, micro_batches, shuffled
from luthier.models.forward import base_model
from luthier.models.packed import can_pack
from luthier.records import Finding
from luthier.registry import check
from luthier.rows import read_batches

# Batches of a few texts whose lengths differ as texts do are a third padding. With more than half, each step takes
# twice its time and longer, and something pads that need not.
MOST_SHARE = 0.5
NUM_STEPS = 200


@check("padding-waste")
def padding_waste(context: CheckContext) -> Iterator[Finding]:
    """Most of what goes through the model is rows, not padding.

    What it does: counts padding in the training batches: in a recipe's run, those of the first 200 steps as the loop
    groups them, unless it packs them; of a trainer, all that are read as its collator makes them; in files of rows, what
    is stored. Says how many tokens that are; warns from a share of one half, says how many times as long it takes, and
    whether all is padded to one length.

    Why is this bad: padding costs as much as text. Rows of 80 tokens that are padded to 512 take six times as long.

    Example: ``tokenizer(text, padding="max_length")`` for short texts.

    Fix: pad each batch to its longest row (``padding=True``, a collator that pads); group rows by length; or pack them.

    Catalogue: 56
    """
    lengths = context.training_rows().lengths()
    if not lengths.sum():
        raise Skip("there are no training tokens")
    trainer = isinstance(context, TrainerContext)
    if isinstance(context, RunContext):
        share, how = _of_run(context, lengths), "the micro-batches of the run"
        packing = context.recipe.train.packing is not False
        if share > MOST_SHARE and packing and can_pack(base_model(context.model)) is None:
            context.looked_at("which is not paid: rows go one after another")
            return
    elif context.padding_share is None:
        raise Skip("it is not known how rows will be put into batches")
    else:
        share = context.padding_share
        if trainer:
            share = _with_unhidden(context, share, int(lengths.sum()))
        how = "the collator's batches" if trainer else "the rows as they are stored"
        context.looked_at(
            f"all {len(lengths):,} training rows"
            + (" in their batches" if trainer else "")
            + _cost(share, int(lengths.sum()))
        )
    if share <= MOST_SHARE:
        return
    widths = (
        {batch["input_ids"].shape[-1] for batch in context.batches}
        if isinstance(context, TrainerContext)
        else ()
    )
    even = len(widths) == 1  # which no batch's longest row is
    padded = (
        f"all are padded to {max(widths):,} tokens, and the longest row has {lengths.max():,}" if even else ""
    )
    spread = f"rows have {np.median(lengths):.0f} tokens as a rule, and the longest {lengths.max():,}"
    yield Finding(
        "padding-waste",
        "warning",
        f"{share:.0%} of {how} are padding: a step takes {1 / (1 - share):.1f} times as long as its text would "
        f"({padded or spread})",
        context.place("train"),
        context.fix(
            "train.micro_batch_tokens lower, so that a few rows of one length go together",
            'padding=True in place of padding="max_length", with a collator that pads each batch to its longest row'
            if even or not trainer
            else "TrainingArguments(train_sampling_strategy='group_by_length'), or packing",
        ),
        measured=round(share, 3),
        expected=f"at most {MOST_SHARE}",
    )


def _of_run(context: RunContext, lengths: np.ndarray) -> float:
    """Share of padding in the first steps of a recipe's run."""
    settings = context.recipe.train
    steps = min(NUM_STEPS, context.training.plan.num_steps)
    labels = context.rows["train"].labels() if settings.balance_classes else None
    classes = None if labels is None else Classes(labels, settings.balance_classes)
    width = text = 0
    for step in range(steps):
        position = step * settings.batch_size
        indices = shuffled(position, settings.batch_size, len(lengths), context.recipe.seed, classes)
        sizes = [int(lengths[i]) for i in indices]
        groups = micro_batches(sizes, settings.tokens_at_once)
        width += sum(len(group) * max(sizes[i] for i in group) for group in groups)
        text += sum(sizes)
    share = 1 - text / max(1, width)
    context.looked_at(f"{steps} steps of {settings.batch_size} rows{_cost(share, text)}")
    return share


def _cost(share: float, num_tokens: int) -> str:
    """What padding costs beside so many tokens of rows."""
    return f", {num_tokens:,} tokens and {num_tokens * share / max(1e-9, 1 - share):,.0f} of padding ({share:.0%})"


def _with_unhidden(context: CheckContext, hidden_share: float, num_tokens: int) -> float:
    """Share of padding with what the mask does not hide."""
    unhidden = 0
    for batch in read_batches(context.rows["train"].path, ["meta"]):
        for text in batch.column("meta").filter(noted(batch, "attended_")).to_pylist():
            meta = json.loads(text)
            unhidden += meta.get("attended_padding", 0) + meta.get("attended_before", 0)
    total = (num_tokens + unhidden) / max(1e-9, 1 - hidden_share)
    return 1 - num_tokens / total
