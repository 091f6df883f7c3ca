"""The function that a free-form reply gives: out of fences, prose, several blocks or a diff, with the step that found it."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import tree_sitter

from luthier.encoding.lexer import Language, NotCode, normalised, split_lines, tokens
from luthier.encoding.repair import Place, patched
from luthier.encoding.syntax import PARSED, Parsed, parses, tree

Step = Literal[
    "fence", "diff", "signature", "parse", "unparsed", "truncated", "wrong-method", "no-code", "empty"
]

_FENCE = re.compile(r"^[ \t>]*(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")
_HUNK = re.compile(r"^@@ -\d", re.MULTILINE)
_MODIFIERS = (
    r"(?:(?:public|protected|private|static|final|abstract|synchronized|native|strictfp|default)\s+)*"
)
# An annotation of Java; its values may hold strings and calls, whose own brackets hold no further ones.
_STRING = r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])+'"""
_ANNOTATION = rf"""@[\w.]+(?:\((?:{_STRING}|[^()"']|\((?:{_STRING}|[^()"'])*\))*\))?"""
_NO_TYPE = r"(?!(?:return|new|throw|else|case|assert|yield)\b)"
_MOST_ENDS = 400  # places that are tried as the end of a function


@dataclass(frozen=True, slots=True)
class Extracted:
    """What was found in a reply.

    Attributes:
        code: The function with the indent of the one that was asked about, or None.
        step: ``fence``: the last fenced block has the method with its parameters. ``diff``: that block is a diff that fits.
            ``signature``: the method stands in an earlier block or in the prose. ``parse``: a method of the name, with other
            parameters. ``unparsed``: the last block begins the method, but does not parse; what stands there is given, for the
            compiler to say why. Without code: ``truncated``, ``wrong-method``, ``no-code``, ``empty``.
    """

    code: str | None
    step: Step


@dataclass(frozen=True, slots=True)
class _Block:
    text: str
    closed: bool


@dataclass(frozen=True, slots=True)
class _Method:
    code: str
    parameters: tuple[str, ...]


def extract(reply: str, function: str, language: Language) -> Extracted:
    """The function of a reply that takes the place of another one of the same name.

    Args:
        reply: What a model wrote.
        function: The function that it was asked about, with its indent.
        language: Of the function. Of C only the fence counts, since its functions are not parsed.
    """
    if not reply.strip():
        return Extracted(None, "empty")
    blocks, prose = _blocks(reply)
    if language not in PARSED:
        whole = [block for block in blocks if block.closed and block.text.strip()]
        return (
            Extracted(_fitted(whole[-1].text, function, language), "fence")
            if whole
            else Extracted(None, "no-code")
        )
    name = _name(function, language)
    own = next(iter(_methods(function, name, language)), _Method(function, ()))
    last = blocks[-1].text if blocks else ""
    exact = [m for m in _methods(last, name, language) if m.parameters == own.parameters]
    if exact:
        return Extracted(_fitted(exact[-1].code, function, language), "fence")
    shown = last if blocks else prose
    if (hunk := _HUNK.search(shown)) and (changed := _by_diff(shown[hunk.start() :], function)) is not None:
        return Extracted(changed, "diff")
    asked = normalised(_bare(function), language)
    pieces = [last, *(block.text for block in reversed(blocks[:-1])), prose]
    found = [method for piece in pieces for method in reversed(_methods(piece, name, language))]
    # A block that quotes the buggy function is no answer.
    found = [m for m in found if normalised(_bare(m.code), language) != asked]
    for step, fitting in (
        ("signature", [m for m in found if m.parameters == own.parameters]),
        ("parse", found),
    ):
        if fitting:
            return Extracted(_fitted(fitting[0].code, function, language), cast(Step, step))
    begun = next(iter(_declarations(shown, name, language)), None)
    if begun is not None and blocks and blocks[-1].closed:
        return Extracted(_fitted(shown[begun:], function, language), "unparsed")
    if begun is not None:
        return Extracted(None, "truncated")
    others = (
        other for piece in pieces for other in _declarations(piece, rf"(?!{re.escape(name)}\b)\w+", language)
    )
    return Extracted(None, "wrong-method" if next(others, None) is not None else "no-code")


def fenced(code: str, language: Language) -> str:
    """Code as a fenced block, with a fence that is longer than any in it."""
    mark = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", code)), default=0))
    end = "" if code.endswith("\n") else "\n"
    return f"{mark}{language}\n{code}{end}{mark}"


def last_block(reply: str) -> str:
    """What stands in the last fenced block; all of a reply without one."""
    blocks, _ = _blocks(reply)
    return blocks[-1].text if blocks else reply


def _blocks(reply: str) -> tuple[list[_Block], str]:
    """The fenced blocks of a reply, the last one maybe without its end, and the text outside of them."""
    blocks: list[_Block] = []
    prose: list[str] = []
    inside: list[str] = []
    mark = ""
    for line in split_lines(reply.replace("\r\n", "\n")):
        match = _FENCE.match(line)
        if not mark:
            if match:
                mark, inside = match["mark"], []
            else:
                prose.append(line)
        elif match and match["mark"].startswith(mark) and not match["info"].strip():
            blocks.append(_Block("".join(inside), True))
            mark = ""
        elif line.rstrip().endswith(mark):  # behind the last line of code
            inside.append(line.rstrip()[: -len(mark)].rstrip("`~") + "\n")
            blocks.append(_Block("".join(inside), True))
            mark = ""
        else:
            inside.append(line)
    if mark:
        blocks.append(_Block("".join(inside), False))
    return [block for block in blocks if block.text.strip()], "".join(prose)


def _name(function: str, language: Parsed) -> str:
    if language == "python":
        match = re.search(r"^[ \t]*(?:async[ \t]+)?def[ \t]+(\w+)", function, re.MULTILINE)
    else:
        match = re.search(
            rf"{_MODIFIERS}[\w.<>\[\], ?&]*?\b{_NO_TYPE}([\w$]+)\s*\(", _without_annotations(function)
        )
    return match[1] if match else ""


def _without_annotations(text: str) -> str:
    return re.sub(_ANNOTATION, "", text)


def _methods(text: str, name: str, language: Parsed) -> list[_Method]:
    """The functions of a name in a text of any kind that parse, in order."""
    found = []
    for start in _declarations(text, re.escape(name), language) if name else ():
        for end in _ends(text, start, language):
            code = text[start:end]
            parameters = _python(code, name) if language == "python" else _java(code, name)
            if parameters is not None:
                found.append(_Method(code, parameters))
                break
    return found


def _declarations(text: str, name: str, language: Parsed) -> Iterator[int]:
    """Where functions of a name (a regular expression) begin, decorators and annotations included."""
    if language == "python":
        lines = list(re.finditer(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+(?:{name})[ \t]*\(", text, re.MULTILINE))
    else:
        kind = rf"(?:<[^>{{}};]*>\s*)?(?:{_NO_TYPE}[\w.$]+(?:<[^;{{}}()]*>)?(?:\[\])*\s+)?"
        pattern = rf"^[ \t]*(?:{_ANNOTATION}\s+)*{_MODIFIERS}{kind}(?:{name})\s*\([^;{{}}]*\)[^;{{}}]*\{{"
        lines = list(re.finditer(pattern, text, re.MULTILINE))
        lines = [
            m
            for m in lines
            if not re.match(r"\s*(?:if|for|while|switch|catch|synchronized|else|do|try)\b", m[0])
        ]
    for match in lines:
        start = match.start()
        while start and (above := text[: start - 1].rpartition("\n")[2]).lstrip().startswith("@"):
            start -= len(above) + 1
        yield start


def _ends(text: str, start: int, language: Parsed) -> Iterator[int]:
    """Where a function that begins there may end, nearest first."""
    if language == "java":
        for _, match in zip(range(_MOST_ENDS), re.finditer(r"\}", text[start:]), strict=False):
            yield start + match.end()
        return
    header = re.compile(r"[ \t]*").match(text, start)
    assert header is not None  # it matches nothing too
    indent = len(header[0].expandtabs())
    begun = False
    tried = 0
    for match in re.finditer(r"^([ \t]*)(\S)[^\n]*$", text[start:], re.MULTILINE):
        deeper = len(match[1].expandtabs()) > indent
        if begun and not deeper and match[2] not in ")]}":
            yield start + match.start()
            tried += 1
            if tried == _MOST_ENDS:
                return
        begun = begun or deeper or match[2] != "@"
    yield len(text)


def _python(code: str, name: str) -> tuple[str, ...] | None:
    """The names of the parameters of a function; None if the text is not that one function."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in its strings
            body = ast.parse(_bare(code)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if (
        len(body) != 1
        or not isinstance(body[0], ast.FunctionDef | ast.AsyncFunctionDef)
        or body[0].name != name
    ):
        return None
    given = body[0].args
    named = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return tuple(argument.arg for argument in named if argument is not None)


def _java(code: str, name: str) -> tuple[str, ...] | None:
    """The types of the parameters of a method; None if the text is not that one method."""
    if not parses(code, "java"):
        return None
    root = tree(f"class X {{\n{code}\n}}".encode("utf-8", "surrogatepass"), "java").root_node
    body = root.named_children[0].child_by_field_name("body") if root.named_children else None
    members = [node for node in body.named_children if "comment" not in node.type] if body is not None else []
    if len(members) != 1 or (found := members[0].child_by_field_name("parameters")) is None:
        return None
    named = members[0].child_by_field_name("name")
    if named is None or _text(named) != name:
        return None
    types = []
    for parameter in found.named_children:
        kind = parameter.child_by_field_name("type")
        shown = _text(kind) if kind is not None else _text(parameter)
        types.append("".join(shown.split()) + ("..." if parameter.type == "spread_parameter" else ""))
    return tuple(types)


def _text(node: tree_sitter.Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")


def _by_diff(diff: str, function: str) -> str | None:
    """The function with the hunks of a diff in it, also where the diff was made of it without its indent."""
    text = diff if diff.endswith("\n") else f"{diff}\n"
    bare = _bare(function)
    for whole in (function, bare):
        place = Place(tuple(split_lines(whole)), 0, 0)
        if (changed := patched(place, text, "OR3")) is not None:
            return changed if whole is function else _indented(changed, _indent(function))
    return None


def _fitted(code: str, function: str, language: Language) -> str:
    """Code with the indent of a function, its decorators where the code has none, and its end."""
    code = code.strip("\n")
    lines = split_lines(code)
    first = next((line for line in lines if line.strip()), "")
    own = _indent(first)
    inner = _inside_strings(code, language)
    bare = [line if i in inner else line.removeprefix(own) for i, line in enumerate(lines)]
    wanted = _indent(function)
    text = "".join(
        line if i in inner or not line.strip() else f"{wanted}{line}" for i, line in enumerate(bare)
    ).rstrip()
    if language == "python" and not text.lstrip().startswith("@"):
        decorators = function[: function.find("def ")].rpartition("\n")
        if decorators[0].lstrip().startswith("@"):
            text = f"{decorators[0]}\n{text}"
    return text + function[len(function.rstrip()) :]


def _indent(text: str) -> str:
    first = next((line for line in split_lines(text) if line.strip()), "")
    return first[: len(first) - len(first.lstrip(" \t"))]


def _bare(text: str) -> str:
    """Code at the margin: without the indent of its first line, wherever a line has it."""
    own = _indent(text)
    return "".join(line.removeprefix(own) for line in split_lines(text))


def _indented(text: str, indent: str) -> str:
    return "".join(f"{indent}{line}" if line.strip() else line for line in split_lines(text))


def _inside_strings(code: str, language: Language) -> set[int]:
    """The lines that begin inside of a string, whose white space is its own."""
    text = _bare(code)
    try:
        strings = [token for token in tokens(text, language) if token.kind == "string"]
    except NotCode:
        return set()
    starts = [i for i, sign in enumerate(text) if sign == "\n"]
    numbers = {place: line for line, place in enumerate(starts, 1)}
    return {numbers[i] for token in strings for i in range(token.start, token.end) if text[i] == "\n"}
