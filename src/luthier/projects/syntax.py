"""What a file declares, imports and calls, and its skeleton, by tree-sitter: it reads broken code as well.

Languages with a grammar: Python and Java. Files of others declare and import nothing, and have no skeleton.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Node kinds of each grammar. ``declares`` have a name; ``bodies`` are what a skeleton leaves out.
_PYTHON = {
    "declares": {"function_definition", "class_definition"},
    "bodies": {"function_definition"},
    "identifiers": {"identifier"},
}
_JAVA = {
    "declares": {
        *("class_declaration", "interface_declaration", "enum_declaration", "record_declaration"),
        *("method_declaration", "constructor_declaration"),
    },
    "bodies": {"method_declaration", "constructor_declaration"},
    "identifiers": {"identifier", "type_identifier"},
}
_KINDS = {"python": _PYTHON, "java": _JAVA}
_GRAMMARS = {"python": "tree_sitter_python", "java": "tree_sitter_java"}


@dataclass(frozen=True, slots=True)
class Import:
    """A name that an import statement binds in a file.

    Attributes:
        module: Dotted, with the leading dots of a relative import.
        name: What is taken from the module; ``*`` for all of it, none for the module itself.
        bound: The name that code of the file uses; for ``import a.b`` that is ``a``.
    """

    module: str
    name: str | None
    bound: str


@dataclass(frozen=True, slots=True)
class Identifier:
    """An identifier in code, not in a string or comment.

    Attributes:
        name: The identifier.
        line: Line that it stands in, from 0.
        column: Characters before it in its line.
        root: The first name of its chain: ``a`` for the ``c`` of ``a.b.c``, itself for ``a``; none where the chain begins
            with something else, such as a call.
    """

    name: str
    line: int
    column: int
    root: str | None


def has_grammar(language: str) -> bool:
    """Whether files of a language can be parsed."""
    return language in _GRAMMARS


def declared_names(text: str, language: str) -> frozenset[str]:
    """Names of the functions, methods and classes that a file declares, at any depth."""
    if not has_grammar(language):
        return frozenset()
    source, root = parse(text, language)
    return frozenset(
        _text(name, source)
        for node in nodes(root, language, _KINDS[language]["declares"])
        if (name := node.child_by_field_name("name")) is not None
    )


def imports(text: str, language: str) -> list[Import]:
    """The names that a file's imports bind, in order."""
    if not has_grammar(language):
        return []
    source, root = parse(text, language)
    if language == "java":
        return [
            found
            for node in nodes(root, language, {"import_declaration"})
            for found in _java_import(node, source)
        ]
    found = []
    for node in nodes(root, language, {"import_statement", "import_from_statement"}):
        module = node.child_by_field_name("module_name")
        if module is None:
            for name in node.children_by_field_name("name"):
                dotted, alias = _named(name, source)
                found.append(Import(dotted, None, alias or dotted.partition(".")[0]))
            continue
        origin = _text(module, source).replace(" ", "")
        if any(child.type == "wildcard_import" for child in node.children):
            found.append(Import(origin, "*", "*"))
        for name in node.children_by_field_name("name"):
            dotted, alias = _named(name, source)
            found.append(Import(origin, dotted, alias or dotted))
    return found


def identifiers(text: str, language: str) -> list[Identifier]:
    """The identifiers of a file's code, in order; names of keyword arguments, which are the callee's, are left out."""
    if not has_grammar(language):
        return []
    source, root = parse(text, language)
    found = []
    for node in nodes(root, language, _KINDS[language]["identifiers"]):
        parent = node.parent
        if parent is not None and parent.type == "keyword_argument" and _is(parent, "name", node):
            continue
        row, column = node.start_point
        line_start = source.rfind(b"\n", 0, node.start_byte) + 1
        if column and not source[line_start : node.start_byte].isascii():
            column = len(source[line_start : node.start_byte].decode("utf-8", "replace"))
        found.append(Identifier(_text(node, source), row, column, _chain_root(node, source)))
    return found


def called_names(program: str) -> list[tuple[str, str]]:
    """The calls of a Python program: the whole chain that is called (``np.linalg.norm``) and its last name (``norm``).

    A chain that begins with something else than a name, such as another call, is its last name alone.
    """
    source, root = parse(program, "python")
    found = []
    for node in nodes(root, "python", {"call"}):
        if (target := node.child_by_field_name("function")) is None:
            continue
        parts = [part.strip() for part in _text(target, source).split(".")]
        if all(part.isidentifier() for part in parts):
            found.append((".".join(parts), parts[-1]))
        elif parts[-1].isidentifier():
            found.append((parts[-1], parts[-1]))
    return found


def skeleton(text: str, language: str) -> str:
    """The file without the bodies of its functions: imports, classes, their fields, and signatures.

    Docstrings of modules and classes stay as their first line; a body becomes ``...`` (Python) or nothing (Java).
    Empty for a file without declarations or without a grammar.
    """
    if not has_grammar(language):
        return ""
    source, root = parse(text, language)
    cuts: list[tuple[int, int, bytes]] = []
    declares = 0
    for node in nodes(root, language, _KINDS[language]["declares"], inside=False):
        declares += 1
        cuts += _body_cuts(node, language)
    if not declares:
        return ""
    cuts += _docstring_cuts(root, source) if language == "python" else []
    for node in nodes(root, language, {"comment", "line_comment", "block_comment"}):
        cuts.append((node.start_byte, node.end_byte, b""))
    pieces, place = [], 0
    for start, end, new in sorted(cuts):
        if start < place:
            continue  # inside of what is cut already
        pieces += [source[place:start], new]
        place = end
    pieces.append(source[place:])
    lines = b"".join(pieces).decode("utf-8", "replace").split("\n")
    return "\n".join(line.rstrip() for line in lines if line.strip()) + "\n"


def blocks(text: str, language: str, most_lines: int = 40) -> list[tuple[int, int]]:
    """First and last line (behind it) of the parts of a file that belong together: its top-level statements, short ones joined.

    A statement of more than ``most_lines`` is cut into pieces of that many. Files without a grammar are cut likewise.
    """
    num_lines = text.count("\n") + (not text.endswith("\n"))
    starts = [0]
    if has_grammar(language):
        _, root = parse(text, language)
        starts += [child.start_point[0] for child in root.named_children]
    ends = [*sorted(set(starts))[1:], num_lines]
    found: list[tuple[int, int]] = []
    for start, end in zip(sorted(set(starts)), ends, strict=True):
        if found and end - found[-1][0] <= most_lines // 2:
            found[-1] = (found[-1][0], end)
            continue
        for first in range(start, end, most_lines):
            found.append((first, min(first + most_lines, end)))
    return found


@functools.cache
def _parser(language: str) -> Any:
    from tree_sitter import Language, Parser

    return Parser(Language(importlib.import_module(_GRAMMARS[language]).language()))


def parse(text: str, language: str) -> tuple[bytes, Any]:
    """The text as bytes, and the root of its syntax tree."""
    source = text.encode("utf-8", "replace")
    return source, _parser(language).parse(source).root_node


def nodes(root: Any, language: str, kinds: frozenset[str] | set[str], *, inside: bool = True) -> list[Any]:
    """The nodes of some kinds, in order; with ``inside=False`` not those within a function that is among them."""
    from tree_sitter import QueryCursor

    captured = QueryCursor(_query(language, frozenset(kinds))).captures(root)
    found = sorted(captured.get("node", []), key=lambda node: (node.start_byte, -node.end_byte))
    if inside:
        return found
    outer, end = [], -1
    for node in found:
        if node.start_byte >= end:
            outer.append(node)
            if node.type in _KINDS[language]["bodies"]:
                end = node.end_byte
    return outer


@functools.cache
def _query(language: str, kinds: frozenset[str]) -> Any:
    """The query for nodes of some kinds; those that the grammar does not have are left out."""
    from tree_sitter import Query

    grammar = _parser(language).language
    known = sorted(kind for kind in kinds if grammar.id_for_node_kind(kind, True))
    return Query(grammar, " ".join(f"({kind}) @node" for kind in known))


def _text(node: Any, source: bytes) -> str:
    return source[node.start_byte : node.end_byte].decode("utf-8", "replace")


def _is(parent: Any, field: str, node: Any) -> bool:
    other = parent.child_by_field_name(field)
    return other is not None and other.id == node.id


def _named(node: Any, source: bytes) -> tuple[str, str | None]:
    """A dotted name of an import, and its alias."""
    if node.type == "aliased_import":
        return _text(node.child_by_field_name("name"), source), _text(
            node.child_by_field_name("alias"), source
        )
    return _text(node, source), None


def _java_import(node: Any, source: bytes) -> Iterator[Import]:
    dotted = next((_text(child, source) for child in node.named_children if "identifier" in child.type), "")
    if any(child.type == "asterisk" for child in node.named_children):
        yield Import(dotted, "*", "*")
    elif any(child.type == "static" for child in node.children):
        owner, _, name = dotted.rpartition(".")
        yield Import(owner, name, name)
    elif dotted:
        yield Import(dotted, None, dotted.rpartition(".")[2])


def _chain_root(node: Any, source: bytes) -> str | None:
    """The first name of the chain of attributes that ends with an identifier."""
    while (parent := node.parent) is not None:
        member = {"attribute": "attribute", "field_access": "field", "method_invocation": "name"}.get(
            parent.type
        )
        if member is None or not _is(parent, member, node):
            break
        owner = parent.child_by_field_name("object")
        if owner is None:
            break  # a method of the class itself
        while owner.type in ("attribute", "field_access"):
            owner = owner.child_by_field_name("object")
        return _text(owner, source) if owner.type == "identifier" else None
    return _text(node, source)


def _body_cuts(node: Any, language: str) -> list[tuple[int, int, bytes]]:
    """What a skeleton leaves out of a declaration: the body of a function, nothing of a class."""
    if node.type not in _KINDS[language]["bodies"]:
        return []
    body = node.child_by_field_name("body")
    if body is None:
        return []
    if language == "java":
        return [(body.prev_sibling.end_byte if body.prev_sibling else body.start_byte, body.end_byte, b";")]
    colon = max(child.end_byte for child in node.children if child.type == ":")
    return [(colon, body.end_byte, b" ...")]


def _docstring_cuts(root: Any, source: bytes) -> Iterator[tuple[int, int, bytes]]:
    """What is behind the first line of the docstrings of a module and its classes."""
    for node in [
        root,
        *(n.child_by_field_name("body") for n in nodes(root, "python", {"class_definition"})),
    ]:
        first = (
            next((child for child in node.named_children if child.type != "comment"), None) if node else None
        )
        text = (
            first.named_children[0]
            if first and first.type == "expression_statement" and first.named_children
            else None
        )
        if text is not None and text.type == "string":
            newline = source.find(b"\n", text.start_byte, text.end_byte)
            if newline >= 0:
                quote = source[text.end_byte - 3 : text.end_byte]
                yield newline, text.end_byte, quote
