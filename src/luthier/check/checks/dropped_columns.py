from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from luthier.check.context import CheckContext, Skip
from luthier.check.trainer import TrainerContext
from luthier.records import Finding
from luthier.registry import check

# What names of columns say that a loss is to use. Tokenizers give the second kind, which models without them do not need.
MATTERS = re.compile(r"weight|loss|reward|advantage|margin|(^|_)masks?($|_)|importance|position_ids")
HARMLESS = re.compile(r"^(special_tokens_mask|token_type_ids|attention_mask|offset_mapping|length)$")


@check("dropped-columns")
def dropped_columns(context: CheckContext) -> Iterator[Finding]:
    """No column that was made for the loss is dropped before the collator sees it.

    What it does: compares the columns of a ``Trainer``'s first training item with those that
    ``remove_unused_columns=True`` keeps (the arguments of the model's forward), and looks among the dropped ones for
    those whose names speak of weights, masks, rewards or losses.

    Why is this bad: the collator and ``compute_loss`` never see them, and a loss that falls back to "no weights" looks
    normal.

    Example: a column ``loss_weights`` and a collator that uses it if it is there.

    Fix: ``remove_unused_columns=False`` in ``TrainingArguments``.

    Catalogue: 27
    """
    if not isinstance(context, TrainerContext):
        raise Skip("only a Trainer drops columns")
    trainer: Any = context.trainer
    if not trainer.args.remove_unused_columns:
        raise Skip("remove_unused_columns=False keeps all columns")
    names = _columns(trainer.train_dataset)
    if not names:
        raise Skip("the rows have no named columns")
    trainer._set_signature_columns_if_needed()
    dropped = [name for name in names if name not in trainer._signature_columns]
    context.looked_at(f"{len(names)} columns, {len(dropped)} of them dropped")
    lost = [name for name in dropped if MATTERS.search(name.lower()) and not HARMLESS.match(name)]
    if lost:
        yield Finding(
            "dropped-columns",
            "warning",
            f"{len(lost)} of {len(names)} columns are dropped before the collator, though their names say that the loss is to "
            f"use them: {', '.join(lost)}",
            "TrainingArguments.remove_unused_columns",
            "remove_unused_columns=False",
            measured=len(lost),
            expected=0,
        )


def _columns(dataset: Any) -> list[str]:
    """Names of a data set's columns; none if its items are no mappings."""
    named = getattr(dataset, "column_names", None)
    if isinstance(named, list):
        return named
    try:
        item = dataset[0]
    except (TypeError, LookupError, NotImplementedError):  # a stream, or nothing in it
        return []
    return list(item) if isinstance(item, Mapping) else []
