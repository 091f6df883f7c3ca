from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from luthier.check.columns import Offenders, batches, flat
from luthier.check.context import CheckContext
from luthier.check.model_rows import embedding_rows
from luthier.records import Finding
from luthier.registry import check


@check("vocabulary")
def vocabulary(context: CheckContext) -> Iterator[Finding]:
    """The model has an embedding for every id.

    What it does: compares the ids of all rows, and the size of the tokenizer, with the rows of the embedding.

    Why is this bad: an id without an embedding ends in a crash in the middle of the run, or on some devices in numbers
    from elsewhere in memory.

    Example: tokens that were added to the tokenizer of a model whose embeddings were not resized.

    Fix: name them in ``model.new_tokens``, which resizes; or take the tokenizer that belongs to the model.

    Catalogue: 59
    """
    size = embedding_rows(context.model)
    outside = Offenders(context)
    smallest, largest = 0, -1
    for split, batch in batches(context, "id", "input_ids"):
        offsets, ids = flat(batch.column("input_ids"))
        bad = (ids < 0) | (ids >= size)
        counted = np.concatenate([[0], np.cumsum(bad)])
        outside.add(split, batch.column("id"), np.diff(counted[offsets]) > 0)
        smallest, largest = min(smallest, int(ids.min(initial=0))), max(largest, int(ids.max(initial=-1)))
    if smallest < 0:
        yield Finding(
            "vocabulary",
            "error",
            f"{outside} hold negative ids, down to {smallest}"
            + (": padding of labels stands in input_ids" if smallest == -100 else ""),
            outside.where,
            "pad input_ids with the padding token; -100 is for labels alone",
            measured=smallest,
            expected="at least 0",
        )
    elif outside.count:
        yield Finding(
            "vocabulary",
            "error",
            f"{outside} hold ids up to {largest}, but the model's embedding has {size} rows",
            outside.where,
            context.fix(
                "take the tokenizer that belongs to the model, or name added tokens in model.new_tokens",
                "take the tokenizer that belongs to the model, or call model.resize_token_embeddings(len(tokenizer))",
            ),
            measured=largest,
            expected=f"at most {size - 1}",
        )
    if len(context.tokenizer) > size:
        yield Finding(
            "vocabulary",
            "error",
            f"the tokenizer knows {len(context.tokenizer)} tokens, but the model's embedding has {size} rows",
            f"model {context.model_name}",
            context.fix(
                "take the tokenizer that belongs to the model, or name added tokens in model.new_tokens",
                "take the tokenizer that belongs to the model, or call model.resize_token_embeddings(len(tokenizer))",
            ),
            measured=len(context.tokenizer),
            expected=f"at most {size}",
        )
