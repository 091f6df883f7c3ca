"""Where the turns of conversations lie in rows, by the markup of the tokenizer's own chat template.

No template is known here: conversations are rendered with placeholders, and what stands between these is the markup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.check.columns import num_alike
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.encoding.text_tokenizer import TextTokenizer

Message = Mapping[str, Any]
_CALL = {"id": "call12345", "type": "function", "function": {"name": "look", "arguments": {"at": "7"}}}


def user(number: int) -> dict[str, Any]:
    """A user's message that can be found again in what the template makes of it."""
    return {"role": "user", "content": f"asked{number}question"}


def assistant(number: int, thought: str = "") -> dict[str, Any]:
    """An assistant's answer, with or without what it thinks before."""
    return {"role": "assistant", "content": f"{thought}given{number}answer"}


def rendered(
    tokenizer: TextTokenizer, messages: Sequence[Message], *, generation: bool = False, **options: Any
) -> str | None:
    """The chat template's text; None if there is no template or it refuses."""
    if not tokenizer.hf.chat_template:
        return None
    try:
        return str(
            tokenizer.hf.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generation,
                **options,
            )
        )
    except Exception:  # templates raise what they like: unknown roles, roles that do not alternate
        return None


def template_options(context: CheckContext) -> dict[str, Any]:
    """Further variables of the template that a recipe sets."""
    if not isinstance(context, RunContext):
        return {}
    return dict(getattr(context.task, "template_options", {}))


@dataclass(frozen=True, slots=True)
class Openers:
    """The ids that open a turn of each role; several readings of one role are all there.

    Attributes:
        ids: By role, ``assistant`` among them.
        texts: What they spell.
    """

    ids: Mapping[str, Sequence[tuple[int, ...]]]
    texts: Mapping[str, str]


def openers(tokenizer: TextTokenizer, options: Mapping[str, Any] | None = None) -> Openers:
    """What opens the turns of each role.

    Raises:
        Skip: There is no chat template, it renders no conversation, or it opens turns with plain text alone, which
            may stand in any answer.
    """
    if not tokenizer.hf.chat_template:
        raise Skip("the tokenizer has no chat template")
    given = options or {}
    rounds = [user(0), assistant(0), user(1), assistant(1)]
    whole = rendered(tokenizer, rounds, **given)
    if whole is None or any(m["content"] not in whole for m in rounds):
        raise Skip("the chat template refuses or rewrites a conversation of two rounds")
    call = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    tool = {"role": "tool", "name": "look", "content": "found0result", "tool_call_id": _CALL["id"]}
    system = {"role": "system", "content": "told0system"}
    with_tool = rendered(tokenizer, [user(0), call, tool, assistant(0)], **given)
    with_system = rendered(tokenizer, [system, *rounds[:2]], **given)
    texts: dict[str, str] = {}
    for role, text, content in (
        ("assistant", whole, assistant(0)["content"]),
        ("user", whole, user(1)["content"]),
        ("tool", with_tool, "found0result"),
        ("system", with_system, "told0system"),
    ):
        opener = _opener(tokenizer, text, content, whole, role) if text and content in text else None
        if role == "tool" and opener and opener.startswith(texts.get("assistant", opener)):
            # The result stands in the assistant's own turn, behind its call.
            opener = opener[tokenizer.special_places(opener)[-1][0] :]
        if opener and opener not in texts.values():
            texts[role] = opener
    if "assistant" not in texts or "user" not in texts:
        raise Skip("the chat template opens turns with plain text, which cannot be told from what is said")
    ids = {}
    for role, text in texts.items():
        both = tokenizer.encode(text, control=True), tokenizer.hf(text, add_special_tokens=False)["input_ids"]
        ids[role] = sorted({tuple(map(int, reading)) for reading in both})
    return Openers(ids, texts)


def _opener(tokenizer: TextTokenizer, text: str, content: str, whole: str, role: str) -> str | None:
    """The markup that opens the turn of a content: from its first control token to its last and the word behind it."""
    before = text[: text.index(content)]
    said = [m.end() for m in re.finditer(r"(asked|given)\d(question|answer)", before)]
    markup = before[max(said, default=0) :]
    # What ended the turn before: a stop token, or what also ends the last turn of all.
    stops = [str(tokenizer.hf.convert_ids_to_tokens(i)) for i in sorted(tokenizer.stop_ids)]
    ends = [
        markup.rfind(stop) + len(stop)
        for stop in stops
        if stop in markup and stop != _opening(tokenizer, whole)
    ]
    last, first = assistant(1)["content"], assistant(0)["content"]
    tail, inner = whole[whole.index(last) + len(last) :], whole[whole.index(first) + len(first) :]
    ends += [
        end
        for _, end in tokenizer.special_places(tail[: num_alike(tail, inner)])
        if markup.startswith(tail[:end])
    ]
    markup = markup[max(ends, default=0) :]
    places = tokenizer.special_places(markup)
    opening = [p for p in places if markup[slice(*p)] == _opening(tokenizer, whole)]
    if opening:
        places = [p for p in places if p >= opening[-1]]
    elif role == "tool":  # the call itself may have control tokens, which are the assistant's
        places = places[-1:]
    if (
        len(places) > 1
        and markup[slice(*places[0])] == tokenizer.hf.bos_token
        and places[0][1] == places[1][0]
    ):
        places = places[1:]
    if not places:
        return None
    word = re.match(r"\w+", markup[places[-1][1] :])
    found = markup[places[0][0] : places[-1][1] + (word.end() if word and word.end() < len(markup) else 0)]
    return None if found == tokenizer.hf.bos_token else found


def _opening(tokenizer: TextTokenizer, whole: str) -> str:
    """The control token with which a conversation's first turn begins, BOS aside; empty if there is none."""
    places = tokenizer.special_places(whole)
    names = [whole[slice(*place)] for place in places]
    if names and names[0] == tokenizer.hf.bos_token and len(places) > 1 and places[0][1] == places[1][0]:
        return names[1]
    return names[0] if names else ""


def find(offsets: np.ndarray, ids: np.ndarray, pattern: Sequence[int]) -> np.ndarray:
    """Where a sequence of ids begins in the rows of a batch, as places in the ids of all of them."""
    width = len(pattern)
    if len(ids) < width or not width:
        return np.empty(0, np.int64)
    places = np.flatnonzero(ids[: len(ids) - width + 1] == pattern[0])
    for step, expected in enumerate(pattern[1:], start=1):
        places = places[ids[places + step] == expected]
    rows = np.searchsorted(offsets, places, side="right")
    return np.asarray(places[np.searchsorted(offsets, places + width - 1, side="right") == rows])


@dataclass(frozen=True, slots=True)
class Turns:
    """The turns of the rows of one batch, in order, shape (num_turns,).

    Attributes:
        roles: Index into ``names``.
        rows: Index of each one's row.
        begin, end: From its opener's first token to the next opener, or the end of the row.
        body: Behind the opener.
        names: Roles.
    """

    roles: np.ndarray
    rows: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    body: np.ndarray
    names: Sequence[str]


def turns(offsets: np.ndarray, ids: np.ndarray, marks: Openers) -> Turns:
    """The turns of a batch's rows."""
    names = list(marks.ids)
    found: dict[int, tuple[int, int]] = {}  # begin -> role, width; the longest reading wins
    for role, name in enumerate(names):
        for pattern in marks.ids[name]:
            for place in find(offsets, ids, pattern).tolist():
                if place not in found or found[place][1] < len(pattern):
                    found[place] = (role, len(pattern))
    begin = np.array(sorted(found), dtype=np.int64)
    roles = np.array([found[place][0] for place in begin.tolist()], dtype=np.int64)
    widths = np.array([found[place][1] for place in begin.tolist()], dtype=np.int64)
    rows = np.searchsorted(offsets, begin, side="right") - 1
    row_end = offsets[1:][rows].astype(np.int64) if len(rows) else begin
    following = np.concatenate([begin[1:], [len(ids)]]) if len(begin) else begin
    return Turns(roles, rows, begin, np.minimum(row_end, following), begin + widths, names)
