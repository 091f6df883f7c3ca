"""Bug fixes as text: how a model is shown a buggy function, and how it writes down the fixed one.

A change is the span of lines from the first that differs to the last. The input of a row is made of the buggy function and
the place of that span alone, so that training and inference have the same; ``patched`` turns an output back into a function.
Lines keep their ends: input parts and outputs join to the very bytes of the functions.

Source: Silva, Fang and Monperrus 2023, RepairLLaMA, arXiv:2312.15698, section 3.2 (IR1-IR4, OR1-OR4).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.encoding.lexer import LINE_COMMENT, Language, split_lines

Input = Literal["IR1", "IR2", "IR3", "IR4"]
Output = Literal["OR1", "OR2", "OR3", "OR4"]
CommentFormat = Literal["margin", "indented"]
MARKER = "<FILL_ME>"
# Changed whenever the same function gives another text, so that adapters of the former text are known by it.
VERSION = 1

_CONTEXT_LINES = {"OR3": 3, "OR4": 1}
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_NO_NEWLINE = "\\ No newline at end of file"


@dataclass(frozen=True, slots=True)
class Place:
    """A buggy function with the lines that are to change.

    Attributes:
        lines: The function.
        start, end: The first line that changes, and the one behind the last; equal for a pure insertion.
    """

    lines: tuple[str, ...]
    start: int
    end: int

    @property
    def before(self) -> str:
        """What stands before the lines."""
        return "".join(self.lines[: self.start])

    @property
    def buggy(self) -> str:
        """The lines."""
        return "".join(self.lines[self.start : self.end])

    @property
    def behind(self) -> str:
        """What stands behind them."""
        return "".join(self.lines[self.end :])

    @property
    def text(self) -> str:
        """The whole function."""
        return "".join(self.lines)

    @property
    def indent(self) -> str:
        """The indent of the first buggy line; of a pure insertion that of the next line, or of the one before."""
        near = [*self.lines[self.start :], *reversed(self.lines[: self.start])]
        line = next((line for line in near if line.strip()), "")
        return line[: len(line) - len(line.lstrip())]


@dataclass(frozen=True, slots=True)
class Parts:
    """An input of a model in three pieces, of which the outer two may be cut.

    Attributes:
        before, core, behind: In this order; the core holds the buggy lines or the marker.
    """

    before: str
    core: str
    behind: str

    @property
    def text(self) -> str:
        """The input as one text."""
        return self.before + self.core + self.behind


def place_of(buggy: str, fixed: str) -> tuple[Place, str]:
    """The span from the first line that differs to the last, and the lines that stand there in the fixed function.

    Unchanged lines between several changes belong to both. The fixed lines are empty for a pure deletion.
    """
    old, new = split_lines(buggy), split_lines(fixed)
    shorter = min(len(old), len(new))
    start = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    tail = next((i for i in range(shorter - start) if old[-1 - i] != new[-1 - i]), shorter - start)
    return Place(tuple(old), start, len(old) - tail), "".join(new[start : len(new) - tail])


def single_chunks(buggy: str, fixed: str) -> list[tuple[str, str]]:
    """A pair for each stretch of changed lines: the fixed function with this one change undone, and the fixed function."""
    old, new = split_lines(buggy), split_lines(fixed)
    changes = [
        c for c in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if c[0] != "equal"
    ]
    return [("".join([*new[:j], *old[i:k], *new[m:]]), fixed) for _, i, k, j, m in changes]


def input_parts(place: Place, form: Input, language: Language, comments: CommentFormat = "margin") -> Parts:
    """What a model is shown of a buggy function.

    IR1 is the function alone; IR2 the function with its buggy lines between two comments; IR3 has a marker in their place;
    IR4 the buggy lines as comments, and the marker.

    Args:
        place: The function with the lines that are to change.
        form: Which.
        language: Decides how comments look.
        comments: Of IR4: ``margin`` puts the sign of a comment at the margin and keeps the line behind it with its indent,
            ``indented`` puts it between the indent and the rest of the line.
    """
    sign = LINE_COMMENT[language]
    if form == "IR1":
        return Parts(place.before, place.buggy, place.behind)
    if form == "IR2":
        core = f"{sign} buggy lines start:\n{_ended(place.buggy)}{sign} buggy lines end:\n"
        return Parts(place.before, core, place.behind)
    hole = f"{place.indent}{MARKER}\n"
    if form == "IR3":
        return Parts(place.before, hole, place.behind)
    shown = "".join(_as_comment(line, sign, comments) for line in split_lines(place.buggy))
    head = f"{sign} buggy code\n" if comments == "margin" else f"{place.indent}{sign} buggy code\n"
    return Parts(place.before, head + (shown or f"{sign} \n") + hole, place.behind)


def ending(form: Input, language: Language) -> str:
    """The comment behind an input that is followed by its output as plain text."""
    return f"{LINE_COMMENT[language]} fixed {'lines' if form == 'IR2' else 'code'}:\n"


def output_text(place: Place, fixed_lines: str, form: Output) -> str:
    """What a model is to write.

    OR1 is the fixed function; OR2 the fixed lines; OR3 and OR4 are the change as hunks of a diff with three and with one
    line of context.
    """
    if form == "OR2":
        return fixed_lines
    fixed = place.before + fixed_lines + place.behind
    if form == "OR1":
        return fixed
    return _diff(list(place.lines), split_lines(fixed), _CONTEXT_LINES[form])


def patched(place: Place, output: str, form: Output) -> str | None:
    """The function that an output stands for; None if it is a diff that does not fit.

    The newline with which an output's last line ends is given to it where other lines follow.
    """
    if form == "OR1":
        return output
    if form == "OR2":
        if output and place.behind and not output.endswith("\n"):
            output += "\n"
        return place.before + output + place.behind
    return _applied(list(place.lines), output)


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"


def _as_comment(line: str, sign: str, comments: CommentFormat) -> str:
    body = line.rstrip("\r\n")
    if comments == "margin":
        return f"{sign} {body}\n"
    rest = body.lstrip()
    return f"{body[: len(body) - len(rest)]}{sign} {rest}\n"


def _diff(old: list[str], new: list[str], num_context: int) -> str:
    pieces: list[str] = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for group in matcher.get_grouped_opcodes(num_context):
        (_, i, _, j, _), (_, _, k, _, m) = group[0], group[-1]
        # As diff does: of a hunk without lines the number is that of the line before.
        pieces.append(f"@@ -{i + 1 - (i == k)},{k - i} +{j + 1 - (j == m)},{m - j} @@\n")
        for tag, first, last, begin, end in group:
            if tag == "equal":
                pieces += [_diff_line(" ", line) for line in old[first:last]]
                continue
            pieces += [_diff_line("-", line) for line in old[first:last]]
            pieces += [_diff_line("+", line) for line in new[begin:end]]
    return "".join(pieces)


def _diff_line(sign: str, line: str) -> str:
    return f"{sign}{line}" if line.endswith("\n") else f"{sign}{line}\n{_NO_NEWLINE}\n"


@dataclass(slots=True)
class Hunk:
    """A hunk of a diff.

    Attributes:
        start: Line of the old text that it begins at, from 0.
        old: Its lines there.
        new: What takes their place.
    """

    start: int
    old: list[str]
    new: list[str]


def hunks(lines: Sequence[str], start: int = 0) -> tuple[list[Hunk], int]:
    """The hunks from a line on that begins with ``@@``, and the number of the line behind them.

    Lines are counted by the numbers of the header, so that changed lines that look like headers are none. Where the text
    ends before the numbers are met, as outputs of models do, the hunk ends there too.
    """
    found: list[Hunk] = []
    place = start
    while place < len(lines) and (header := _HUNK.match(lines[place])):
        left, right = (int(header.group(i)) if header.group(i) is not None else 1 for i in (2, 4))
        first = int(header.group(1))
        hunk = Hunk(first if not left else first - 1, [], [])
        place += 1
        while place < len(lines) and (left > 0 or right > 0):
            sign, body = lines[place][:1], lines[place][1:]
            if sign not in (" ", "-", "+", "\\", "\n", "\r"):
                break
            if sign in "\n\r":  # an empty line of context whose space an editor took
                sign, body = " ", lines[place]
            if sign == "\\":
                _cut_newline(hunk, lines[place - 1][:1])
            else:
                if sign in " -":
                    hunk.old.append(body)
                    left -= 1
                if sign in " +":
                    hunk.new.append(body)
                    right -= 1
            place += 1
        if place < len(lines) and lines[place].startswith("\\"):
            _cut_newline(hunk, lines[place - 1][:1])
            place += 1
        found.append(hunk)
    return found, place


def _cut_newline(hunk: Hunk, sign: str) -> None:
    for side, signs in ((hunk.old, " -"), (hunk.new, " +")):
        if sign in signs and side:
            side[-1] = side[-1].removesuffix("\n").removesuffix("\r")


def _applied(lines: list[str], diff: str) -> str | None:
    """The text with all hunks in their places; one whose numbers are wrong goes where its old lines stand, if only once."""
    parsed = split_lines(diff)
    found, end = hunks(parsed)
    if not found or "".join(parsed[end:]).strip():
        return None
    result, shift = list(lines), 0
    for hunk in found:
        at = hunk.start + shift
        old = hunk.old
        if not 0 <= at <= len(result) or result[at : at + len(old)] != old:
            fitting = [i for i in range(len(result) - len(old) + 1) if result[i : i + len(old)] == old]
            if not old or len(fitting) != 1:
                return None
            at = fitting[0]
        result[at : at + len(old)] = hunk.new
        shift += len(hunk.new) - len(old)
    return "".join(result)
