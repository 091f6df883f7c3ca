"""Rows as the model sees them: where tokens begin, what is trained, what was cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from luthier.display.text import safe
from luthier.records import Row

# Neighbouring tokens differ in shade, so that one sees where each begins.
_CONTEXT = ("dim", "")
_TRAINED = ("black on green", "black on bright_green")
_OTHER = ("black on yellow", "black on bright_yellow")


def row(title: str, shown: Row, pieces: Sequence[str], console: Console) -> None:
    """Prints a row.

    Args:
        title: What stands over it besides id and counts.
        shown: The encoded row.
        pieces: Text of each token, shape (num_tokens,).
        console: With colour, shades mark tokens; without, ``|`` stands between tokens and ``[...]`` around what is trained.
    """
    trained = sum(1 for weight in shown.loss_weights if weight)
    head = f"{title}  {shown.id}  {len(pieces)} tokens, {trained} trained"
    console.print(Text(safe(head), "bold"), soft_wrap=True)
    for span, cut in shown.trimmed.items():
        console.print(Text(safe(f"cut: {cut} tokens of {span}"), "red"), soft_wrap=True)
    if shown.lossy:
        console.print(Text("lossy: decoding does not give the text back", "red"), soft_wrap=True)
    coloured = console.color_system is not None and not console.no_color
    body = _coloured(shown, pieces) if coloured else Text("".join(_bracketed(shown, pieces)))
    console.print(body, soft_wrap=True)
    console.print()


def legend(console: Console) -> None:
    """What the marks mean."""
    if console.color_system is not None and not console.no_color:
        parts = Text.assemble(
            ("context", _CONTEXT[1]), "  ", ("trained", _TRAINED[0]), "  ", ("weight other than 1", _OTHER[0])
        )
        console.print(parts)
    else:
        console.print(
            Text("a|b are two tokens; [trained] has weight 1, [trained]*0.5 another; ⏎ is a newline")
        )
    console.print()


def _coloured(shown: Row, pieces: Sequence[str]) -> Text:
    text = Text()
    for index, (piece, weight) in enumerate(zip(pieces, shown.loss_weights, strict=True)):
        styles = _CONTEXT if not weight else _TRAINED if weight == 1 else _OTHER
        text.append(_visible(piece), styles[index % 2])
    return text


def _bracketed(shown: Row, pieces: Sequence[str]) -> Iterator[str]:
    tokens = zip(shown.loss_weights, pieces, strict=True)
    for weight, run in groupby(tokens, key=lambda token: float(token[0])):
        text = "|".join(_visible(piece) for _, piece in run)
        if not weight:
            yield text
        else:
            yield f"[{text}]" + ("" if weight == 1 else f"*{weight:g}")


def _visible(piece: str) -> str:
    return safe(piece).replace("\n", "⏎\n")
