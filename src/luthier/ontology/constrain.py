"""What may be written next so that a response keeps to the form of paths, or to known nodes: a grammar over bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from luthier.ontology.paths import PathFormat

# Places in a line, each a tuple: ("root", bytes written), ("separator", bytes written), ("known", node of the trie),
# ("free", whether the last byte was a space, bytes of the separator that the text ends with, begun white space other than spaces),
# ("start",) where a line begins.
Place = tuple[Any, ...]
State = frozenset[Place]
_SPACE, _LINE_END = 0x20, 0x0A
# White space outside ASCII, which no title has: the last one is U+3000.
_WIDE_SPACES = tuple(chr(code).encode() for code in range(0x80, 0x3001) if chr(code).isspace())


class PathGrammar:
    """Lines ``root( -> node)+``, each ended, where a node is any text in one line or one of the known titles.

    A state is a set of places, for what follows a title may be more of a longer one or the separator.

    Args:
        paths: Root and separator.
        titles: Known titles of nodes; None allows any text.
    """

    def __init__(self, paths: PathFormat, titles: Iterable[str] | None = None) -> None:
        self._root = paths.root.encode()
        self._separator = paths.separator.encode()
        self._trie: list[dict[int, int]] = [{}]
        self._is_title = [False]
        self._free = titles is None
        for title in titles or ():
            self._add(title.encode())
        self.start: State = frozenset({("start",)})
        self._steps: dict[tuple[Place, int], State] = {}

    def _add(self, title: bytes) -> None:
        node = 0
        for byte in title:
            if byte not in self._trie[node]:
                self._trie[node][byte] = len(self._trie)
                self._trie.append({})
                self._is_title.append(False)
            node = self._trie[node][byte]
        self._is_title[node] = True

    def step(self, state: State, byte: int) -> State:
        """Where a byte leads; the empty set if it may not come."""
        found: set[Place] = set()
        for place in state:
            key = (place, byte)
            if key not in self._steps:
                self._steps[key] = frozenset(self._from(place, byte))
            found |= self._steps[key]
        return frozenset(found)

    def walk(self, state: State, text: bytes) -> State:
        """Where some bytes lead."""
        for byte in text:
            state = self.step(state, byte)
        return state

    def may_end(self, state: State) -> bool:
        """Whether the response may end here: where a line would begin."""
        return ("start",) in state

    def _from(self, place: Place, byte: int) -> Iterable[Place]:
        kind = place[0]
        if kind in ("start", "root"):
            written = place[1] if kind == "root" else 0
            if self._root[written] == byte:
                yield ("root", written + 1) if written + 1 < len(self._root) else ("separator", 0)
        elif kind == "separator":
            if self._separator[place[1]] == byte:
                if place[1] + 1 < len(self._separator):
                    yield ("separator", place[1] + 1)
                else:
                    yield self._node
        elif kind == "known":
            if byte in self._trie[place[1]]:
                yield ("known", self._trie[place[1]][byte])
            if self._is_title[place[1]]:
                yield from self._behind_node(byte)
        else:
            _, before, matched, begun = place  # None: nothing of the node is written yet
            begun = next(
                (
                    b
                    for b in (begun + bytes([byte]), bytes([byte]))
                    if any(s.startswith(b) for s in _WIDE_SPACES)
                ),
                b"",
            )
            matched = self._ends_with(self._separator[:matched] + bytes([byte]))
            # A text that holds the separator is no title: only the place that reads it as a separator goes on.
            if matched < len(self._separator):
                if byte > _SPACE and byte != 0x7F and begun not in _WIDE_SPACES:
                    yield ("free", False, matched, begun)
                elif byte == _SPACE and before is False:
                    yield ("free", True, matched, b"")
            if before is False:
                yield from self._behind_node(byte)

    @property
    def _node(self) -> Place:
        """Where a node begins."""
        return ("free", None, 0, b"") if self._free else ("known", 0)

    def _ends_with(self, text: bytes) -> int:
        """How many bytes of the separator's beginning the text ends with."""
        return next(
            n
            for n in range(min(len(text), len(self._separator)), -1, -1)
            if text.endswith(self._separator[:n])
        )

    def _behind_node(self, byte: int) -> Iterable[Place]:
        if byte == _LINE_END:
            yield ("start",)
        if byte == self._separator[0]:
            yield ("separator", 1) if len(self._separator) > 1 else self._node


class TokenChoice:
    """The tokens that keep to a grammar, state by state.

    Args:
        grammar: Over bytes.
        tokens: Bytes of each token; None for those that are never allowed here.
        stop_ids: Tokens that end a response.
    """

    def __init__(self, grammar: PathGrammar, tokens: Sequence[bytes | None], stop_ids: Iterable[int]) -> None:
        self.grammar = grammar
        self._tokens = tokens
        self._stop_ids = sorted(stop_ids)
        self._known: dict[State, list[int]] = {}
        self._trie: dict[int, Any] = {}
        for index, text in enumerate(tokens):
            if text:
                node = self._trie
                for byte in text:
                    node = node.setdefault(byte, {})
                node.setdefault(-1, []).append(index)

    def allowed(self, state: State, *, at_start: bool = False) -> list[int]:
        """Ids that may come in a state, sorted; never none for a vocabulary that has every byte.

        Args:
            state: Of the grammar.
            at_start: Whether nothing is written yet: then the response may not end.
        """
        if state not in self._known:
            found: list[int] = []
            stack = [(self._trie, state)]
            while stack:
                node, here = stack.pop()
                found += node.get(-1, ())
                for byte, below in node.items():
                    if byte >= 0 and (there := self.grammar.step(here, byte)):
                        stack.append((below, there))
            self._known[state] = sorted(found)
        ends = self._stop_ids if self.grammar.may_end(state) and not at_start else []
        return self._known[state] + ends

    def after(self, state: State, token: int) -> State:
        """The state behind a token; the empty set behind one that is not allowed."""
        text = self._tokens[token] if token < len(self._tokens) else None
        return self.grammar.walk(state, text) if text else frozenset()
