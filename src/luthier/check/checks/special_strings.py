from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from luthier.check.columns import Offenders, batches
from luthier.check.context import CheckContext
from luthier.records import Finding
from luthier.registry import check

# Prompts are decoded, about 0.1 ms a row; targets are searched as text, all of them.
NUM_ROWS = 500


@check("special-strings")
def special_strings(context: CheckContext) -> Iterator[Finding]:
    """Texts of the data do not spell control tokens.

    What it does: searches the targets of all rows, and the whole text of 500 rows of each split, for the tokenizer's
    special-token strings. They are encoded as plain text here and can do no harm in training: a note.

    Why is this bad: it may be meant otherwise (a conversation that was pasted into a text column), and other programs
    that read the same data do turn them into control tokens.

    Example: a prompt column that holds ``<|im_start|>user``.

    Fix: give conversations as ``messages``; take stray control strings out of the data.

    Catalogue: 19
    """
    tokenizer = context.tokenizer
    names = [token.content for token in tokenizer.hf.added_tokens_decoder.values() if token.special]
    if not names:
        return
    pattern = "|".join(re.escape(name) for name in names)
    targets, texts = Offenders(context), Offenders(context)
    for split, batch in batches(context, "id", "target"):
        found = pc.match_substring_regex(batch.column("target"), pattern)
        targets.add(split, batch.column("id"), found.to_numpy(zero_copy_only=False))
    special = list(tokenizer.special_ids)
    for split in context.rows:
        rows = list(context.spread(split, NUM_ROWS))
        context.looked_at(f"the whole text of {len(rows):,} {split} rows")
        ids = (np.asarray(row.input_ids) for row in rows)
        plain = [tokenizer.decode(i[~np.isin(i, special)].tolist()) for i in ids]
        texts.add(split, [row.id for row in rows], [tokenizer.has_special_string(text) for text in plain])
    if targets.count or texts.count:
        yield Finding(
            "special-strings",
            "note",
            f"{targets} have special-token strings in their target, and {texts} looked at have some anywhere; "
            "they are plain text here",
            targets.where or texts.where,
            "if they are meant as control tokens, give the conversation as messages",
            measured=targets.count,
            expected=0,
        )
