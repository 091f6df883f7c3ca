from __future__ import annotations

from collections.abc import Iterator, Set

import numpy as np

from luthier.check.columns import Offenders, sampled
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Finding, Row
from luthier.registry import check

# Decoding takes about 0.1 ms a row: one second a split, and a defect of one row in a thousand is still likely seen.
NUM_ROWS = 2000


@check("target-whole")
def target_whole(context: CheckContext) -> Iterator[Finding]:
    """The trained tokens, decoded, are the target's text: nothing is cut off, and nothing else is trained.

    What it does: decodes the trained ids of 2,000 rows of each split, evenly spread, without control tokens, and
    compares them with the target's text. Rows whose text the tokenizer cannot give back are left out and counted
    (see tokenizer-loss).

    Why is this bad: a target that was cut teaches half answers; a mask that spills over teaches the model to write the
    user's or a tool's part.

    Example: the trained ids say ``return a +`` where the target is ``return a + b``.

    Fix: look at the row with ``luthier show``. Prepare anew if the tokenizer has changed; else the task or a plug-in
    gives weights to the wrong span.

    Catalogue: 2, 14, 15, 16, 17, 18
    """
    if not isinstance(context, RunContext):
        raise Skip("the targets were made of the tokens themselves here")
    context.only_tokens()
    wrong = Offenders(context)
    num_lossy = 0
    example = ""
    for split, rows in sampled(context, NUM_ROWS):
        whole = [row for row in rows if not row.lossy]
        num_lossy += len(rows) - len(whole)
        bad = [not _is_whole(row, context.tokenizer) for row in whole]
        wrong.add(split, [row.id for row in whole], bad)
        if not example and any(bad):
            row = whole[bad.index(True)]
            said = _text(row, context.tokenizer, context.tokenizer.special_ids)
            example = f"{said[-40:]!r} instead of {row.target[-40:]!r}"
    if wrong.count:
        yield wrong.finding(
            "target-whole",
            "error",
            f"{wrong} train other text than their target, the first ends with {example}; {num_lossy} lossy rows left out",
            "look at one of them with `luthier show`; prepare anew (delete data/) if the tokenizer has changed",
        )
    elif not wrong.num_rows:
        raise Skip(f"all {num_lossy} rows looked at are lossy (see tokenizer-loss)")


def _is_whole(row: Row, tokenizer: TextTokenizer) -> bool:
    # A control span is known by its control token. Some (``<think>``) are added without being special, and those
    # may also stand in data; then only one of the two readings can be right.
    added = {int(i) for i in tokenizer.hf.added_tokens_decoder}
    return any(_text(row, tokenizer, control) == row.target for control in (tokenizer.special_ids, added))


def _text(row: Row, tokenizer: TextTokenizer, control: Set[int]) -> str:
    """The text of a row's trained tokens, without the spans that hold a control token."""
    ids, spans = np.asarray(row.input_ids), np.asarray(row.span_ids)
    trained = np.asarray(row.loss_weights) != 0
    marks = trained & np.isin(ids, list(control))
    places = np.flatnonzero(trained & ~np.isin(spans, spans[marks]))
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(places) else []
    start = len(tokenizer.prefix_ids)
    return "".join(tokenizer.decode(ids[run].tolist(), first=int(run[0]) == start) for run in runs)
