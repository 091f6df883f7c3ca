from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from luthier.check.columns import Offenders, batches, flat
from luthier.check.context import CheckContext, Skip
from luthier.records import Finding
from luthier.registry import check


@check("bos")
def bos(context: CheckContext) -> Iterator[Finding]:
    """Every row begins as the tokenizer begins a text, with one BOS where it puts one.

    What it does: compares the first ids of all rows of all splits with what the tokenizer itself puts before a text,
    and looks for a second BOS behind it.

    Why is this bad: models were pretrained with one BOS, or none; two or a missing one make the first tokens, and for
    some models everything, less likely. As a rule the chat template writes one and the tokenizer adds another.

    Example: ``<s><s>[INST] ...``.

    Fix: take ``{{ bos_token }}`` out of the template, or prepare anew if the tokenizer's setting has changed.

    Catalogue: 7, 8
    """
    context.only_tokens()
    tokenizer = context.tokenizer
    prefix = np.array(tokenizer.prefix_ids, dtype=np.int64)
    if not len(prefix) and tokenizer.bos_id is None:
        raise Skip("the tokenizer has no BOS and puts nothing before a text")
    without, twice = Offenders(context), Offenders(context)
    for split, batch in batches(context, "id", "input_ids"):
        offsets, ids = flat(batch.column("input_ids"))
        lengths = np.diff(offsets)
        missing = lengths < len(prefix)
        for place, expected in enumerate(prefix.tolist()):
            missing |= ids[np.minimum(offsets[:-1] + place, len(ids) - 1)] != expected
        without.add(split, batch.column("id"), missing)
        if tokenizer.bos_id is not None:
            second = max(1, len(prefix))
            double = lengths > second
            for place in (second - 1, second):
                double &= ids[np.minimum(offsets[:-1] + place, len(ids) - 1)] == tokenizer.bos_id
            twice.add(split, batch.column("id"), double)
    if without.count:
        yield Finding(
            "bos",
            "error",
            f"{without} do not begin with {tokenizer.decode(prefix.tolist())!r}, which the tokenizer puts before a text",
            without.where,
            context.fix(
                "prepare anew (delete data/): the tokenizer has changed since",
                "encode with add_special_tokens=True, or with a template that writes it",
            ),
            measured=without.count,
            expected=0,
        )
    if twice.count:
        yield Finding(
            "bos",
            "error",
            f"{twice} begin with {tokenizer.decode([tokenizer.bos_id or 0])!r} twice",
            twice.where,
            "write it in one place: take {{ bos_token }} out of the template, or add_bos_token out of tokenizer_config.json",
            measured=twice.count,
            expected=0,
        )
