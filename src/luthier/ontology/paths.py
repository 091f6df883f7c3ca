"""The text form of category paths: written into responses, read back from what a model wrote."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_ODD_SPACE = re.compile(r"\s\s|[^\S ]")
_ANY_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a response.

    Attributes:
        text: Its characters.
        path, position: Which node of which path it is; position -1 for what stands between nodes and behind them.
    """

    text: str
    path: int
    position: int


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is a path.

    Attributes:
        titles: From the root to the last node.
        places: Start and end of each node in the text, with the white space before it; shape (node, 2).
    """

    titles: tuple[str, ...]
    places: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Parsed:
    """What was found in a text.

    Attributes:
        lines: The valid lines in order, each path once.
        invalid: Lines left out, by reason.
        num_repeated: Valid lines that said a path again.
    """

    lines: list[Line] = field(default_factory=list)
    invalid: Counter[str] = field(default_factory=Counter)
    num_repeated: int = 0


@dataclass(frozen=True, slots=True)
class PathFormat:
    """How paths are written: ``root -> node -> node`` and a line end.

    Attributes:
        root: Title of the root, with which every path begins.
        separator: What stands between two nodes.
    """

    root: str
    separator: str = " -> "

    def problem(self, title: str) -> str | None:
        """Why a title could not be read back as it was, or None."""
        if not title.strip():
            return "it has no visible character"
        if self.separator in title:
            return f"it holds the separator {self.separator!r}"
        if title != title.strip() or _ODD_SPACE.search(title):
            return "it has white space at an end, twice in a row, or other than spaces"
        # The end of a title and what follows may spell the separator one character too early.
        if (title + self.separator).find(self.separator) != len(title):
            return f"its end runs into the separator {self.separator!r}"
        return None

    def escaped(self, title: str) -> str:
        """The title in a form that can be read back: single spaces, and no separator.

        Raises:
            ValueError: Nothing of it is left, or the separator cannot be taken out.
        """
        bare = self.separator.strip()
        put = bare if bare != self.separator else " "
        text = _ANY_SPACE.sub(" ", title).replace(self.separator, put)
        text = _ANY_SPACE.sub(" ", text).strip()
        if self.problem(text):
            raise ValueError(f"{title!r} cannot be escaped: {self.problem(text)}")
        return text

    def pieces(self, paths: Sequence[Sequence[str]]) -> list[Piece]:
        """The response of some paths, piece by piece.

        The space before a node belongs to it and not to the separator, for that is where tokenizers put it.
        """
        mark = self.separator.rstrip()
        space = self.separator[len(mark) :]
        pieces = []
        for number, path in enumerate(paths):
            for position, title in enumerate(path):
                if position:
                    pieces.append(Piece(mark, number, -1))
                pieces.append(Piece(space + title if position else title, number, position))
            pieces.append(Piece("\n", number, -1))
        return pieces

    def write(self, paths: Sequence[Sequence[str]]) -> str:
        """The response of some paths: one a line, each line ended."""
        return "".join(self.separator.join(path) + "\n" for path in paths)

    def parse(self, text: str, *, ended: bool = True, known: Callable[[str], bool] | None = None) -> Parsed:
        """The paths in a text that a model wrote. A line that is not ``root( -> node)+`` is left out and counted.

        Reasons: ``blank`` (nothing visible), ``other-root`` (it does not begin with the root), ``root-only``,
        ``empty-node``, ``white-space`` (at an end of a node, or twice in a row), ``unknown-node`` and ``unfinished``
        (the last line of a text that was cut off).

        Args:
            text: Any text.
            ended: Whether the model ended it; else its last line is unfinished unless it has a line end.
            known: Whether a title may stand in a path; all may, if not given.
        """
        parsed = Parsed()
        seen: set[tuple[str, ...]] = set()
        start = 0
        for line in text.split("\n"):
            end = start + len(line)
            is_last = end == len(text)
            if is_last and not line:
                break
            result = "unfinished" if is_last and not ended else self._line(line, start, known)
            start = end + 1
            if isinstance(result, str):
                parsed.invalid[result] += 1
            elif result.titles in seen:
                parsed.num_repeated += 1
            else:
                seen.add(result.titles)
                parsed.lines.append(result)
        return parsed

    def _line(self, line: str, offset: int, known: Callable[[str], bool] | None) -> Line | str:
        if not line.strip():
            return "blank"
        titles = line.split(self.separator)
        if titles[0] != self.root:
            return "other-root"
        if len(titles) == 1:
            return "root-only"
        if not all(title.strip() for title in titles):
            return "empty-node"
        if any(title != title.strip() or _ODD_SPACE.search(title) for title in titles):
            return "white-space"
        if known is not None and not all(map(known, titles[1:])):
            return "unknown-node"
        num_space = len(self.separator) - len(self.separator.rstrip())
        places = []
        start = offset
        for number, title in enumerate(titles):
            places.append((start - num_space if number else start, start + len(title)))
            start += len(title) + len(self.separator)
        return Line(tuple(titles), tuple(places))
