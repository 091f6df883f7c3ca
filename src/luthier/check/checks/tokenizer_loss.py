from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from luthier.check.columns import Offenders, batches, count, flat
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.records import Finding
from luthier.registry import check

# Targets of lossy rows in which the characters are looked for, so that a lossy tokenizer does not take minutes.
NUM_TARGETS = 200
# Real text has an odd character here and there; more is a language or notation that the tokenizer was not made for.
MOST_UNKNOWN = 0.01


@check("tokenizer-loss")
def tokenizer_loss(context: CheckContext) -> Iterator[Finding]:
    """Decoding gives back the text that was encoded.

    What it does: counts, in all rows of all splits, those whose ids do not decode to their text; then looks for the
    characters in the targets of the first 200 of them that the tokenizer does not give back one by one. Where only ids
    are known it counts the unknown token in them; a warning from 1% of all tokens, else a note.

    Why is this bad: the model never sees what is lost and can never write it. In code, a lost tab or letter is a bug.

    Example: a WordPiece tokenizer that turns every newline into a space; an unknown character that becomes ``<unk>``.

    Fix: take a model with a byte-level tokenizer, or clean the characters named.

    Catalogue: 20
    """
    if not isinstance(context, RunContext):
        yield from _unknown(context)
        return
    lossy = Offenders(context)
    characters: set[str] = set()
    num_targets = 0
    for split, batch in batches(context, "id", "lossy", "target"):
        bad = batch.column("lossy").to_numpy(zero_copy_only=False)
        lossy.add(split, batch.column("id"), bad)
        places = np.flatnonzero(bad)[: NUM_TARGETS - num_targets]
        num_targets += len(places)
        for target in pc.take(batch.column("target"), places).to_pylist():
            characters.update(target)
    if lossy.count:
        lost = sorted(c for c in characters if context.tokenizer.decode(context.tokenizer.encode(c)) != c)
        shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in lost[:10])
        yield Finding(
            "tokenizer-loss",
            "warning",
            f"{lossy} are not what they were after {type(context.tokenizer.hf).__name__} of {context.model_name}: "
            + (
                f"{len(lost)} characters are lost, {shown}"
                if lost
                else "no single character of a target is lost"
            ),
            lossy.where,
            "take a model with a byte-level tokenizer, or replace these characters in the source",
            measured=round(lossy.share, 6),
            expected=0,
        )


def _unknown(context: CheckContext) -> Iterator[Finding]:
    """Text that ids do not hold, as far as they show it."""
    hf = context.tokenizer.hf
    if hf.unk_token_id is None or hf.unk_token_id in (hf.bos_token_id, hf.eos_token_id, hf.pad_token_id):
        raise Skip("only ids are known here, and no id of this tokenizer stands for lost text alone")
    if "ByteLevel" in str(hf.backend_tokenizer.pre_tokenizer) + str(hf.backend_tokenizer.decoder):
        raise Skip("only ids are known here, and a tokenizer of bytes loses none")
    holding = Offenders(context)
    num_tokens = num_unknown = 0
    for split, batch in batches(context, "id", "input_ids"):
        offsets, ids = flat(batch.column("input_ids"))
        unknown = ids == hf.unk_token_id
        holding.add(split, batch.column("id"), count(unknown, offsets[:-1], offsets[1:]) > 0)
        num_tokens, num_unknown = num_tokens + len(ids), num_unknown + int(unknown.sum())
    if holding.count:
        share = num_unknown / num_tokens
        yield Finding(
            "tokenizer-loss",
            "warning" if share >= MOST_UNKNOWN else "note",
            f"{holding} hold {hf.unk_token}, {num_unknown:,} of {num_tokens:,} tokens ({share:.2%}): what stood there is lost",
            holding.where,
            "take a model with a byte-level tokenizer, or replace these characters in the source",
            measured=num_unknown,
            expected=0,
        )
