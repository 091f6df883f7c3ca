"""Fill-in-the-middle: a text becomes prefix, suffix and middle, marked by sentinel tokens.

Training rows and inference prompts come from ``gap_spans``, so that both have the same ids before the middle.

Source: Bavarian et al. 2022, arXiv:2207.14255 (rate, PSM and SPM, character spans, transformation behind chunking).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from luthier.errors import UserError
from luthier.recipe import Options
from luthier.records import Example, Span

if TYPE_CHECKING:  # text_tokenizer imports this module
    from luthier.encoding.text_tokenizer import TextTokenizer

Order = Literal["psm", "spm"]
Loss = Literal["middle", "all"]
# Visible characters from which text at the end of an output that also begins the suffix is no coincidence.
MIN_OVERLAP = 8
# Share of a row that the suffix keeps before the prefix gives way.
_SUFFIX_SHARE = 0.25
# Draws until a middle has visible text.
_DRAWS = 16
# Tokens that may be gained where a text is cut in two.
_SLACK = 4


@dataclass(frozen=True, slots=True)
class Sentinels:
    """The control tokens of one family of models.

    Attributes:
        prefix, suffix, middle: What stands before each part.
        end: What ends the middle.
        lead: Text that the family's training put between the prefix's sentinel and the prefix.
        stops: Further tokens with which its models end a middle.
    """

    prefix: str
    suffix: str
    middle: str
    end: str
    lead: str = ""
    stops: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, str, str, str]:
        """The four tokens that a vocabulary must have."""
        return self.prefix, self.suffix, self.middle, self.end


SENTINELS: dict[str, Sentinels] = {
    # Rozière et al. 2023, section 3.1: only the prefix keeps SentencePiece's leading space.
    "codellama": Sentinels("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", lead=" "),
    "starcoder": Sentinels(
        "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|endoftext|>", stops=("<file_sep>",)
    ),
    "qwen2.5-coder": Sentinels(
        "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>", stops=("<|file_sep|>",)
    ),
    "deepseek-coder": Sentinels(
        "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "<｜end▁of▁sentence｜>"
    ),
    "new": Sentinels("<|prefix|>", "<|suffix|>", "<|middle|>", "<|end_of_middle|>"),
}


class Gaps(Options):
    """Fill-in-the-middle where the task says what the gap is: a share of the training rows shows what stands behind it too."""

    rate: float = Field(0.5, gt=0, le=1)
    """Share of training rows that get a gap; what was realised is in the ledger."""
    order: Literal["psm", "spm", "mixed"] = "psm"
    """``psm``: prefix, suffix, middle; ``spm``: suffix, prefix, middle; ``mixed``: either, drawn for each row."""
    sentinels: Literal["auto", "codellama", "starcoder", "qwen2.5-coder", "deepseek-coder", "new"] = "auto"
    """Whose sentinel tokens; ``auto`` is the set that the tokenizer has. ``new`` are ``<|prefix|>``, ``<|suffix|>``,
    ``<|middle|>`` and ``<|end_of_middle|>``, for ``model.new_tokens``."""
    loss: Loss = "middle"
    """What a row with a gap trains: the middle with its end token, or prefix and suffix as well, as in pretraining."""


class Infill(Gaps):
    """Fill-in-the-middle: a share of the training rows gets a gap, whose text moves to the end of the row."""

    spans: Literal["characters", "lines"] = "characters"
    """Where a gap may begin and end: anywhere, or only where lines do."""
    max_lines: int | None = Field(None, ge=1)
    """Lines that a gap spans at most."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A text in three parts.

    Attributes:
        prefix, suffix, middle: What stands before the gap, behind it, and in it.
        context: Spans that stand before the prefix: they give way as their own priorities say, and are never trained.
    """

    prefix: str
    suffix: str
    middle: str
    context: Sequence[Span] = ()


def infilled(
    example: Example,
    options: Gaps | None,
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    seed: int,
    gap: Callable[[random.Random], Gap | None] | None = None,
) -> Example:
    """The example with a gap, or as it is: by the rate, or because its text has no room for one.

    Args:
        example: A training row; without ``gap`` its text is already cut to ``max_length``.
        options: None never makes a gap.
        tokenizer: The model's.
        max_length: Tokens of a row at most.
        seed: The recipe's; drawn from together with the example's id.
        gap: Draws this example's gap, or says that it has no room for one; by default a gap may lie anywhere in the text.

    Returns:
        With a gap, ``meta["infill"]`` is its order.
    """
    if options is None:
        return example
    marks = sentinels(tokenizer, options.sentinels)
    draw = random.Random(f"{seed} infill {example.id}")
    if draw.random() >= options.rate:
        return example
    found = gap(draw) if gap else _anywhere(example, options, draw)
    # A row that fits whole may be too long once the sentinels are in it and nothing but its middle is left.
    most = max_length - len(marks.tokens) - len(tokenizer.prefix_ids) - len(marks.lead)
    if found is None:
        return example
    before, line_break = before_line_break(found.prefix, marks)
    middle = line_break + found.middle
    if len(tokenizer.encode(middle)) > most:
        return example
    order: Order = draw.choice(("psm", "spm")) if options.order == "mixed" else options.order
    spans = gap_spans(
        before,
        found.suffix,
        middle,
        order=order,
        marks=marks,
        tokenizer=tokenizer,
        max_length=max_length,
        loss=options.loss,
        context=found.context,
    )
    return replace(example, spans=spans, meta={**example.meta, "infill": order})


def _anywhere(example: Example, options: Gaps, draw: random.Random) -> Gap | None:
    assert isinstance(options, Infill)
    text = "".join(span.text for span in example.spans if not span.control)
    place = draw_gap(text, options, draw)
    return place and Gap(text[: place[0]], text[place[1] :], text[slice(*place)])


def infill_prompt(
    prefix: str, suffix: str, options: Gaps, tokenizer: TextTokenizer, max_length: int
) -> list[Span]:
    """The spans of a prompt whose gap the model is to fill; ``mixed`` asks in the order PSM."""
    marks = sentinels(tokenizer, options.sentinels)
    order: Order = "spm" if options.order == "spm" else "psm"
    before, _ = before_line_break(prefix, marks)
    spans = gap_spans(
        before, suffix, "", order=order, marks=marks, tokenizer=tokenizer, max_length=max_length
    )
    return [span for span in spans if not span.weight]


def before_line_break(prefix: str, marks: Sentinels) -> tuple[str, str]:
    """A prefix without line ends and indentation at its end, and these, with which the middle begins in their place.

    Tokenizers of code have line ends and the indentation behind them as one token, so that a model has hardly ever gone on
    from a line end alone: a line behind it, encoded apart, costs SmolLM2-135M 1.15 bits a byte, and with it 0.68. Known
    families learned from gaps at any character, and keep the prefix as it is.
    """
    before = prefix.rstrip()
    if marks is not SENTINELS["new"] or "\n" not in prefix[len(before) :]:
        return prefix, ""
    return before, prefix[len(before) :]


def filled(output: str, prefix: str, suffix: str, options: Gaps, tokenizer: TextTokenizer) -> str:
    """What stands between prefix and suffix, from what a model wrote for ``infill_prompt``."""
    _, line_break = before_line_break(prefix, sentinels(tokenizer, options.sentinels))
    return without_overlap(output, suffix).removeprefix(line_break)


def gap_spans(
    prefix: str,
    suffix: str,
    middle: str,
    *,
    order: Order,
    marks: Sentinels,
    tokenizer: TextTokenizer,
    max_length: int,
    loss: Loss = "middle",
    context: Sequence[Span] = (),
) -> list[Span]:
    """A text with a gap as spans: the parts between their sentinels, each encoded apart, and the trained middle.

    Too long a row loses the far end of its suffix first, then the beginning of its prefix, then the rest of the suffix.

    Args:
        prefix: The text before the gap.
        suffix: The text behind it.
        middle: The text in it.
        order: PSM, or SPM with the prefix right before the middle.
        marks: The sentinels.
        tokenizer: The model's.
        max_length: Tokens of a row at most.
        loss: Whether prefix and suffix are trained as well.
        context: Spans before the prefix.
    """
    lead = [Span(marks.lead, "prefix"), *context] if context else []
    if not context:
        prefix = marks.lead + prefix
    if loss == "all":
        front, back = _trained(prefix, suffix, middle, len(marks.tokens), tokenizer, max_length)
    else:
        starts = tokenizer.encode_with_starts(suffix, first=False, control=False)[1]
        near = round(max_length * _SUFFIX_SHARE)
        cut = starts[near] if near < len(starts) else len(suffix)
        front = [Span(prefix, "prefix", trim="left", priority=1)]
        back = [
            Span(suffix[:cut], "suffix", trim="right", priority=2),
            Span(suffix[cut:], "suffix", trim="right", priority=0),
        ]
    front = [*lead, *front]
    before, behind, here = (_mark(token) for token in (marks.prefix, marks.suffix, marks.middle))
    parts = [before, *front, behind, *back, here] if order == "psm" else [before, behind, *back, here, *front]
    return [
        *(span for span in parts if span.text),
        Span(middle, "middle", weight=1.0, apart=True),
        Span(marks.end, "end", weight=1.0, control=True, apart=True),
    ]


def _mark(token: str) -> Span:
    return Span(token, "sentinel", control=True, apart=True)


def _trained(
    prefix: str, suffix: str, middle: str, num_marks: int, tokenizer: TextTokenizer, max_length: int
) -> tuple[list[Span], list[Span]]:
    """Prefix and suffix with a weight; as many tokens as the row has too many are context that may go."""
    front = tokenizer.encode_with_starts(prefix, first=False, control=False)[1]
    back = tokenizer.encode_with_starts(suffix, first=False, control=False)[1]
    num_tokens = len(front) + len(back) + len(tokenizer.encode(middle)) + num_marks
    over = num_tokens + len(tokenizer.prefix_ids) - max_length
    spare = over + _SLACK if over > 0 else 0
    head = front[spare] if spare < len(front) else len(prefix)
    spare = max(0, spare - len(front))
    tail = back[len(back) - spare] if 0 < spare < len(back) else 0 if spare else len(suffix)
    return (
        [Span(prefix[:head], "prefix", trim="left"), Span(prefix[head:], "prefix", weight=1.0)],
        [Span(suffix[:tail], "suffix", weight=1.0), Span(suffix[tail:], "suffix", trim="right")],
    )


def draw_gap(text: str, options: Infill, draw: random.Random) -> tuple[int, int] | None:
    """Start and end of a gap with visible text, drawn uniformly among all; None if none was found.

    Source: Bavarian et al. 2022, section 3: both ends of a character span are uniform.
    """
    starts = [0, *(i + 1 for i, letter in enumerate(text) if letter == "\n" and i + 1 < len(text)), len(text)]
    places: Sequence[int] = starts if options.spans == "lines" else range(len(text) + 1)
    if len(places) < 3:  # the gap would be the whole text
        return None
    for _ in range(_DRAWS):
        start, end = sorted(draw.sample(places, 2))
        if options.max_lines is not None:
            last = next((b for a, b in pairwise(starts) if a <= start < b), len(text))
            lines = [b for b in starts if b >= last]
            end = min(end, lines[min(draw.randint(1, options.max_lines), len(lines)) - 1])
        if text[start:end].strip():
            return start, end
    return None


def sentinels(tokenizer: TextTokenizer, name: str) -> Sentinels:
    """The sentinel tokens of that name, or with ``auto`` those that the tokenizer has.

    Raises:
        UserError: The vocabulary lacks one of them, or has none of the known sets.
    """
    known = [key for key, marks in SENTINELS.items() if all(_is_token(t, tokenizer) for t in marks.tokens)]
    if name == "auto" and known:
        return SENTINELS[known[0]]
    if name in known:
        return SENTINELS[name]
    new = ", ".join(f'"{token}"' for token in SENTINELS["new"].tokens)
    add = f"for tokens of your own set task.infill.sentinels=new and model.new_tokens='[{new}]'"
    if name == "auto":
        raise UserError(
            f"the tokenizer has none of the known sets of sentinel tokens ({', '.join(SENTINELS)})",
            "recipe key task.infill.sentinels",
            add,
        )
    lacking = [token for token in SENTINELS[name].tokens if not _is_token(token, tokenizer)]
    raise UserError(
        f"the tokenizer lacks {', '.join(map(repr, lacking))} of the sentinel tokens of {name}; "
        f"sets that it has: {', '.join(known) or 'none'}",
        "recipe key task.infill.sentinels",
        f"set it to one that it has, or {add}" if known else add,
    )


def _is_token(text: str, tokenizer: TextTokenizer) -> bool:
    place = tokenizer.hf.backend_tokenizer.token_to_id(text)
    return place is not None and tokenizer.encode(text, control=True) == [place]


def stop_tokens(vocabulary: Collection[str]) -> set[str]:
    """The tokens with which models of this vocabulary end a middle."""
    known = [marks for marks in SENTINELS.values() if all(token in vocabulary for token in marks.tokens)]
    return {token for marks in known for token in (marks.end, *marks.stops) if token in vocabulary}


def without_overlap(output: str, suffix: str) -> str:
    """The output without what stands at its end and begins the suffix too.

    A model that does not end a middle writes on with the suffix. Fewer than 8 visible characters in common, such as
    a bracket, are kept: they may well belong to the middle.
    """
    for length in range(min(len(output), len(suffix)), 0, -1):
        if output.endswith(suffix[:length]):
            return output[:-length] if len("".join(suffix[:length].split())) >= MIN_OVERLAP else output
    return output
