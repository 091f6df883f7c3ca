"""Bugs planted into functions: small changes of their syntax trees, each of a kind that people make.

The kinds are among those of mutation testing. Source: DeMillo, Lipton and Sayward 1978, Computer 11(4); the operators'
names follow PIT and mutmut where they have one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import tree_sitter

from luthier.encoding.syntax import Function, Parsed, tree

Operator = Literal[
    "off-by-one",
    "swapped-operator",
    "missing-branch",
    "wrong-constant",
    "wrong-variable",
    "removed-statement",
]
OPERATORS: tuple[Operator, ...] = (
    "off-by-one", "swapped-operator", "missing-branch", "wrong-constant", "wrong-variable", "removed-statement",
)  # fmt: skip

_EDGES = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_SWAPS = {
    "+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "*", "==": "!=", "!=": "==", "and": "or", "or": "and",
    "&&": "||", "||": "&&", "is": "is not", "&": "|", "|": "&", "+=": "-=", "-=": "+=",
}  # fmt: skip
_INTEGERS = {"integer", "decimal_integer_literal"}
_CONSTANTS = {
    "true": b"false",
    "false": b"true",
    "True": b"False",
    "False": b"True",
    "None": b"0",
    "null": b"0",
}
_REMOVABLE = {
    "expression_statement",
    "return_statement",
    "continue_statement",
    "break_statement",
    "raise_statement",
}
_TEXTS = {"string", "concatenated_string"}
_NOT_VALUES = {"function_definition", "parameters", "keyword_argument", "method_declaration",
               "variable_declarator", "attribute", "field_access", "method_invocation", "call", "type_identifier",
               "class_definition", "constructor_declaration", "default_parameter", "typed_default_parameter", "typed_parameter",
               "list_splat_pattern", "dictionary_splat_pattern", "formal_parameter", "lambda_parameters", "import_statement"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change of a file.

    Attributes:
        operator: Of which kind.
        start, end: Bytes that are replaced.
        text: What by.
    """

    operator: Operator
    start: int
    end: int
    text: bytes

    def applied(self, source: bytes) -> bytes:
        """The file with the change."""
        return source[: self.start] + self.text + source[self.end :]


def mutations(source: bytes, language: Parsed, function: Function) -> list[Mutation]:
    """All changes of one function that its syntax allows, in the order of their places; not all of them are bugs."""
    found: list[Mutation] = []
    names: dict[bytes, None] = {}
    identifiers: list[tree_sitter.Node] = []
    walk = [tree(source, language).root_node]
    while walk:
        node = walk.pop()
        if node.end_byte <= function.start or node.start_byte >= function.end:
            continue
        walk += reversed(node.children)
        if node.start_byte < function.start or node.end_byte > function.end or node.text is None:
            continue
        found += _of_node(source, language, node)
        if node.type == "identifier" and node.parent is not None and node.parent.type not in _NOT_VALUES:
            identifiers.append(node)
            names.setdefault(node.text)
    ordered = list(names)
    for node in identifiers:
        others = [name for name in ordered if name != node.text]
        if (
            others and node.text is not None
        ):  # the neighbour in the order of first use, so that nothing is drawn
            other = others[ordered.index(node.text) % len(others)]
            found.append(Mutation("wrong-variable", node.start_byte, node.end_byte, other))
    return sorted(set(found), key=lambda m: (m.start, m.end, m.operator, m.text))


def planted(
    source: bytes,
    language: Parsed,
    function: Function,
    draw: random.Random,
    operators: tuple[Operator, ...] = OPERATORS,
) -> Iterator[Mutation]:
    """The changes of a function in a drawn order, operators in turn, so that the common ones do not crowd out the rare."""
    piles: dict[Operator, list[Mutation]] = {operator: [] for operator in operators}
    for mutation in mutations(source, language, function):
        if mutation.operator in piles:
            piles[mutation.operator].append(mutation)
    kinds = list(operators)
    draw.shuffle(kinds)
    for pile in piles.values():
        draw.shuffle(pile)
    while any(piles.values()):
        for kind in kinds:
            if piles[kind]:
                yield piles[kind].pop()


def _of_node(source: bytes, language: Parsed, node: tree_sitter.Node) -> Iterator[Mutation]:
    word = node.type
    parent = node.parent.type if node.parent is not None else ""
    text = node.text or b""
    if not node.is_named and parent in (
        "binary_operator", "comparison_operator", "boolean_operator", "binary_expression", "augmented_assignment",
        "assignment_expression",
    ):  # fmt: skip
        for swaps, operator in ((_EDGES, "off-by-one"), (_SWAPS, "swapped-operator")):
            if word in swaps:
                yield Mutation(operator, node.start_byte, node.end_byte, swaps[word].encode())  # type: ignore[arg-type] # one of both
    elif word in _INTEGERS and text.isdigit():
        yield Mutation("off-by-one", node.start_byte, node.end_byte, str(int(text) + 1).encode())
        if int(text):
            yield Mutation("wrong-constant", node.start_byte, node.end_byte, b"0")
    elif text.decode("utf-8", "replace") in _CONSTANTS and word in ("true", "false", "none", "null_literal"):
        yield Mutation("wrong-constant", node.start_byte, node.end_byte, _CONSTANTS[text.decode()])
    elif word == "if_statement" and node.child_by_field_name("alternative") is None:
        yield from _removed(source, language, node, "missing-branch")
    elif word in _REMOVABLE and not (
        word == "expression_statement" and node.named_children[0].type in _TEXTS  # a docstring does nothing
    ):
        yield from _removed(source, language, node, "removed-statement")


def _removed(
    source: bytes, language: Parsed, node: tree_sitter.Node, operator: Operator
) -> Iterator[Mutation]:
    """The statement taken out with its lines, where it has them for itself; in Python an empty block gets a ``pass``."""
    start = source.rfind(b"\n", 0, node.start_byte) + 1
    end = source.find(b"\n", node.end_byte) + 1 or len(source)
    if source[start : node.start_byte].strip() or source[node.end_byte : end].strip():
        return
    siblings = [
        child for child in (node.parent.named_children if node.parent else []) if child.type != "comment"
    ]
    indent = source[start : node.start_byte]
    text = indent + b"pass\n" if language == "python" and len(siblings) == 1 else b""
    if language == "java" and node.parent is not None and node.parent.type != "block":
        return
    yield Mutation(operator, start, end, text)
