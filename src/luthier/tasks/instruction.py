"""Instruction tuning: prompt and response columns, or chat messages; the loss is on what the model has to answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from luthier.encoding.chat import chat_spans
from luthier.encoding.templates import RowError, check_template, render
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError, UserErrors
from luthier.records import Dropped, Example, Record, Span, Split
from luthier.registry import task
from luthier.tasks import Task

# ShareGPT's names of the roles.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
# Arguments of apply_chat_template that are decided here.
_OURS = {
    *("conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
    *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    "tokenizer_kwargs",
}


@task("instruction")
class Instruction(Task):
    """Answer an instruction: from prompt and response columns, or from chat messages.

    ``chat`` renders the model's own chat template. The loss is on the assistant's turns and on the stop token that ends
    each; for the eval and test splits on the last turn only, since that is what is generated and compared. Too long a
    conversation loses its oldest rounds whole, then the beginning of the last user turn, never a target.

    ``plain`` is prompt, response, end-of-text token, with nothing between that the templates do not say; too long a
    prompt loses its beginning.
    """

    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "edit_similarity")
    stop_pattern: ClassVar[str | None] = None

    format: Literal["auto", "plain", "chat"] = "auto"
    """``chat`` uses the model's chat template, ``plain`` none; ``auto`` is ``chat`` where the model has one or the row is messages."""
    prompt_template: str = "{{ prompt }}"
    """Jinja template of the prompt over a row's columns, for example ``"{{ instruction }}\\n\\n{{ input }}"``."""
    response_template: str = "{{ response }}"
    """Jinja template of the response. White space is kept: in YAML, ``|-`` leaves out the last newline, ``|`` keeps it."""
    messages: str | None = "auto"
    """Column of chat messages ``[{role, content, weight?}]`` (or ShareGPT's ``from``, ``value``): ``auto`` is
    ``messages`` or ``conversations`` where a row has it; ``null`` uses the templates all the same."""
    system: str | None = None
    """System message for conversations that have none of their own."""
    turn_weights: Literal["all", "last"] = "all"
    """Train every assistant turn or the last one; a message's own ``weight`` (0 or more, 1 if absent) scales its turn."""
    template_options: dict[str, Any] = {}
    """Further variables of the chat template, for example ``{enable_thinking: false}``."""

    @model_validator(mode="after")
    def _usable(self) -> Instruction:
        errors = []
        for name in ("prompt_template", "response_template"):
            try:
                check_template(getattr(self, name), f"recipe key task.{name}")
            except UserError as error:
                errors.append(error)
        if taken := _OURS & set(self.template_options):
            errors.append(
                UserError(
                    f"{', '.join(sorted(taken))} cannot be set",
                    "recipe key task.template_options",
                    "name only variables that the chat template itself reads",
                )
            )
        if self.format == "plain" and self.system is not None:
            errors.append(
                UserError(
                    "plain text has no system message",
                    "recipe key task.system",
                    "write it into task.prompt_template",
                )
            )
        if errors:
            raise UserErrors(errors)
        return self

    def examples(
        self, record: Record, split: Split, tokenizer: TextTokenizer, *, max_length: int, seed: int
    ) -> Iterator[Example | Dropped]:
        """One example a record."""
        try:
            column = self._column(record)
            if column is None and (self.format == "plain" or not self._has_chat(tokenizer)):
                form, spans = "plain", self._plain(record, tokenizer)
            else:
                form, spans = "chat", self._chat(record, column, split, tokenizer)
        except RowError as error:
            yield Dropped(record.id, error.reason, error.detail)
        else:
            yield Example(record.id, spans, record.group, {"format": form})

    def prompt(self, text: str, tokenizer: TextTokenizer) -> list[Span]:
        """The text as a rendered prompt: by itself, or as the user's turn of the chat up to the assistant's answer."""
        if self.format == "plain" or not self._has_chat(tokenizer):
            return [Span(text, "prompt", trim="left")]
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]
        try:
            spans = self._chat(Record("prompt", {"turns": turns}, "prompt"), "turns", "test", tokenizer)
        except RowError as error:
            raise UserError(f"{error.reason}: {error.detail}", "the prompt", "give another prompt") from error
        return list(takewhile(lambda span: not span.weight, spans))

    def answer(self, text: str) -> str:
        """The text without white space around it."""
        return text.strip()

    def duplicate_text(self, record: Record) -> str:
        """Prompt and response, or the conversation without its system message, which many rows share."""
        try:
            column = self._column(record)
            if column is None:
                return "\n".join(
                    render(t, record.fields) for t in (self.prompt_template, self.response_template)
                )
            turns = _messages(record.fields[column], column)
        except RowError:
            return super().duplicate_text(record)
        return "\n".join(turn["content"] for turn in turns if turn["role"] != "system")

    def _column(self, record: Record) -> str | None:
        """The column of messages, if this row is to be taken as such."""
        if self.messages is None or self.format == "plain":
            return None
        if self.messages == "auto":
            return next((name for name in ("messages", "conversations") if name in record.fields), None)
        if self.messages not in record.fields:
            raise RowError(
                "missing-field", f"no column {self.messages!r}; the row has: {', '.join(record.fields)}"
            )
        return self.messages

    def _has_chat(self, tokenizer: TextTokenizer) -> bool:
        if self.format == "chat" or tokenizer.hf.chat_template:
            return True
        if self.system is not None:
            raise UserError(
                "the model has no chat template, and plain text has no system message",
                "recipe key task.system",
                "write it into task.prompt_template, or take a model with a chat template",
            )
        return False

    def _plain(self, record: Record, tokenizer: TextTokenizer) -> list[Span]:
        if tokenizer.eos_id is None:
            raise UserError(
                "the tokenizer has no end-of-text token, so that no answer would ever end",
                "recipe key model.name",
                "set eos_token in the model's tokenizer_config.json",
            )
        prompt, response = self._rendered(record)
        return [
            Span(prompt, "prompt", trim="left"),
            Span(response, "response", weight=1.0),
            Span(str(tokenizer.hf.eos_token), "stop", weight=1.0, control=True),
        ]

    def _chat(self, record: Record, column: str | None, split: Split, tokenizer: TextTokenizer) -> list[Span]:
        if column is None:
            prompt, response = self._rendered(record)
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        else:
            messages = _messages(record.fields[column], column)
        if self.system is not None and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": self.system}, *messages]
        weights = [_weight(message) for message in messages]
        trained = [i for i, weight in enumerate(weights) if weight]
        if not trained:
            raise RowError("no-target", "no assistant turn with a weight over 0")
        if self.turn_weights == "last" or split != "train":
            weights = [weight if i == trained[-1] else 0.0 for i, weight in enumerate(weights)]
        for i, (message, weight) in enumerate(zip(messages, weights, strict=True)):
            if weight and not message["content"].strip():
                raise RowError("empty-target", f"assistant turn {i} has no text")
        bare = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
        return chat_spans(bare, weights, tokenizer, self.template_options)

    def _rendered(self, record: Record) -> tuple[str, str]:
        prompt = render(self.prompt_template, record.fields)
        response = render(self.response_template, record.fields)
        if not response.strip():
            raise RowError("empty-target", "the response has no text")
        return prompt, response


def _messages(value: Any, column: str) -> list[dict[str, Any]]:
    """The messages of a row, with ``role`` and ``content`` as text, whatever else they have kept."""
    if not isinstance(value, list | tuple):
        raise RowError("bad-messages", f"{column} is {type(value).__name__}, not a list of messages")
    messages = []
    for i, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise RowError("bad-messages", f"{column}[{i}] is {type(item).__name__}, not an object")
        # A null is an absent key: Arrow fills up the keys that only other rows have.
        message = {str(key): part for key, part in item.items() if part is not None}
        if "role" not in message and "from" in message:
            role = message.pop("from")
            message["role"] = _ROLES.get(role, role) if isinstance(role, str) else role
        if "content" not in message:
            message["content"] = message.pop("value", "")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise RowError(
                    "bad-messages",
                    f"the {key} of {column}[{i}] is {type(message.get(key)).__name__}, not text",
                )
        messages.append(message)
    return messages


def _weight(message: Mapping[str, Any]) -> float:
    """The loss weight of a message: its own on an assistant's turn, 0 on others."""
    if message["role"] != "assistant":
        if message.get("weight"):
            raise RowError(
                "bad-messages", f"a weight on a turn of {message['role']!r}: only the assistant's are trained"
            )
        return 0.0
    weight = message.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise RowError("bad-messages", f"the weight {weight!r} is no number of at least 0")
    return float(weight)
