from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from luthier.check.columns import Offenders, sampled
from luthier.check.context import CheckContext
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Finding, Row
from luthier.registry import check

# 500 rows show a share of 1% as 5 rows.
NUM_ROWS = 500
# A cut that the task places by rule is unnatural in most rows or in almost none; a few odd characters are no rule.
MOST_SHARE = 0.01
# Tokens on either side of the border that are tokenised again; merges do not reach farther.
NUM_TOKENS = 64


@check("natural-boundary")
def natural_boundary(context: CheckContext) -> Iterator[Finding]:
    """Prompts end where tokens would end if prompt and target were one text.

    What it does: encodes prompt and target of 500 rows of each split as one text (64 tokens on either side of the
    border), and compares its beginning with the ids of the prompt alone. A warning from 1% of the rows of a split.

    Why is this bad: a prompt that ends inside of what the tokenizer always merges (a newline and the indent behind it, a
    trailing space) is one that the model has never seen; it drifts into prose or garbage though it knows the text. On
    lines of real code this alone took a model's exact match from 10% to 0.

    Example: the prompt ends with a newline, and the target begins with the indent.

    Fix: end the prompt at its last visible character and begin the target with the white space.

    Catalogue: 11, 14, 82
    """
    context.only_tokens()
    broken = Offenders(context)
    for split, rows in sampled(context, NUM_ROWS):
        rows = [row for row in rows if row.num_prompt_tokens]
        breaks = [_breaks(row, context.tokenizer) for row in rows]
        if sum(breaks) > MOST_SHARE * len(rows):
            broken.add(split, [row.id for row in rows], breaks)
    if broken.count:
        yield broken.finding(
            "natural-boundary",
            "warning",
            f"in {broken} of the {' and '.join(broken.ids)} split the prompt ends inside a token of the whole text",
            "move the white space at the end of the prompt to the beginning of the target",
            MOST_SHARE,
        )


def _breaks(row: Row, tokenizer: TextTokenizer) -> bool:
    ids = np.asarray(row.input_ids)
    border = row.num_prompt_tokens
    trained = np.asarray(row.loss_weights)[border:] != 0
    end = border + (int(np.argmin(trained)) if not trained.all() else len(trained))
    prompt, target = ids[max(0, border - NUM_TOKENS) : border], ids[border : min(end, border + NUM_TOKENS)]
    special = list(tokenizer.special_ids)
    # Nothing is ever merged over a control token.
    if np.isin(prompt[-1:], special).any() or np.isin(target[:1], special).any():
        return False
    prompt = prompt[int(np.max(np.flatnonzero(np.isin(prompt, special)), initial=-1)) + 1 :]
    target = target[: int(np.min(np.flatnonzero(np.isin(target, special)), initial=len(target)))]
    text = tokenizer.decode(prompt.tolist())
    alone, joint = tokenizer.encode(text), tokenizer.encode(text + tokenizer.decode(target.tolist()))
    return joint[: len(alone)] != alone
