"""Code without what its comments, names and texts say about it: renamed by the rules of its language, alike on both sides of a fix.

Renamed are names that the code itself declares (functions, parameters, variables, types, labels), and any name that gives an
answer away (``goodG2B``, ``CWE89_helper``); so are docstrings, and pieces of text that do or that name a weakness. Names of what others have written stay: they say
what the code does.
"""

from __future__ import annotations

import random
import re
from collections.abc import Hashable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import tree_sitter

from luthier.encoding.lexer import Language, without_comments
from luthier.encoding.syntax import tree

# In names and texts, wherever in a word: what benchmarks of vulnerabilities call their good and bad halves.
GIVEAWAY = re.compile(
    r"good|bad|cwe[-_ ]?\d*|flaw|vuln|taint|unsafe|insecure|exploit|malicious|attack|injection|overflow|g2b|b2g"
    r"|(?<![a-z])fix(ed|es)?(?![a-z])",
    re.IGNORECASE,
)
# In texts alone: what messages call a weakness.
_WEAKNESS = re.compile(
    r"cve-\d|cross.?site|xss|csrf|traversal|use.after.free|double.free|out.of.bounds|off.by.one|divi\w+.by.zero"
    r"|null.(pointer.)?deref|deseriali|hard.?coded|untrusted|saniti[sz]|weakness|race.condition|leak",
    re.IGNORECASE,
)
_NAMES = {
    "identifier", "type_identifier", "field_identifier", "statement_identifier", "namespace_identifier",
}  # fmt: skip
_TEXTS = {"string_content", "string_fragment", "raw_string_content", "multiline_string_fragment"}
# New names get numbers up to this, where they are drawn.
_NUMBERS = 100
_KEPT = {"self", "cls", "this", "main"}
# Declarations: type of the node -> the field that holds the name, and what kind of name it is.
_DECLARED: dict[Language, dict[str, tuple[str, str]]] = {
    "python": {
        "function_definition": ("name", "func"),
        "class_definition": ("name", "type"),
        "default_parameter": ("name", "var"),
        "typed_default_parameter": ("name", "var"),
        "assignment": ("left", "var"),
        "augmented_assignment": ("left", "var"),
        "for_statement": ("left", "var"),
        "for_in_clause": ("left", "var"),
        "named_expression": ("name", "var"),
    },
    "java": {
        "method_declaration": ("name", "func"),
        "constructor_declaration": ("name", "type"),
        "class_declaration": ("name", "type"),
        "interface_declaration": ("name", "type"),
        "enum_declaration": ("name", "type"),
        "record_declaration": ("name", "type"),
        "formal_parameter": ("name", "var"),
        "catch_formal_parameter": ("name", "var"),
        "variable_declarator": ("name", "var"),
        "enhanced_for_statement": ("name", "var"),
        "resource": ("name", "var"),
    },
    "c": {
        "function_definition": ("declarator", "func"),
        "parameter_declaration": ("declarator", "var"),
        "optional_parameter_declaration": ("declarator", "var"),
        "init_declarator": ("declarator", "var"),
        "declaration": ("declarator", "var"),
        "for_range_loop": ("declarator", "var"),
        "labeled_statement": ("label", "label"),
        "preproc_def": ("name", "var"),
    },
}
# Nodes all of whose direct names are declared.
_LISTS = {
    "parameters": "var", "lambda_parameters": "var", "typed_parameter": "var", "list_splat_pattern": "var",
    "dictionary_splat_pattern": "var", "as_pattern_target": "var", "inferred_parameters": "var",
}  # fmt: skip
# Patterns that hold further names.
_PATTERNS = {"pattern_list", "tuple_pattern", "list_pattern", "tuple", "list", "list_splat_pattern"}
# A name in this field of such a node is somebody else's, whatever is declared here.
_OTHERS = {
    "attribute": "attribute",
    "keyword_argument": "name",
    "field_access": "field",
}
_CALLS = {"call": "function", "method_invocation": "name", "call_expression": "function"}


def anonymous(
    sides: Sequence[str], language: Language, *, everything: bool = False, all_texts: bool = False
) -> list[str]:
    """Versions of a function without comments, with the same new names for the same old ones in all of them.

    Texts that stand as a statement of their own, such as docstrings, are comments to a reader: each becomes ``text_1``.

    Each version's outermost function gets the same name, and so do names that differ in nothing but what tells
    (``badSink``, ``goodG2BSink``). The names of one version are numbered as they come. Those of several, or all names, get
    numbers drawn from a range: numbers that grow would tell which version is the later, or how many names there are.

    Args:
        sides: The versions.
        language: Theirs.
        everything: Rename the names of libraries and members as well.
        all_texts: Replace all pieces of text, and not only those that tell.

    Raises:
        NotCode: Something in a version is no token of its language.
    """
    parsed = [_Parsed(without_comments(side, language), language) for side in sides]
    declared: dict[str, str] = {}
    for one in parsed:
        declared |= {name: kind for name, kind in one.declared() if name not in declared}
    names = _Names({word for one in parsed for word in one.names()} - declared.keys())
    pieces = [one.pieces(declared, everything, all_texts) for one in parsed]
    for one, own in zip(parsed, pieces, strict=True):
        names.meet(own, next((name for name, kind in one.declared() if kind == "func"), None))
    seed = "\0".join(sides).encode("utf-8", "surrogatepass")
    names.number(random.Random(seed) if len(sides) > 1 or everything else None)
    return [one.rewritten(own, names) for one, own in zip(parsed, pieces, strict=True)]


def identifiers(text: str, language: Language) -> list[str]:
    """The names in a piece of code, in order; keywords and comments are none."""
    return _Parsed(text, language).names()


class _Piece(NamedTuple):
    """A name or text that is to be replaced: its place in bytes, and what kind of name it is."""

    start: int
    end: int
    text: str
    kind: str


class _Names:
    """New names by old ones.

    Args:
        taken: Names that stay.
    """

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken
        self._kinds: dict[Hashable, str] = {}
        self._new: dict[Hashable, str] = {}
        self._outermost: set[Hashable] = set()
        # What a name that tells stands for: its kind, its text without what tells, and a number where one version has several.
        self._slots: dict[str, tuple[str, str, int]] = {}

    def meet(self, pieces: Sequence[_Piece], outermost: str | None) -> None:
        """Takes in the names of a version."""
        telling = {piece.text: piece.kind for piece in pieces if GIVEAWAY.search(piece.text)}
        used = {self._slots[text] for text in telling if text in self._slots}
        for text, kind in telling.items():
            if text not in self._slots:
                rest = re.sub(r"[\W_]", "", GIVEAWAY.sub("", text)).lower()
                slot = next(slot for n in count() if (slot := (kind, rest, n)) not in used)
                self._slots[text] = slot
                used.add(slot)
        for piece in pieces:
            self._kinds.setdefault(self._key(piece.text), piece.kind)
        if outermost is not None:
            self._outermost.add(self._key(outermost))

    def number(self, draw: random.Random | None) -> None:
        """Gives each name its new one; the numbers are drawn, or go up in the order in which names were met."""
        keys = [key for key in self._kinds if key not in self._outermost]
        new = {}
        for kind in ("func", *sorted({*self._kinds.values()} - {"func"})):
            # A range that grew with names of other kinds would tell how long the function is.
            own = [key for key in keys if self._kinds[key] == kind]
            numbers = list(range(1, max(_NUMBERS, 2 * len(own)) + 1))
            if draw is not None:
                draw.shuffle(numbers)
            new[kind] = (name for name in [f"{kind}_{n}" for n in numbers] if name not in self._taken)
        self._new = dict.fromkeys(self._outermost, next(new["func"]))
        self._new |= {key: next(new[self._kinds[key]]) for key in keys}

    def of(self, piece: _Piece) -> str:
        """The new name or text."""
        return self._new[self._key(piece.text)]

    def _key(self, text: str) -> Hashable:
        return self._slots.get(text, text)


class _Parsed:
    """A piece of code with its tree, which a frame of a few bytes may surround."""

    def __init__(self, text: str, language: Language) -> None:
        self._language: Language = language
        self._before = b""
        self._bytes = text.encode("utf-8", "surrogatepass")
        root = tree(self._bytes, language).root_node
        if language == "java" and root.has_error:  # a constructor outside of a class is none to the grammar
            self._before = b"class X {\n"
            root = tree(self._before + self._bytes + b"\n}", language).root_node
        # In broken code the parser adds names that are missing.
        self._nodes = [node for node in _walk(root) if not node.is_missing]

    def names(self) -> list[str]:
        """All names, in order."""
        frame = len(self._before)
        return [_text(n) for n in self._leaves() if n.type in _NAMES and n.start_byte >= frame]

    def declared(self) -> Iterator[tuple[str, str]]:
        """Names that are declared here with their kind, outer ones first."""
        found = _DECLARED[self._language]
        for node in self._nodes:
            if node.start_byte < len(self._before):
                continue  # the frame's own
            if node.type in found:
                field, kind = found[node.type]
                for name in node.children_by_field_name(field):
                    yield from self._declared_by(name, kind)
            elif node.type in _LISTS:
                for child in node.named_children:
                    if child.type == "identifier":
                        yield from self._declared_by(child, _LISTS[node.type])
            elif node.type == "lambda_expression":
                parameter = node.child_by_field_name("parameters")
                if parameter is not None and parameter.type == "identifier":
                    yield from self._declared_by(parameter, "var")
            elif node.type == "labeled_statement":
                yield from self._declared_by(node.named_children[0], "label")

    def _declared_by(self, node: tree_sitter.Node | None, kind: str) -> Iterator[tuple[str, str]]:
        """The names of a declarator or pattern."""
        if node is None or node.is_missing:
            return
        if node.type in _NAMES:
            name = _text(node)
            if name not in _KEPT and not (name.startswith("__") and name.endswith("__")):
                yield name, kind
        elif node.type in _PATTERNS:
            for child in node.named_children:
                yield from self._declared_by(child, kind)
        elif node.type == "function_declarator":
            yield from self._declared_by(node.child_by_field_name("declarator"), "func")
        elif node.type == "qualified_identifier":
            yield from self._declared_by(node.child_by_field_name("name"), kind)
        elif node.type.endswith("_declarator"):
            inner = node.child_by_field_name("declarator")
            yield from self._declared_by(inner or next(iter(node.named_children), None), kind)

    def pieces(self, declared: dict[str, str], everything: bool, all_texts: bool) -> list[_Piece]:
        """What is to be replaced, in order."""
        found = []
        for node in self._nodes:
            start, end = node.start_byte - len(self._before), node.end_byte - len(self._before)
            if start < 0 or not (node.type in _TEXTS or node.type in _NAMES):
                continue
            text = _text(node)
            if node.type in _TEXTS:
                tells = GIVEAWAY.search(text) or _WEAKNESS.search(text) or _is_statement(node)
                kind = "text" if all_texts or tells else None
            elif text in declared and (everything or not _is_others(node, declared[text])):
                kind = declared[text]
            elif everything:
                kind = None if text in _KEPT else _kind(node)
            else:
                kind = _kind(node) if GIVEAWAY.search(text) else None
            if kind is not None:
                found.append(_Piece(start, end, text, kind))
        return found

    def rewritten(self, pieces: Sequence[_Piece], names: _Names) -> str:
        """The text with new names and texts."""
        parts: list[bytes] = []
        place = 0
        for piece in pieces:
            parts += [self._bytes[place : piece.start], names.of(piece).encode()]
            place = piece.end
        return b"".join([*parts, self._bytes[place:]]).decode("utf-8", "surrogatepass")

    def _leaves(self) -> Iterator[tree_sitter.Node]:
        return (node for node in self._nodes if not node.named_child_count)


def _walk(root: tree_sitter.Node) -> Iterator[tree_sitter.Node]:
    """All nodes in the order of the text."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += reversed(node.children)


def _text(node: tree_sitter.Node) -> str:
    return (node.text or b"").decode("utf-8", "surrogatepass")


def _is_field(node: tree_sitter.Node, fields: dict[str, str]) -> bool:
    parent = node.parent
    return (
        parent is not None
        and parent.type in fields
        and parent.child_by_field_name(fields[parent.type]) == node
    )


def _is_statement(node: tree_sitter.Node) -> bool:
    """Whether a piece of text is a statement of its own, as docstrings are."""
    owner = node.parent and node.parent.parent
    return owner is not None and owner.type == "expression_statement"


def _is_others(node: tree_sitter.Node, kind: str) -> bool:
    """Whether a name that is declared as such a kind is another one here: a member, an argument's, a method's."""
    if kind != "func" and _is_field(node, {"method_invocation": "name"}):
        return True
    return node.type == "field_identifier" or _is_field(node, _OTHERS)


def _kind(node: tree_sitter.Node) -> str:
    """What a name that is not declared here stands for, as far as its place tells."""
    if node.type in ("type_identifier", "namespace_identifier"):
        return "type"
    owner = node.parent if _is_others(node, "func") and node.parent is not None else node
    return "func" if _is_field(owner, _CALLS) else "var"
