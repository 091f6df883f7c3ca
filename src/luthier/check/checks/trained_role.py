from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from luthier.check.chat_turns import Turns, openers, template_options, turns
from luthier.check.columns import Offenders, batches, count, flat
from luthier.check.context import CheckContext, Skip
from luthier.records import Finding
from luthier.registry import check

# A slip of the mask in every tenth row is taught; in a few rows it is rather a matter of these rows.
ERROR_SHARE = 0.1


@check("trained-role")
def trained_role(context: CheckContext) -> Iterator[Finding]:
    """Only the assistant's turns are trained, or whole conversations.

    What it does: renders the tokenizer's chat template to learn what opens the turns of user, tool, system and
    assistant, finds these in all rows of all splits, and counts the trained tokens of each turn. A turn of another role
    that is trained while other turns of the row are not is a mask that spills over or is inverted: an error from 10% of
    the conversations, else a warning. Conversations that are trained as a whole are a note.

    Why is this bad: the model learns to write the user's next question, or to make up what a tool answers, in place of
    waiting for it.

    Example: a mask that runs from the assistant's header to the next user's, over the tool's output between them.

    Fix: let the mask end with the stop token of each assistant turn.

    Catalogue: 15
    """
    context.only_tokens()
    marks = openers(context.tokenizer, template_options(context))
    spilled, whole = Offenders(context), Offenders(context)
    counts = _Counts()
    for split, batch in batches(context, "id", "input_ids", "loss_weights"):
        offsets, ids = flat(batch.column("input_ids"))
        _, weights = flat(batch.column("loss_weights"))
        found = turns(offsets, ids, marks)
        chats = np.zeros(batch.num_rows, dtype=bool)
        chats[found.rows] = True
        bad, all_ = _judge(found, weights, batch.num_rows, counts)
        names = batch.column("id").filter(chats)
        spilled.add(split, names, bad[chats])
        whole.add(split, names, all_[chats])
    if not spilled.num_rows:
        raise Skip("no row holds a turn as the tokenizer's chat template opens it")
    if spilled.count:
        yield _spilled(spilled, counts)
    if whole.count:
        others = sum(counts.whole.values()) - counts.whole["assistant"]
        yield Finding(
            "trained-role",
            "note",
            f"{whole} train the whole conversation: {others:,} of their {sum(counts.whole.values()):,} trained tokens are "
            "the user's, system's or tool's",
            whole.where,
            "if only answers shall be learned, mask the rest (assistant_only_loss, completion_only_loss, train_on_inputs: false)",
            measured=whole.count,
        )


@dataclass
class _Counts:
    """Trained tokens by role, in rows whose mask spills over and in those that are trained as a whole; turns spilled."""

    spilled: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)
    inverted: int = 0


def _judge(
    found: Turns, weights: np.ndarray, num_rows: int, counts: _Counts
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows train a part of other roles, and which train all of them; bool, shape (num_rows,)."""
    num_trained = count(weights != 0, found.begin, found.end)
    own = found.roles == found.names.index("assistant")
    # The first token of a row has no label anywhere, and padding by id takes those of stop tokens.
    mostly = num_trained >= 0.5 * (found.end - found.begin)

    def rows_with(marks: np.ndarray) -> np.ndarray:
        rows = np.zeros(num_rows, dtype=bool)
        rows[found.rows[marks]] = True
        return rows

    other = rows_with(~own & (num_trained > 0))
    whole = other & ~rows_with(~mostly)
    bad = other & ~whole
    in_body = count(weights != 0, np.minimum(found.body, found.end), found.end)
    answered = own & (in_body >= 0.5 * (found.end - found.body))
    counts.inverted += int((bad & ~rows_with(answered)).sum())
    for rows, tokens in ((bad, counts.spilled), (whole, counts.whole)):
        inside = rows[found.rows]
        for role, name in enumerate(found.names):
            marks = inside & (found.roles == role)
            tokens[name] += int(num_trained[marks].sum())
            if tokens is counts.spilled:
                counts.turns[name] += int((num_trained[marks] > 0).sum())
    return bad, whole


def _spilled(spilled: Offenders, counts: _Counts) -> Finding:
    roles = {role: n for role, n in counts.spilled.items() if n and role != "assistant"}
    said = ", ".join(f"{n:,} of {role} in {counts.turns[role]:,} turns" for role, n in roles.items())
    total = sum(counts.spilled.values())
    inverted = counts.inverted >= 0.5 * spilled.count
    why = "the mask is inverted: no answer is trained in most of them" if inverted else "the mask spills over"
    return spilled.finding(
        "trained-role",
        "error" if spilled.share >= ERROR_SHARE else "warning",
        f"{spilled} that are conversations train {said} (of {total:,} trained tokens): {why}",
        "label what the assistant says, and only that"
        if inverted
        else "let the mask end with the stop token of each assistant turn, before the next turn begins",
    )
