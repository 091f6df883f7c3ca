from __future__ import annotations

from collections.abc import Iterator

from luthier.check.columns import Offenders, batches, count, flat
from luthier.check.context import CheckContext, Skip
from luthier.check.model_rows import embedding_rows
from luthier.records import Finding
from luthier.registry import check


@check("vocabulary")
def vocabulary(context: CheckContext) -> Iterator[Finding]:
    """The model has an embedding for every id, and the tokenizer a token.

    What it does: compares the ids of all rows, and the size of the tokenizer, with the rows of the embedding; ids that
    the model has an embedding for and the tokenizer no token are a warning.

    Why is this bad: an id without an embedding ends in a crash in the middle of the run, or on some devices in numbers
    from elsewhere in memory. One without a token was given by another tokenizer.

    Example: tokens that were added to the tokenizer of a model whose embeddings were not resized.

    Fix: name them in ``model.new_tokens``, which resizes; or take the tokenizer that belongs to the model.

    Catalogue: 59
    """
    size = embedding_rows(context.model)
    try:
        known, tokens = len(context.tokenizer), max(context.tokenizer.hf.get_vocab().values()) + 1
    except Skip:
        known = tokens = 0
    outside, unnamed = Offenders(context), Offenders(context)
    smallest, largest = 0, -1
    for split, batch in batches(context, "id", "input_ids"):
        offsets, ids = flat(batch.column("input_ids"))
        for found, bad in (
            (outside, (ids < 0) | (ids >= size)),
            (unnamed, (ids >= tokens) & (ids < size) & (tokens > 0)),
        ):
            found.add(split, batch.column("id"), count(bad, offsets[:-1], offsets[1:]) > 0)
        smallest, largest = min(smallest, int(ids.min(initial=0))), max(largest, int(ids.max(initial=-1)))
    if outside.count:
        yield _outside(context, outside, smallest, largest, size)
    if known > size > largest:
        yield Finding(
            "vocabulary",
            "error",
            f"the tokenizer knows {known} tokens, but the model's embedding has {size} rows",
            f"model {context.model_name}",
            _resize(context),
            measured=known,
            expected=f"at most {size}",
        )
    if unnamed.count:
        yield unnamed.finding(
            "vocabulary",
            "warning",
            f"{unnamed} hold ids from {tokens} to {size - 1}, for which the model has an embedding and the tokenizer no token",
            "take the tokenizer that the rows were made with, or the one that belongs to the model",
        )


def _outside(context: CheckContext, outside: Offenders, smallest: int, largest: int, size: int) -> Finding:
    if smallest < 0:
        return Finding(
            "vocabulary",
            "error",
            f"{outside} hold negative ids, down to {smallest}"
            + (": padding of labels stands in input_ids" if smallest == -100 else ""),
            outside.where,
            "pad input_ids with the padding token; -100 is for labels alone",
            measured=smallest,
            expected="at least 0",
        )
    return Finding(
        "vocabulary",
        "error",
        f"{outside} hold ids up to {largest}, but the model's embedding has {size} rows",
        outside.where,
        _resize(context),
        measured=largest,
        expected=f"at most {size - 1}",
    )


def _resize(context: CheckContext) -> str:
    return context.fix(
        "take the tokenizer that belongs to the model, or name added tokens in model.new_tokens",
        "take the tokenizer that belongs to the model, or call model.resize_token_embeddings(len(tokenizer))",
    )
