"""A long text cut into windows of so many tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from luthier.encoding.text_tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text, by character offsets.

    Attributes:
        context: Where the text before it that is repeated as context begins; ``start`` if there is none.
        start, end: The part itself; all parts together are the text.
    """

    context: int
    start: int
    end: int


def windows(text: str, tokenizer: TextTokenizer, num_tokens: int, num_context: int) -> Iterator[Window]:
    """Parts of at most ``num_tokens`` tokens, context included, which end where a line does if one ends in their last quarter.

    A part that is encoded by itself may have a token or two more: tokens can break otherwise at a cut.

    Args:
        text: Any text.
        tokenizer: The model's.
        num_tokens: Tokens of a part with its context.
        num_context: Tokens repeated from the part before; fewer than half of ``num_tokens``.
    """
    starts = tokenizer.encode_with_starts(text, first=True, control=False)[1]
    place = 0
    while place < len(starts):
        context = max(0, place - num_context)
        end = min(context + num_tokens, len(starts))
        if end < len(starts):
            newline = text.rfind("\n", starts[end - (end - place) // 4], starts[end])
            while newline >= 0 and starts[end - 1] > newline:
                end -= 1  # the first token that begins behind the newline begins the next part
        first = starts[place] if place else 0
        last = starts[end] if end < len(starts) else len(text)
        if last > first:  # several tokens of one character have the same start
            yield Window(starts[context] if place else 0, first, last)
        place = end
