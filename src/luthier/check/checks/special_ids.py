from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from luthier.check.context import CheckContext
from luthier.check.row_ends import row_ends
from luthier.check.trainer import TrainerContext
from luthier.models.forward import base_model
from luthier.records import Finding
from luthier.registry import check

# An end that most rows are trained on is the one that generation will meet.
COMMON = 0.5


@check("special-ids")
def special_ids(context: CheckContext) -> Iterator[Finding]:
    """Generation stops at the token that training ends with, and tokenizer and model mean the same by their special ids.

    What it does: takes the stop token that at least half of the rows of all splits end with, and looks for it in what
    ``generate`` stops at: ``eos_token_id`` of the model's generation config, or of its config if there is none (a
    ``Trainer`` adds the tokenizer's EOS to it when it starts). Compares BOS and EOS of the tokenizer with the config's.

    Why is this bad: trained to end with one token and stopped at another, the model writes on to the limit, through turn
    after turn of a conversation with itself.

    Example: rows end with ``<|im_end|>``, which the tokenizer has for EOS, and ``generation_config.json`` says
    ``<|endoftext|>``.

    Fix: ``eos_token_id`` in ``generation_config.json`` as a list of both.

    Catalogue: 6, 9
    """
    context.only_tokens()
    tokenizer = context.tokenizer
    base = base_model(context.model)
    generation = getattr(base, "generation_config", None)
    where = f"generation_config.json of {context.model_name}"
    config = base.config.get_text_config()
    stops = next(
        (ids for part in (generation, config) if (ids := _ids(getattr(part, "eos_token_id", None)))), set()
    )
    aligned = isinstance(context, TrainerContext)
    if aligned and tokenizer.eos_id is not None:
        stops = stops | {tokenizer.eos_id}  # Trainer.train does so before its first step
    ends = row_ends(context)
    last = np.concatenate([e.last_id[e.stopped & ~e.mislabelled] for e in ends.values()])
    last = last[np.isin(last, sorted(tokenizer.stop_ids))]
    counts = np.bincount(last) if len(last) else np.zeros(0, np.int64)
    for token in np.flatnonzero(counts >= COMMON * max(1, len(last))).tolist():
        if token in stops:
            continue
        names = ", ".join(f"{tokenizer.decode([i])} ({i})" for i in sorted(stops)) or "nothing"
        yield Finding(
            "special-ids",
            "warning",
            f"{counts[token]:,} of {len(last):,} rows end with {tokenizer.decode([token])} ({token}), but generate stops at "
            f"{names}",
            where,
            f"eos_token_id: {sorted(stops | {token})} in generation_config.json, with the trained model as well",
            measured=token,
            expected=f"one of {sorted(stops)}",
        )
    if not aligned:
        yield from _config(context, config, generation)


def _config(context: CheckContext, config: Any, generation: Any) -> Iterator[Finding]:
    """What the model's config says otherwise than the tokenizer."""
    tokenizer = context.tokenizer
    for name, own in (("bos_token_id", tokenizer.bos_id), ("eos_token_id", tokenizer.eos_id)):
        theirs = _ids(getattr(config, name, None)) | _ids(getattr(generation, name, None))
        if own is not None and theirs and own not in theirs:
            yield Finding(
                "special-ids",
                "note",
                f"{name} is {own} ({tokenizer.decode([own])}) in the tokenizer and "
                f"{', '.join(map(str, sorted(theirs)))} in the model's config",
                f"config.json of {context.model_name}",
                f"set {name} to {own} in config.json, if the tokenizer is the one that is meant",
                measured=own,
                expected=", ".join(map(str, sorted(theirs))),
            )


def _ids(value: Any) -> set[int]:
    """The ids of a setting that may be none, one or a list."""
    if value is None:
        return set()
    return {int(i) for i in value} if isinstance(value, list | tuple) else {int(value)}
