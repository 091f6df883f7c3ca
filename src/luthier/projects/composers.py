"""Context composers: which of a project's files a row shows, in which form and order. The last piece stands nearest to the target.

Each is one function of the project, of what is known of the target, and of a generator for what is drawn. None looks at
what stands behind the target's beginning.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.projects.project import File, Project, words

_QUERY_LINES = 60
_MOST_RETRIEVED = 60


@dataclass(frozen=True, slots=True)
class Target:
    """The file that is completed, as far as it is known.

    Attributes:
        path: Of the file.
        prefix: Its text before the lines that are completed.
        text: All of its text, only to keep copies of it out of the context.
        language: Its language.
    """

    path: str
    prefix: str
    text: str
    language: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the context.

    Attributes:
        path: File that it is from.
        text: What is shown of it.
        kind: ``file`` is the whole file, ``skeleton`` without bodies, ``chunk`` a part of it, ``half`` some of its lines.
        file: The file itself; whose skeleton may take a whole file's place.
    """

    path: str
    text: str
    kind: str
    file: File


Composer = Callable[[Project, Target, random.Random], list[Piece]]


def none(project: Project, target: Target, draw: random.Random) -> list[Piece]:
    """Nothing: the file alone."""
    return []


def alphabetical(project: Project, target: Target, draw: random.Random) -> list[Piece]:
    """All files by path."""
    return _whole(project.without(target.path, target.text))


def nearest_path(project: Project, target: Target, draw: random.Random) -> list[Piece]:
    """All files, those fewest folders away nearest; of the same distance by path."""
    return _whole(project.by_distance(target.path, target.text))


def imports_first(project: Project, target: Target, draw: random.Random) -> list[Piece]:
    """Files that the target imports, in so far as that stands before the target, nearest; then by path distance."""
    files = project.by_distance(target.path, target.text)
    wanted = _imported(project, target)
    return _whole([f for f in files if f.path not in wanted] + [f for f in files if f.path in wanted])


def same_folder(project: Project, target: Target, draw: random.Random) -> list[Piece]:
    """The files of the target's folder, and no others, by path."""
    folder = target.path.rpartition("/")[0]
    return _whole([file for file in project.without(target.path, target.text) if file.folder == folder])


def shortest(project: Project, target: Target, draw: random.Random) -> list[Piece]:
    """All files, the shortest nearest, so that as many as possible fit."""
    files = project.without(target.path, target.text)
    return _whole(sorted(files, key=lambda file: (-len(file.text), file.path)))


def retrieved(project: Project, target: Target, draw: random.Random) -> list[Piece]:
    """Parts of files that share most words of their identifiers with the lines before the target (BM25), the best nearest.

    Farther away are the files of which no part was found, by path distance: at a file's beginning there is little to go by.
    """
    query = words("\n".join(target.prefix.split("\n")[-_QUERY_LINES:]))
    allowed = {file.path for file in project.without(target.path, target.text)}
    found = []
    for number in project.index.best(query, _MOST_RETRIEVED):
        file, text = project.chunks[number]
        if file.path in allowed:
            found.append(Piece(file.path, text, "chunk", file))
    taken = {piece.path for piece in found}
    return [piece for piece in nearest_path(project, target, draw) if piece.path not in taken] + found[::-1]


def skeletons(project: Project, target: Target, draw: random.Random) -> list[Piece]:
    """Files that are imported or in the same folder whole, all others as skeletons, by path distance."""
    folder, wanted = target.path.rpartition("/")[0], _imported(project, target)
    pieces = []
    for file in project.by_distance(target.path, target.text):
        if file.path in wanted or file.folder == folder:
            pieces.append(Piece(file.path, file.text, "file", file))
        elif file.skeleton:
            pieces.append(Piece(file.path, file.skeleton, "skeleton", file))
    return sorted(pieces, key=lambda piece: piece.path in wanted)


def half_memory(project: Project, target: Target, draw: random.Random) -> list[Piece]:
    """As ``nearest_path``, with each line kept or left out by a coin."""
    return [
        Piece(
            piece.path,
            "".join(line for line in piece.text.splitlines(keepends=True) if draw.random() < 0.5),
            "half",
            piece.file,
        )
        for piece in nearest_path(project, target, draw)
    ]


def shuffled(project: Project, target: Target, draw: random.Random) -> list[Piece]:
    """All files in an order that is drawn: what a choice of files is worth is what it has over this."""
    files = project.without(target.path, target.text)
    draw.shuffle(files)
    return _whole(files)


COMPOSERS: dict[str, Composer] = {
    "none": none,
    "alphabetical": alphabetical,
    "path-distance": nearest_path,
    "imports-first": imports_first,
    "same-folder": same_folder,
    "file-length": shortest,
    "retrieval": retrieved,
    "skeletons": skeletons,
    "half-memory": half_memory,
    "shuffled": shuffled,
}


@dataclass(frozen=True, slots=True)
class Kept:
    """A piece that has room, as it stands in the row.

    Attributes:
        text: With the line that names its file.
        num_tokens: Of ``text`` by itself.
        kind: As in ``Piece``, or ``outline`` for the beginning of a skeleton or chunk.
        path: File that it is from.
    """

    text: str
    num_tokens: int
    kind: str
    path: str


_MISFITS = 12
_LEAST = 64  # tokens below which there is no room for a part
_MOST_CHARS = (
    16  # characters a token at most, for what is tried: longer texts than that cannot be code that fits
)


def fit(
    pieces: Sequence[Piece], room: int, tokens: Callable[[str], Sequence[int]], title: Callable[[str], str]
) -> list[Kept]:
    """The pieces that have room, in order: whole files go before their skeletons, far ones before near ones.

    From the nearest to the farthest each is taken whole if it fits into what is left, else as its skeleton, else as the first
    lines of that (or of a chunk) in half of what is left, else not at all; after 12 in a row that did not fit the rest is not tried.

    Args:
        pieces: From a composer; the last is the nearest.
        room: Tokens that there are.
        tokens: Of a text, up to the end of each of its lines.
        title: The line that names a file.
    """
    kept: list[Kept] = []
    left, misfits = room, 0
    for piece in reversed(pieces):
        head = title(piece.path)
        own = tokens(head)[-1] + 1  # and the blank line behind it
        shorter = piece.file.skeleton if piece.kind in ("file", "half") else ""
        outline = piece.text if piece.kind in ("skeleton", "chunk") else shorter
        for text, kind, most in (
            (piece.text, piece.kind, left),
            (shorter, "skeleton", left),
            (outline, "outline", left // 2 if left >= _LEAST else 0),
        ):
            room_for = most - own
            if not text.strip() or room_for <= 0:
                continue
            if kind == "outline":
                num_lines = bisect_right(tokens(text), room_for)
                text = "".join(text.splitlines(keepends=True)[:num_lines])
            elif len(text) > _MOST_CHARS * room_for:
                continue
            if text.strip() and (size := tokens(text)[-1]) <= room_for:
                kept.append(Kept(head + text.rstrip("\n") + "\n\n", size + own, kind, piece.path))
                left -= size + own
                misfits = 0
                break
        else:
            misfits += 1
            if misfits >= _MISFITS:
                break
    return kept[::-1]


def _whole(files: Sequence[File]) -> list[Piece]:
    return [Piece(file.path, file.text, "file", file) for file in files]


def _imported(project: Project, target: Target) -> set[str]:
    found = project.imported(target.path, target.prefix, target.language)
    return set().union(*found.values()) - {target.path}
