"""A conversation as spans, through the chat template that comes with the model's tokenizer.

The template is rendered with a placeholder for each message's content: what stands between placeholders is markup (where
control tokens are control tokens), the contents are data (where they never are). What is trained, and what may be
dropped, is found by rendering beginnings and ends of the conversation by themselves; no template is known here.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jinja2 import TemplateSyntaxError

from luthier.encoding.templates import RowError
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.records import Span, Trim


@dataclass(frozen=True, slots=True)
class _Chat:
    """A rendered conversation.

    Attributes:
        messages: With the contents that stand in the text.
        marked: The same with placeholders as contents.
        text: The rendering of ``marked``.
        places: Start and end of each message's placeholder in ``text``, by message.
        tokenizer: Whose template it is.
        options: Further variables of the template.
    """

    messages: list[dict[str, Any]]
    marked: list[dict[str, Any]]
    text: str
    places: dict[int, tuple[int, int]]
    tokenizer: TextTokenizer
    options: Mapping[str, Any]


def chat_spans(
    messages: Sequence[Mapping[str, Any]],
    weights: Sequence[float],
    tokenizer: TextTokenizer,
    options: Mapping[str, Any] | None = None,
) -> list[Span]:
    """The spans of a conversation, up to the stop token of its last trained turn: no trained token sees what follows.

    The weight of a turn goes to all that a model writes after the generation prompt: markup before the content if
    the template has any there, the content, and the markup behind it through the stop token. So the text before the
    last trained turn is exactly what the template gives for generation.

    Trimming: earlier rounds (a user's turn and all up to the next one) are dropped whole, oldest first, as far as
    what stays is exactly what the template gives without them; then the text of the last user turn is cut from the left.
    System messages, markup and the last round's other turns stay.

    Args:
        messages: ``role`` and ``content`` (text), and what else the template knows.
        weights: Loss weight of each message, shape (message,). Not all are 0.
        tokenizer: The model's.
        options: Further variables of the template.

    Raises:
        RowError: ``template-refuses``; ``template-changes-content``; ``template-rewrites-history`` (what precedes a
            trained turn is not what generation would be given).
        UserError: No chat template, one that does not parse, or one that ends no turn with a stop token.
    """
    last = max(i for i, weight in enumerate(weights) if weight)
    chat = _render_marked([dict(message) for message in messages[: last + 1]], tokenizer, options or {})
    trained = [
        (_end_of_prompt(chat, i), _end_of_turn(chat, i), weights[i]) for i in range(last + 1) if weights[i]
    ]
    end = trained[-1][1]
    rounds = _droppable_rounds(chat)
    last_user = max((i for i, message in enumerate(chat.messages) if message["role"] == "user"), default=None)
    contents = {start: i for i, (start, _) in chat.places.items()}

    cuts = {0, end, *rounds, *(cut for place in chat.places.values() for cut in place)}
    cuts |= {cut for start, stop, _ in trained for cut in (start, stop)}
    spans = []
    for start, stop in pairwise(sorted(cut for cut in cuts if cut <= end)):
        weight = next((weight for a, b, weight in trained if a <= start < b), 0.0)
        level = bisect_right(rounds, start)
        droppable = 0 < level < len(rounds)
        trim: Trim = "drop" if droppable else "never"
        priority = level
        message = contents.get(start)
        if message is None:
            closes = any(stop == b for _, b, _ in trained)
            name, text = "stop" if closes else "markup", chat.text[start:stop]
        else:
            name, text = str(chat.messages[message]["role"]), chat.messages[message]["content"]
            if message == last_user and not weight and not droppable:
                trim = "left"  # after all rounds: its level is the highest
        spans.append(Span(text, name, weight, trim, priority, control=message is None))
    return spans


def _render(
    messages: list[dict[str, Any]],
    tokenizer: TextTokenizer,
    options: Mapping[str, Any],
    *,
    generation: bool = False,
) -> str:
    """The template's text; ``generation`` adds what stands before the next assistant turn."""
    if not tokenizer.hf.chat_template:
        raise UserError(
            "the model's tokenizer has no chat template",
            "recipe key task.format",
            "take the Instruct version of the model, or task.format=plain with task.prompt_template",
        )
    if not messages:
        raise RowError("template-refuses", "nothing stands before the first assistant turn")
    try:
        text = tokenizer.hf.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation, **options
        )
    except TemplateSyntaxError as error:
        raise UserError(
            f"the model's chat template does not parse: {error.message}",
            f"chat_template, line {error.lineno}",
            "mend the template in the model's folder",
        ) from error
    except Exception as error:  # templates raise what they like: unknown roles, roles that do not alternate
        raise RowError("template-refuses", f"{type(error).__name__}: {error}") from error
    return str(text)


def _render_marked(
    messages: list[dict[str, Any]], tokenizer: TextTokenizer, options: Mapping[str, Any]
) -> _Chat:
    """The conversation with placeholders, once it is sure that putting the contents back gives the template's text."""
    wanted = _render(messages, tokenizer, options)
    detail = ""
    # Many templates trim contents, some only the assistant's; then the trimmed contents are what the model sees.
    for stripped in ((), ("assistant",), {message["role"] for message in messages}):
        tried = [m | {"content": m["content"].strip()} if m["role"] in stripped else m for m in messages]
        # A hash of the contents is in none of them, and letters and digits survive trimming and JSON.
        key = hashlib.sha256(
            "\0".join(m["content"] for m in messages).encode("utf-8", "surrogatepass")
        ).hexdigest()
        marked = [m | {"content": f"x{key}n{i}x"} for i, m in enumerate(tried)]
        text = _render(marked, tokenizer, options)
        found = list(re.finditer(rf"x{key}n(\d+)x", text))
        if sorted(int(match[1]) for match in found) != list(range(len(messages))):
            detail = detail or "the template leaves out or repeats a message's content"
            continue
        contents = [message["content"] for message in tried]
        given = re.sub(rf"x{key}n(\d+)x", lambda match, contents=contents: contents[int(match[1])], text)  # type: ignore[misc]  # a default that mypy cannot infer
        if given == wanted:
            return _Chat(tried, marked, text, {int(m[1]): m.span() for m in found}, tokenizer, options)
        detail = detail or f"the template gives {_difference(wanted, given)}"
    raise RowError("template-changes-content", detail)


def _difference(text: str, expected: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b),
        min(len(text), len(expected)),
    )
    return f"{text[at : at + 40]!r} in place of {expected[at : at + 40]!r}"


def _end_of_prompt(chat: _Chat, turn: int) -> int:
    """Where the generation prompt of a turn ends."""
    prompt = _render(chat.marked[:turn], chat.tokenizer, chat.options, generation=True)
    if not chat.text.startswith(prompt) or len(prompt) > chat.places[turn][0]:
        raise RowError(
            "template-rewrites-history",
            f"before turn {turn} training would have {_difference(chat.text, prompt)} at generation",
        )
    return len(prompt)


def _end_of_turn(chat: _Chat, turn: int) -> int:
    """Behind the first stop token after a turn's content."""
    start = chat.places[turn][1]
    limit = min((a for a, _ in chat.places.values() if a >= start), default=len(chat.text))
    stops = [str(chat.tokenizer.hf.convert_ids_to_tokens(i)) for i in sorted(chat.tokenizer.stop_ids)]
    ends = [at + len(stop) for stop in stops if (at := chat.text.find(stop, start, limit)) >= 0]
    if not ends:
        raise UserError(
            f"the chat template ends an assistant turn with {chat.text[start:limit]!r}, which holds no stop token "
            f"({', '.join(map(repr, stops)) or 'the model has none'}): generation would never end",
            "the tokenizer's chat_template",
            "name the token that ends a turn as eos_token_id in the model's generation_config.json, "
            "or set task.format=plain",
        )
    return min(ends)


def _droppable_rounds(chat: _Chat) -> list[int]:
    """Borders in the text: from the first to the n-th lies what goes with the oldest n - 1 rounds; fewer than two: none.

    The cut runs from content to content, so that ``<user> A <end> <assistant> B <end> <user> C`` loses
    ``A <end> <assistant> B <end> <user>``: it holds for templates that put BOS or the system text into the first turn.
    """
    roles = [message["role"] for message in chat.messages]
    first = next((i for i, role in enumerate(roles) if role not in ("system", "developer")), 0)
    borders = [chat.places[first][0]]
    for i in range(first + 1, len(roles)):
        if roles[i] != "user" or roles[i - 1] == "user":
            continue
        try:
            without = _render(chat.marked[:first] + chat.marked[i:], chat.tokenizer, chat.options)
        except RowError:
            break
        border = len(chat.text) - len(without) + borders[0]
        if border <= borders[-1] or chat.text[: borders[0]] + chat.text[border:] != without:
            break
        borders.append(border)
    return borders
