from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from luthier.check.checks.packing import row_limits
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.check.row_ends import row_ends
from luthier.check.trainer import TrainerContext
from luthier.records import Finding
from luthier.registry import check

# Blocks are as long as each other, nearly all of them, most hold an end inside, and they begin anywhere. Rows that are
# cut at a maximum length begin alike, and few rows are alike by chance.
SAME_LENGTH = 0.9
ENDS_INSIDE = 0.5
SAME_START = 0.5
FEWEST_ROWS = 8


@check("joined-rows")
def joined_rows(context: CheckContext) -> Iterator[Finding]:
    """No sequence holds several rows without a sign of where they begin.

    What it does: looks whether the trainer's collator makes fewer sequences than it is given rows and neither
    ``position_ids`` nor mask nor ``cu_seq_lens`` tell them apart; and whether at least 90% of the training rows have one
    length, half of them hold a stop token before their last one, and they do not begin alike.

    Why is this bad: each row sees those before it, which it never will in use; and the model is trained to go on with
    something else behind an end. For pre-training on plain text that is usual, for prompts with answers it costs quality.

    Example: rows joined and cut into blocks of 1,024 tokens; TRL's ``packing_strategy="wrapped"``.

    Fix: pack whole rows with ``position_ids`` that begin anew, or do not pack.

    Catalogue: 46, 47
    """
    context.only_tokens()
    if isinstance(context, RunContext):
        raise Skip("Luthier joins no rows without telling the model where they begin")
    yield from _blocks(context)
    if isinstance(context, TrainerContext):
        yield from _joined(context)


def _joined(context: TrainerContext) -> Iterator[Finding]:
    """A collator that makes one sequence of several rows and does not say where they begin."""
    size = context.trainer.args.train_batch_size
    batch = context.batches[0]
    context.looked_at("1 batch")
    sequences = len(batch["input_ids"])
    marked = any(len(row_limits(batch, row)) > 2 for row in range(sequences))
    known = context.training.plan.num_rows  # streamed rows are not counted
    if sequences < size and (known is None or known >= size) and not marked:
        yield Finding(
            "joined-rows",
            "warning",
            f"the collator makes {sequences} of {size} rows, and nothing in the batch says where each of them begins",
            "batch 0 of trainer.get_train_dataloader()",
            "return position_ids that begin anew in each row, and no attention_mask",
            measured=sequences,
            expected=size,
        )


def _blocks(context: CheckContext) -> Iterator[Finding]:
    """Blocks of one length that rows were cut into after they had been joined."""
    context.training_rows()
    ends = row_ends(context)["train"]
    lengths = ends.lengths
    if len(lengths) < FEWEST_ROWS:
        return
    same = float((lengths == np.bincount(lengths).argmax()).mean())
    num_inside = int(ends.stop_inside.sum())
    starts = np.unique(ends.first_id[lengths > 0], return_counts=True)[1]
    alike = float(starts.max() / starts.sum()) if len(starts) else 1.0
    if same >= SAME_LENGTH and num_inside >= ENDS_INSIDE * len(lengths) and alike < SAME_START:
        yield Finding(
            "joined-rows",
            "warning",
            f"{same:.0%} of {len(lengths):,} rows have the same length, {num_inside:,} of them hold an end inside, and they "
            "begin anywhere: these are rows joined into blocks, in which each sees the ones before it",
            context.place("train"),
            "pack whole rows with position_ids that begin anew, or do not pack",
            measured=num_inside,
            expected=f"less than {ENDS_INSIDE * len(lengths):.0f}",
        )
