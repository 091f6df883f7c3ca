"""Functions of a file and the shape of code, by tree-sitter. Places are bytes of the UTF-8 text."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import tree_sitter
import tree_sitter_cpp
import tree_sitter_java
import tree_sitter_python

from luthier.encoding.lexer import Language

Parsed = Literal["python", "java"]
PARSED: tuple[Parsed, ...] = ("python", "java")

_FUNCTIONS: dict[Language, set[str]] = {
    "c": {"function_definition"},
    "python": {"function_definition"},
    "java": {"method_declaration", "constructor_declaration", "compact_constructor_declaration"},
}
_OWNERS: dict[Language, set[str]] = {
    "c": {"class_specifier", "struct_specifier", "namespace_definition"},
    "python": {"class_definition", "function_definition"},
    "java": {
        "class_declaration", "interface_declaration", "enum_declaration", "record_declaration",
        "annotation_type_declaration",
    },
}  # fmt: skip
_OUTSIDE = {
    "python": {
        "import_statement",
        "import_from_statement",
        "future_import_statement",
        "expression_statement",
    },
    "java": {"package_declaration", "import_declaration", "field_declaration", "constant_declaration"},
}
# What holds those, beside functions, whose insides are nobody else's.
_HOLDERS = {
    "python": {"module", "class_definition", "block", "decorated_definition"},
    "java": {
        "program", "class_declaration", "class_body", "interface_declaration", "interface_body", "enum_declaration",
        "enum_body", "enum_body_declarations", "record_declaration",
    },
}  # fmt: skip
# Nodes that change no meaning: brackets round an expression.
_TRANSPARENT = {"parenthesized_expression"}


@dataclass(frozen=True, slots=True)
class Function:
    """A function or method of a file.

    Attributes:
        name: With the classes and functions round it, joined by dots; a second one of the same name has ``#2`` behind.
        start, end: Its whole lines in the file's bytes, decorators included; just itself where it shares a line.
        parameters: What tells functions of one name apart: the types of its parameters (Java), or their text.
    """

    name: str
    start: int
    end: int
    parameters: str = ""


def functions(text: bytes, language: Language) -> list[Function]:
    """The functions of a file in order, nested ones after those that hold them."""
    found: list[Function] = []
    seen: dict[str, int] = {}
    walk: list[tuple[tree_sitter.Node, str]] = [(tree(text, language).root_node, "")]
    while walk:
        node, owner = walk.pop()
        if node.type in _FUNCTIONS[language]:
            name = owner + _name(node)
            seen[name] = seen.get(name, 0) + 1
            shown = name if seen[name] == 1 else f"{name}#{seen[name]}"
            outer = node.parent if node.parent and node.parent.type == "decorated_definition" else node
            found.append(
                Function(shown, *_whole_lines(text, outer.start_byte, outer.end_byte), _parameters(node))
            )
        inner = f"{owner}{_name(node)}." if node.type in _OWNERS[language] else owner
        walk += [(child, inner) for child in reversed(node.named_children)]
    return found


def outside(text: bytes, language: Parsed, function: Function) -> str:
    """Imports, fields and values of the module that stand before a function: what it may use, a line each."""
    lines: list[str] = []
    walk = [tree(text, language).root_node]
    while walk:
        node = walk.pop()
        if node.start_byte >= function.start:
            continue
        if node.type in _OUTSIDE[language]:
            piece = text[node.start_byte : node.end_byte].decode("utf-8", "replace")
            if node.type != "expression_statement" or node.named_children[0].type == "assignment":
                lines.append(f"{piece}\n")
        elif node.type in _HOLDERS[language]:
            walk += reversed(node.named_children)
    return "".join(lines)


def parses(text: str, language: Parsed) -> bool:
    """Whether the text is code without an error, as a whole file or (Java) as members of a class."""
    return _root(text, language) is not None


def shape(text: str, language: Parsed) -> tuple[object, ...] | None:
    """The syntax tree with its words, without comments and needless brackets; None if the text does not parse."""
    root = _root(text, language)
    return None if root is None else _shape(root)


def _shape(root: tree_sitter.Node) -> tuple[object, ...]:
    flat: list[object] = []
    walk: list[tree_sitter.Node | None] = [root]
    while walk:
        node = walk.pop()
        if node is None:
            flat.append(None)
            continue
        if "comment" in node.type:
            continue
        children = list(node.children)
        if node.type in _TRANSPARENT:
            walk += [child for child in reversed(children) if child.is_named]
            continue
        flat.append(node.type)
        if not children:
            flat.append(node.text)
            continue
        walk.append(None)
        walk += reversed(children)
    return tuple(flat)


def _root(text: str, language: Parsed) -> tree_sitter.Node | None:
    root = tree(_dedented(text).encode("utf-8", "surrogatepass"), language).root_node
    if root.has_error and language == "java":  # a method outside of a class is none to the grammar
        root = tree(f"class X {{\n{text}\n}}".encode("utf-8", "surrogatepass"), language).root_node
    return None if root.has_error else root


def _dedented(text: str) -> str:
    """A function that stands indented in its file, moved to the margin: in Python an indent may not come first."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    if not indent:
        return text
    return "\n".join(line.removeprefix(indent) for line in text.split("\n"))


def _name(node: tree_sitter.Node) -> str:
    name = node.child_by_field_name("name")
    while (
        name is None and (inner := node.child_by_field_name("declarator")) is not None
    ):  # C: *f(int), A::f()
        node = inner
        name = (
            node
            if node.type in ("identifier", "field_identifier", "destructor_name", "operator_name")
            else None
        )
        name = name or node.child_by_field_name("name")
    return "" if name is None or name.text is None else name.text.decode("utf-8", "replace")


def _parameters(node: tree_sitter.Node) -> str:
    held = node.child_by_field_name("parameters")
    if held is None:
        return ""
    types = [one.child_by_field_name("type") for one in held.named_children]
    # A parameter's dimensions may stand behind its name, and a spread one has no field for its type.
    typed = all(types) and all(one.child_by_field_name("dimensions") is None for one in held.named_children)
    pieces = [one.text for one in types if one is not None] if typed and held.named_children else [held.text]
    return ",".join("".join((piece or b"").decode("utf-8", "replace").split()) for piece in pieces)


def _whole_lines(text: bytes, start: int, end: int) -> tuple[int, int]:
    line = text.rfind(b"\n", 0, start) + 1
    stop = text.find(b"\n", end)
    stop = len(text) if stop < 0 else stop + 1
    if text[line:start].strip() or text[end:stop].strip():
        return start, end
    return line, stop


@functools.lru_cache(maxsize=8)  # one file is looked at for each of its functions
def tree(text: bytes, language: Language) -> tree_sitter.Tree:
    """The syntax tree of a text, errors included."""
    return _parser(language).parse(text)


@functools.cache
def _parser(language: Language) -> tree_sitter.Parser:
    grammar = {"python": tree_sitter_python, "java": tree_sitter_java, "c": tree_sitter_cpp}[language]
    return tree_sitter.Parser(tree_sitter.Language(grammar.language()))
