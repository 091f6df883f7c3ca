"""Code from data on its way into the page: escaped, with what the eye cannot see made visible, and compared."""

from __future__ import annotations

import json
import re
from typing import Any

from markupsafe import Markup, escape
from rapidfuzz.distance import Levenshtein

from luthier.display.text import UNSEEN, name_of

_MARKS = re.compile(rf"{UNSEEN.pattern}|[ \t]*\n|\t")
_MARKS_AND_END = re.compile(rf"{_MARKS.pattern}| +\Z")
_LONGEST = 4000
_SHORTEST_ISLAND = 3  # equal characters between two differences, below which both are shown as one


def code(text: str, *, marks: bool = False, end: bool = True, longest: int = _LONGEST) -> Markup:
    """The text as HTML for a ``pre``.

    Args:
        text: Any string.
        marks: Whether line ends, tabs and spaces at the end of a line get a sign too.
        end: Whether spaces at the end of the text count as such, or more of the line follows.
        longest: Characters after which the text is cut, and the cut is said.
    """
    cut = len(text) - longest
    if cut > 0:
        return code(text[:longest], marks=marks, end=False) + Markup(
            '<span class="cut">… {:,} more characters</span>'
        ).format(cut)
    parts: list[Markup] = []
    place = 0
    pattern = UNSEEN if not marks else _MARKS_AND_END if end else _MARKS
    for found in pattern.finditer(text):
        parts.append(escape(text[place : found.start()]))
        parts.append(_marked(found[0]))
        place = found.end()
    return Markup("").join([*parts, escape(text[place:])])


def _marked(piece: str) -> Markup:
    if piece.strip(" \t\n"):
        return Markup('<span class="ctl">{}</span>').format(name_of(piece))
    signs = piece.replace(" ", "·").replace("\t", "⇥").replace("\n", "⏎")
    # A line end still has to break the line, and a tab to be as wide as one.
    rest = "\n" if piece.endswith("\n") else "\t" if "\t" in piece else ""
    return Markup('<span class="ws">{}</span>').format(signs) + rest


def differences(output: str, target: str) -> Markup:
    """The output as HTML, with what the target has not in ``ins`` and what is missing from it in ``del``."""
    if len(output) > _LONGEST or len(target) > _LONGEST:
        return code(output, marks=True)
    parts = []
    for start, stop, from_, to in _changes(target, output):
        if target[start:stop] == output[from_:to]:
            parts.append(code(output[from_:to], marks=True, end=to == len(output)))
            continue
        if stop > start:
            # What is missing must not break the lines of what is there: only the sign of a line end is kept.
            missing = Markup(str(code(target[start:stop], marks=True)).replace("</span>\n", "</span>"))
            parts.append(Markup('<del title="in the target, missing here">{}</del>').format(missing))
        if to > from_:
            parts.append(
                Markup('<ins title="not in the target">{}</ins>').format(code(output[from_:to], marks=True))
            )
    return Markup("").join(parts)


def _changes(target: str, output: str) -> list[tuple[int, int, int, int]]:
    """Slices of target and output, equal and different in turn, with small islands joined to their shores."""
    merged: list[tuple[int, int, int, int]] = []
    opcodes = list(Levenshtein.opcodes(target, output))
    different = False
    for index, op in enumerate(opcodes):
        island = (
            op.tag == "equal"
            and 0 < index < len(opcodes) - 1
            and op.src_end - op.src_start < _SHORTEST_ISLAND
        )
        now = op.tag != "equal" or island
        if now and different:
            merged[-1] = (merged[-1][0], op.src_end, merged[-1][2], op.dest_end)
        else:
            merged.append((op.src_start, op.src_end, op.dest_start, op.dest_end))
        different = now
    return merged


def json_for_script(value: Any) -> Markup:
    """JSON that can stand inside ``<script>``: nothing in it can end the script or begin a comment, and it is ASCII."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
