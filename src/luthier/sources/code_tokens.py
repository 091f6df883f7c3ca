"""Code as CodeXGLUE writes it: one line of tokens a file, literals replaced but for the commonest.

``<s> tok tok <EOL> ... </s>``: Python without comments and indentation, its lines ended by ``<EOL>``; Java without
comments and line ends. Source: CodeXGLUE, token-level completion, ``preprocess.py`` of py150 and javaCorpus.
"""

from __future__ import annotations

import io
import json
import re
import token as kinds
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Language = Literal["python", "java"]
NUM_STRINGS = 200
NUM_NUMBERS = 30

_QUOTES = ("'''", '"""', "'", '"')
_ENDS = {tokenize.NEWLINE, tokenize.NL}
_LEFT_OUT = {tokenize.COMMENT, tokenize.INDENT, tokenize.ENCODING, tokenize.ENDMARKER}
# Since Python 3.12 (3.14 for t-strings) these come in pieces.
_STRING_STARTS = {getattr(kinds, f"{kind}STRING_START", -1) for kind in "FT"} - {-1}
_STRING_ENDS = {getattr(kinds, f"{kind}STRING_END", -1) for kind in "FT"} - {-1}
# ">>" and ">>>" are single signs in the published files, since closing type arguments look the same.
_JAVA = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)
    | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
    | (?P<number>0[xX][\da-fA-F_]*(?:\.[\da-fA-F_]*)?(?:[pP][+-]?[\d_]+)?[lLfFdD]?|0[bB][01_]+[lL]?
        |(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?[\d_]+)?[lLfFdD]?)
    | (?P<other>[^\W\d][\w$]*|\$[\w$]*|>>>=|>>=|<<=|\.\.\.|->|::|\+\+|--|&&|\|\||[=!<>+\-*/&|^%]=|<<
        |[-+*/%=<>!~?:&|^@(){}\[\];,.])""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Kept:
    """The literals that stay as they are.

    Attributes:
        strings: Without quotes; a space is ``U+0020``, a comma ``U+002C``.
        numbers: As they are written.
        characters: As strings; Java only.
    """

    strings: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    characters: frozenset[str] = frozenset()

    @classmethod
    def load(cls, path: str | Path) -> Kept:
        """The lists of a ``literals.json`` of CodeXGLUE (keys ``str``, ``num``, ``char``)."""
        lists = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(*(frozenset(lists.get(name, ())) for name in ("str", "num", "char")))

    @classmethod
    def commonest(cls, codes: Iterable[str], language: Language) -> Kept:
        """The 200 strings, 30 numbers and 30 characters that are commonest in some code."""
        counts: Mapping[str, Counter[str]] = {name: Counter() for name in ("STR", "NUM", "CHAR")}
        for code in codes:
            for word in _words(code, language) or ():
                if word.kind:
                    counts[word.kind][word.value] += 1
        limits = {"STR": NUM_STRINGS, "NUM": NUM_NUMBERS, "CHAR": NUM_NUMBERS}
        return cls(
            *(
                frozenset(value for value, _ in counts[name].most_common(most))
                for name, most in limits.items()
            )
        )


@dataclass(frozen=True, slots=True)
class _Word:
    """A token; of a literal ``kind`` is STR, NUM or CHAR, ``before`` and ``behind`` stand round its value."""

    value: str
    kind: str = ""
    before: str = ""
    behind: str = ""


def normalise(code: str, language: Language, kept: Kept) -> str | None:
    """The code as one line of CodeXGLUE's token-level files; None if it has no tokens or cannot be read."""
    words = _words(code, language)
    if not words:
        return None
    lists = {"STR": kept.strings, "NUM": kept.numbers, "CHAR": kept.characters}
    texts = []
    for word in words:
        text = word.value
        if word.kind:
            shown = f":{word.value}" if word.value in lists[word.kind] else ""
            text = f"{word.before}<{word.kind}_LIT{shown}>{word.behind}"
        texts.append(text)
    return " ".join(["<s>", *texts, "</s>"])


def _words(code: str, language: Language) -> list[_Word] | None:
    try:
        return list(_python(code) if language == "python" else _java(code))
    # What tokenize raises over code that is none differs from one version of Python to the next.
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None


def _python(code: str) -> list[_Word]:
    words: list[_Word] = []
    lines = io.StringIO(code).readlines()
    depth, start = 0, (0, 0)
    for kind, text, begin, end, _ in tokenize.tokenize(io.BytesIO(code.encode()).readline):
        if kind in _STRING_STARTS:
            start = start if depth else begin
            depth += 1
        elif kind in _STRING_ENDS:
            depth -= 1
            if not depth:
                words.append(_string(_between(lines, start, end), "python"))
        if depth or kind in _STRING_ENDS:
            continue
        text = " ".join(text.split())
        if kind == tokenize.STRING:
            words.append(_string(text, "python"))
        elif kind == tokenize.NUMBER:
            words.append(_Word(text, "NUM"))
        elif kind in _ENDS:
            if words and words[-1].value != "<EOL>":
                words.append(_Word("<EOL>"))
        elif kind not in _LEFT_OUT and text:
            words.append(_Word(text))
    return words[:-1] if words and words[-1].value == "<EOL>" else words


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The text between two places (line from 1, column from 0), with single spaces for white space."""
    part = lines[start[0] - 1 : end[0]]
    part[-1] = part[-1][: end[1]]
    part[0] = part[0][start[1] :]
    return " ".join("".join(part).split())


def _java(code: str) -> Iterator[_Word]:
    place = 0
    while place < len(code):
        match = _JAVA.match(code, place)
        if match is None:
            raise ValueError(f"no Java at {code[place : place + 20]!r}")
        place = match.end()
        text = match.group()
        if match.lastgroup == "string":
            yield _string(text, "java")
        elif match.lastgroup == "number":
            yield _Word(text, "NUM")
        elif match.lastgroup == "other":
            yield _Word(text)


def _string(text: str, language: Language) -> _Word:
    """A string literal; of Java's, one visible sign between single quotes is a character."""
    prefix = re.match(r"[a-z]*", text)
    before = prefix.group() if prefix else ""
    body = text[len(before) :]
    quote = next((quote for quote in _QUOTES if body.startswith(quote)), "")
    behind = quote if body.endswith(quote) else ""
    value = body[len(quote) :]
    value = value[: len(value) - len(behind)] if behind else value
    is_character = language == "java" and quote == "'" and len(value) == 1
    value = value.replace(" ", "U+0020").replace(",", "U+002C")
    return _Word(value, "CHAR" if is_character else "STR", before + quote, behind)
