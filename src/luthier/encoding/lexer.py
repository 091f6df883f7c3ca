"""Tokens of Python, Java and C with their places, so that comments are found by rules of the language and not by line prefixes."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Language = Literal["python", "java", "c"]
LANGUAGES: tuple[Language, ...] = ("python", "java", "c")
# What begins a comment that ends with its line.
LINE_COMMENT: dict[Language, str] = {"python": "#", "java": "//", "c": "//"}

_WORD = r"(?:[^\W\d]|\$|\\u+[0-9a-fA-F]{4})(?:\w|\$|\\u+[0-9a-fA-F]{4})*"
_NUMBER = r"""0[xX](?:[\da-fA-F_]*\.?[\da-fA-F_]*[pP][+-]?[\d_]+[fFdDlL]?|[\da-fA-F_']+(?:[lLuU]*))
    |0[bB][01_']+[lLuU]*
    |(?:\d[\d_']*(?:\.(?:\d[\d_']*)?)?|\.\d[\d_]*)(?:[eE][+-]?\d[\d_]*)?[lLfFdDuU]*"""
# Java SE 17, chapter 3. Unicode escapes are read where they spell parts of names, and nowhere else.
_JAVA = re.compile(
    rf"""(?P<space>[\s\x1a]+)
    | (?P<comment>//[^\r\n]*|/\*.*?\*/)
    | (?P<string>\"\"\"[ \t\f]*\r?\n(?:\\.|[^\\])*?\"\"\"|"(?:\\.|[^"\\\r\n])*"|'(?:\\(?:[0-7]{{1,3}}|u+[0-9a-fA-F]{{4}}|.)|[^'\\\r\n])')
    | (?P<number>{_NUMBER.replace("'", "")})
    | (?P<word>{_WORD})
    | (?P<sign>>>>=|>>>|>>=|<<=|\.\.\.|->|::|\+\+|--|&&|\|\||[=!<>+\-*/&|^%]=|<<|>>|[-+*/%=<>!~?:&|^@(){{}}\[\];,.])""",
    re.VERBOSE | re.DOTALL,
)
# C17 and C++20, 5.4 and 6.4; a backslash at the end of a line joins it with the next one.
_C = re.compile(
    rf"""(?P<space>(?:\s|\\\r?\n)+)
    | (?P<comment>//(?:\\\r?\n|[^\r\n])*|/\*.*?\*/)
    | (?P<string>(?:u8|[uUL])?R"(?P<delimiter>[^()\s\\]{{0,16}})\(.*?\)(?P=delimiter)"
        |(?:u8|[uUL])?"(?:\\.|[^"\\\r\n])*"|(?:u8|[uUL])?'(?:\\.|[^'\\\r\n])+')
    | (?P<number>{_NUMBER})
    | (?P<word>{_WORD})
    | (?P<sign><=>|>>=|<<=|->\*|\.\.\.|->|::|\+\+|--|&&|\|\||\#\#|[=!<>+\-*/&|^%]=|<<|>>|[-+*/%=<>!~?:&|^(){{}}\[\];,.\#\\])""",
    re.VERBOSE | re.DOTALL,
)
_SPACES = re.compile(r"[ \t\f]*")
_LINE = re.compile(r"[^\n]*\n|[^\n]+$")
_JOINED = re.compile(r"\\\r?\n")
_PYTHON_BLANKS = {
    tokenize.ENCODING, tokenize.ENDMARKER, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Token:
    """A token or comment of a text; white space is none.

    Attributes:
        kind: ``comment``, or what it is.
        start, end: Its place in the text, in characters.
    """

    kind: Literal["comment", "string", "number", "word", "sign"]
    start: int
    end: int


def split_lines(text: str) -> list[str]:
    r"""The lines of a text with their ends; only ``\n`` ends a line, so that they are the text again when joined."""
    return _LINE.findall(text)


class NotCode(ValueError):
    """The text cannot be read as tokens of its language."""


def tokens(text: str, language: Language) -> list[Token]:
    """The tokens of a text in order, comments included.

    Raises:
        NotCode: Something in it is no token.
    """
    return list(_python(text) if language == "python" else _by_rules(text, language))


def without_comments(text: str, language: Language) -> str:
    """The text without comments, and without the lines that are blank or hold nothing else; strings stay as they are.

    Raises:
        NotCode: Something in it is no token.
    """
    parts: list[str] = []
    length = 0
    held: set[int] = set()  # places of newlines that belong to a token
    place = 0
    for token in tokens(text, language):
        if token.kind != "comment":
            if "\n" in (piece := text[place : token.end]):
                first = token.start - place
                held.update(length + i for i in range(first, len(piece)) if piece[i] == "\n")
            parts.append(piece)
            length += len(piece)
            place = token.end
            continue
        before = text[place : token.start]
        behind = _SPACES.match(text, token.end)
        assert behind is not None  # it matches nothing too
        starts_line = not before.rpartition("\n")[2].strip(" \t\f") and ("\n" in before or not place)
        if behind.end() == len(text) or text[behind.end()] in "\r\n":
            before, place = before.rstrip(" \t\f"), behind.end()
        elif starts_line:
            place = behind.end()  # what follows takes its indent
        else:
            place = token.end
            last = next((part[-1] for part in reversed(parts) if part), " ")
            if not before and _may_be_of_one_token(last, text[token.end]):
                before = " "  # what it kept apart stays apart
        parts.append(before)
        length += len(before)
    parts.append(text[place:])
    lines, end = [], 0
    for line in split_lines("".join(parts)):
        end += len(line)
        if line.strip() or end - 1 in held:
            lines.append(line)
    return "".join(lines)


def _may_be_of_one_token(one: str, other: str) -> bool:
    """Whether two characters may belong together: both of a word, or both signs."""
    if one.isspace() or other.isspace():
        return False
    return (one.isalnum() or one in "_$") == (other.isalnum() or other in "_$")


def normalised(text: str, language: Language) -> str:
    """The text by which two pieces of code count as the same: their tokens, whatever stands between and the comments.

    Indentation counts in Python. Text that cannot be read as tokens is compared by its words.
    """
    try:
        plain = without_comments(text, language)
        found = tokens(plain, language)
    except NotCode:
        return " ".join(text.split())
    if language != "python":
        return " ".join(plain[token.start : token.end] for token in found)
    return _python_lines(plain, found)


def _python_lines(text: str, found: list[Token]) -> str:
    """Tokens with a depth before each logical line, so that tabs and widths of indents do not count."""
    lines: list[str] = []
    depths: list[int] = []
    level = 0
    end = 0
    for token in found:
        gap = text[end : token.start]
        if not level and (not end or ("\n" in gap and not _JOINED.search(gap))):
            width = len(text[text.rfind("\n", 0, token.start) + 1 : token.start].expandtabs())
            while depths and depths[-1] > width:
                depths.pop()
            if not depths or depths[-1] < width:
                depths.append(width)
            lines.append(f"\n{len(depths)}")
        piece = text[token.start : token.end]
        level += (piece in "([{") - (piece in ")]}")
        lines.append(piece)
        end = token.end
    return " ".join(lines).strip()


def _by_rules(text: str, language: Language) -> Iterator[Token]:
    rules = _JAVA if language == "java" else _C
    place = 0
    while place < len(text):
        match = rules.match(text, place)
        if match is None:
            raise NotCode(f"no {language} at {text[place : place + 20]!r}")
        if match.lastgroup != "space":
            yield Token(match.lastgroup, match.start(), match.end())  # type: ignore[arg-type] # one of the groups' names
        place = match.end()


_STARTS = {getattr(tokenize, f"{kind}STRING_START", -1) for kind in "FT"} - {-1}  # since Python 3.12 and 3.14
_ENDS = {getattr(tokenize, f"{kind}STRING_END", -1) for kind in "FT"} - {-1}
_KINDS = {
    tokenize.COMMENT: "comment",
    tokenize.STRING: "string",
    tokenize.NUMBER: "number",
    tokenize.NAME: "word",
}


def _python(text: str) -> Iterator[Token]:
    """By the standard library's tokenizer; an indented function is read as it stands."""
    lines = split_lines(text)
    starts = [0, *accumulate(map(len, lines))]
    depth, begun = 0, 0
    try:
        for kind, piece, (row, column), (last, end), _ in tokenize.generate_tokens(
            iter([*lines, ""]).__next__
        ):
            if kind in _PYTHON_BLANKS:
                continue
            first, behind = starts[row - 1] + column, starts[last - 1] + end
            if kind in _STARTS:
                begun = begun if depth else first
                depth += 1
            elif kind in _ENDS:
                depth -= 1
                if not depth:
                    yield Token("string", begun, behind)
            elif kind == tokenize.ERRORTOKEN:
                if piece.strip():
                    raise NotCode(f"no python at {piece[:20]!r} in line {row}")
            elif not depth:
                yield Token(_KINDS.get(kind, "sign"), first, behind)  # type: ignore[arg-type] # one of the values
    # What tokenize raises over code that is none differs from one version of Python to the next.
    except (tokenize.TokenError, SyntaxError, ValueError, IndexError) as error:
        raise error if isinstance(error, NotCode) else NotCode(str(error)) from error
