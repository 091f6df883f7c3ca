"""The visible lines of a code file, those that are targets, and the spans of a stretch of them."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from luthier.records import Span

_LINE = re.compile(r"[^\n]*\n?")


@dataclass(frozen=True, slots=True)
class Line:
    """A visible line of a file, by character offsets.

    Attributes:
        start: Where the prompt for it ends: the last visible character before it, or the next token border.
        first: Its first visible character.
        end: Behind its last visible character.
        stop: Behind the token that holds its newline.
        eligible: Whether it is a target.
    """

    start: int
    first: int
    end: int
    stop: int
    eligible: bool


def code_lines(
    text: str, boundaries: set[int], *, min_chars: int, max_chars: int, comment_prefixes: tuple[str, ...]
) -> list[Line]:
    """The visible lines of a text.

    Args:
        text: The code.
        boundaries: Character offsets at which tokens of the whole text end and begin.
        min_chars: Visible characters that a line needs to be a target.
        max_chars: Visible characters above which it is none.
        comment_prefixes: A line that begins with one of these is none.
    """
    borders = sorted(boundaries)
    lines: list[Line] = []
    for match in _LINE.finditer(text):
        visible = match.group().strip()
        if not visible:
            continue
        first = match.start() + match.group().index(visible[0])
        end = first + len(match.group().rstrip()) - (first - match.start())
        last = lines[-1].end if lines else 0
        after = bisect_left(borders, last)
        start = borders[after] if borders[after] <= first else last
        behind = borders[bisect_left(borders, match.end())]
        stop = behind if not text[match.end() : behind].strip() else match.end()
        eligible = (
            min_chars <= len(visible) <= max_chars
            and not visible.startswith(comment_prefixes)
            and match.group().endswith("\n")
        )
        lines.append(Line(start, first, end, stop, eligible))
    return lines


def target_spans(text: str, lines: Sequence[Line], num_context: int) -> list[Span]:
    """Alternating context and target spans of a chunk; a target reaches to the end of its newline's token."""
    pieces: list[tuple[bool, int, int]] = []
    place = lines[0].start
    for index, line in enumerate(lines):
        trained = index >= num_context and line.eligible
        ends_here = index + 1 == len(lines)
        end = line.stop if trained or ends_here else lines[index + 1].start
        pieces.append((trained, place, end))
        place = end
    spans = []
    for trained, run in groupby(pieces, key=lambda piece: piece[0]):
        parts = list(run)
        piece = text[parts[0][1] : parts[-1][2]]
        spans.append(Span(piece, "target", weight=1.0) if trained else Span(piece, "context"))
    return spans
