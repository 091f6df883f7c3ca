from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.check.chat_turns import (
    Openers,
    assistant,
    find,
    openers,
    rendered,
    template_options,
    turns,
    user,
)
from luthier.check.columns import Offenders, batches, count, flat, num_alike
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Finding
from luthier.registry import check

# Half of the rows and more: the model is trained to go on from another prompt than it will get.
ERROR_SHARE = 0.5
# Rows in which thinking is looked for; a share of 1% shows.
NUM_ROWS = 500
_THOUGHT = "<think>\nmused0thought\n</think>\n\n"


@check("template-prefix")
def template_prefix(context: CheckContext) -> Iterator[Finding]:
    """What the chat template gives for the beginning of a conversation is the beginning of what it gives for the whole.

    What it does: renders a conversation of three rounds and each beginning of it, for training and for generation, and
    compares the texts; with thinking in the answers too, if rows have any. What is not stable counts only as far as rows
    are concerned, all of which are looked at: conversations with several trained answers for a history that is
    rewritten (a warning), and those without the generation prompt before their answers (an error from half of them).
    A template that asks for the date of the day is a note.

    Why is this bad: the model is trained after another prompt than ``generate`` gives it, or trained to answer in a form
    in the middle of a conversation (without thinking, say) that it is not to use at the end of one.

    Example: Qwen3's template drops ``<think>`` from all answers but the last, so the first of two trained answers has none.

    Fix: train the last answer of each conversation only (``task.turn_weights: last``), with one row for each answer; or a
    template that keeps history as it is.

    Catalogue: 9, 10
    """
    context.only_tokens()
    tokenizer, options = context.tokenizer, template_options(context)
    marks = openers(tokenizer, options)
    rows = _rows(context, marks, _generation(tokenizer, options))
    if not rows.chats.count:
        raise Skip("no row holds a turn as the tokenizer's chat template opens it")
    thoughts = ["", *([_THOUGHT] if _think(context) else [])]
    for thought in thoughts:
        if (prompt := _other_prompt(tokenizer, options, thought)) and rows.without.count:
            yield _unlike_generation(context, rows, *prompt)
            break
    for thought in thoughts:
        if (answer := _other_history(tokenizer, options, thought)) and rows.several.count:
            yield _rewritten(rows, *answer)
            break
    if _is_dated(tokenizer, options):
        yield Finding(
            "template-prefix",
            "note",
            f"the chat template writes the date of the day into the prompt: {rows.chats.count:,} rows hold that of the "
            "day they were prepared on, and generation has another each day",
            "the tokenizer's chat_template",
            'give the template a fixed date where it takes one (date_string="26 Jul 2024"), in training and generation',
            measured=rows.chats.count,
        )


def _is_dated(tokenizer: TextTokenizer, options: Mapping[str, Any]) -> bool:
    """Whether the template asks for the time: then it cannot be rendered where there is no clock to ask."""
    return (
        "strftime_now" in str(tokenizer.hf.chat_template)
        and rendered(tokenizer, [user(0)], **options) is not None
        and rendered(tokenizer, [user(0)], **options, strftime_now="no clock") is None
    )


@dataclass
class _Rows:
    """Conversations: all of them, those with several trained answers, and those without the generation prompt."""

    chats: Offenders
    several: Offenders
    without: Offenders


def _rows(context: CheckContext, marks: Openers, prompts: list[tuple[int, ...]]) -> _Rows:
    found = _Rows(*(Offenders(context) for _ in range(3)))
    for split, batch in batches(context, "id", "input_ids", "loss_weights"):
        offsets, ids = flat(batch.column("input_ids"))
        _, weights = flat(batch.column("loss_weights"))
        parts = turns(offsets, ids, marks)
        own = parts.roles == parts.names.index("assistant")
        answers = own & (count(weights != 0, parts.begin, parts.end) > 0)
        num_answers = np.bincount(parts.rows[answers], minlength=batch.num_rows)
        places = np.concatenate([find(offsets, ids, prompt) for prompt in prompts])
        num_prompts = np.bincount(
            np.searchsorted(offsets, np.unique(places), side="right") - 1, minlength=batch.num_rows
        )
        chats = num_answers > 0
        names = batch.column("id").filter(chats)
        found.chats.add(split, names, chats[chats])
        found.several.add(split, names, num_answers[chats] > 1)
        found.without.add(split, names, num_prompts[chats] == 0)
    return found


def _generation(tokenizer: TextTokenizer, options: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """The ids of the generation prompt: what follows a user's text, from the first control token on; two readings."""
    text = rendered(tokenizer, [user(0)], generation=True, **options)
    content = user(0)["content"]
    if text is None or content not in text:
        raise Skip("the chat template refuses a single question")
    markup = text[text.index(content) + len(content) :].rstrip()
    both = tokenizer.encode(markup, control=True), tokenizer.hf(markup, add_special_tokens=False)["input_ids"]
    return sorted({tuple(map(int, ids)) for ids in both})


def _think(context: CheckContext) -> bool:
    """Whether answers think before they speak, by the name of the control tokens that all such models share."""
    for split in context.rows:
        for row in context.spread(split, NUM_ROWS):
            if "</think>" in context.tokenizer.decode(row.input_ids.tolist()):
                return True
    return False


def _conversation(thought: str) -> list[dict[str, Any]]:
    return [message for i in range(3) for message in (user(i), assistant(i, thought))]


def _other_prompt(
    tokenizer: TextTokenizer, options: Mapping[str, Any], thought: str
) -> tuple[str, str] | None:
    """What stands before an answer in training and in generation, where these differ."""
    messages = _conversation(thought)
    for end in range(2, len(messages) + 1, 2):
        whole = rendered(tokenizer, messages[:end], **options)
        prompt = rendered(tokenizer, messages[: end - 1], generation=True, **options)
        if whole is not None and prompt is not None and not whole.startswith(prompt):
            return _difference(whole, prompt)
    return None


def _other_history(
    tokenizer: TextTokenizer, options: Mapping[str, Any], thought: str
) -> tuple[str, str] | None:
    """The first answer as it is with further rounds behind it, and as the last one, where these differ."""
    messages = _conversation(thought)
    content = assistant(0)["content"]
    alone, whole = (rendered(tokenizer, part, **options) for part in (messages[:2], messages))
    if alone is None or whole is None or content not in alone or content not in whole:
        return None
    alone = alone[: alone.rindex(content) + len(content)]
    return None if whole.startswith(alone) else _difference(whole, alone)


def _difference(text: str, other: str) -> tuple[str, str]:
    """Both from where they part."""
    at = num_alike(text, other)
    return text[at : at + 40], other[at : at + 40]


def _unlike_generation(context: CheckContext, rows: _Rows, trained: str, generated: str) -> Finding:
    ours = isinstance(context, RunContext)
    return rows.without.finding(
        "template-prefix",
        "error" if ours or rows.without.share >= ERROR_SHARE else "warning",
        f"{rows.without} that are conversations have another prompt before their answers than generation gives: the chat "
        f"template writes {trained!r} in training and {generated!r} for generation",
        "put what the generation prompt adds into the trained rows as well, or mend the chat template",
    )


def _rewritten(rows: _Rows, later: str, last: str) -> Finding:
    return rows.several.finding(
        "template-prefix",
        "warning",
        f"the chat template rewrites history, and {rows.several} that are conversations train several answers: an answer "
        f"that others follow is {later!r}, where as the last one it is {last!r}",
        "train the last answer of each conversation only, with one row for each answer (task.turn_weights=last in a "
        "recipe); or take a template that keeps history as it is",
    )
