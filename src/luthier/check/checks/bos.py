from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from luthier.check.chat_turns import rendered
from luthier.check.columns import Offenders, batches, flat
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.check.row_ends import is_stream, row_ends
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Finding
from luthier.registry import check

# With fewer rows than these the model still knows the beginning that it was pretrained with.
ERROR_SHARE = 0.5


@check("bos")
def bos(context: CheckContext) -> Iterator[Finding]:
    """Every row begins as the tokenizer begins a text, with one BOS where it puts one.

    What it does: compares the first ids of all rows of all splits with what the tokenizer itself puts before a text,
    and looks for a second BOS behind it; renders the chat template to see whether it writes one too. Rows that are
    blocks of one stream of texts may begin with anything. An error in a recipe's run; elsewhere from half of the rows,
    and a missing BOS is a warning where the chat template writes none either, for then generation has none.

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
        begins = [_ids_at(offsets, ids, place) for place in range(max(1, len(prefix)) + 1)]
        missing = np.zeros(batch.num_rows, dtype=bool)
        for place, expected in enumerate(prefix.tolist()):
            missing |= begins[place] != expected
        without.add(split, batch.column("id"), missing)
        if tokenizer.bos_id is not None:
            twice.add(
                split,
                batch.column("id"),
                (begins[-2] == tokenizer.bos_id) & (begins[-1] == tokenizer.bos_id),
            )
    if without.count:
        yield from _missing(context, without)
    if twice.count:
        yield from _twice(context, twice)


def _ids_at(offsets: np.ndarray, ids: np.ndarray, place: int) -> np.ndarray:
    """The id at one place of each row, -1 behind its end."""
    if not len(ids):
        return np.full(len(offsets) - 1, -1)
    there = np.diff(offsets) > place
    return np.where(there, ids[np.minimum(offsets[:-1] + place, len(ids) - 1)], -1)


def _missing(context: CheckContext, without: Offenders) -> Iterator[Finding]:
    tokenizer = context.tokenizer
    ours = isinstance(context, RunContext)
    if not ours and is_stream(row_ends(context)):
        return
    prefix = tokenizer.decode(tokenizer.prefix_ids)
    template = rendered(tokenizer, [{"role": "user", "content": "x"}])
    like_template = not ours and template is not None and not template.startswith(prefix)
    said = f"{without} do not begin with {prefix!r}, which the tokenizer puts before a text"
    if like_template:
        said += "; the chat template does not write it either"
    elif template is not None:
        said += ", and so does the chat template"
    yield without.finding(
        "bos",
        "error" if ours or (without.share >= ERROR_SHARE and not like_template) else "warning",
        said,
        context.fix(
            "prepare anew (delete data/): the tokenizer has changed since",
            "write {{ bos_token }} at the beginning of the chat template, unless the model was tuned without"
            if like_template
            else "encode with add_special_tokens=True, or with a template that writes it",
        ),
    )


def _twice(context: CheckContext, twice: Offenders) -> Iterator[Finding]:
    tokenizer = context.tokenizer
    name = tokenizer.decode([tokenizer.bos_id or 0])
    why = ""
    fix = "write it in one place: take {{ bos_token }} out of the template, or add_bos_token out of tokenizer_config.json"
    if not isinstance(context, RunContext) and _written_by_both(tokenizer, name):
        why = ": the chat template writes it, and the tokenizer adds another"
        fix = "encode what the chat template gives with add_special_tokens=False, or let apply_chat_template encode it"
    yield twice.finding(
        "bos",
        "error" if isinstance(context, RunContext) or twice.share >= ERROR_SHARE else "warning",
        f"{twice} begin with {name!r} twice{why}",
        fix,
    )


def _written_by_both(tokenizer: TextTokenizer, name: str) -> bool:
    template = rendered(tokenizer, [{"role": "user", "content": "x"}])
    return template is not None and template.startswith(name) and tokenizer.adds_bos
