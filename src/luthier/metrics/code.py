"""Whether two pieces of code are the same to a parser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.encoding.lexer import split_lines
from luthier.encoding.repair import Place, patched
from luthier.encoding.syntax import PARSED, shape
from luthier.registry import metric


@metric("ast_match")
def ast_match(
    outputs: Sequence[str], targets: Sequence[str], *, metas: Sequence[Mapping[str, Any]]
) -> list[float]:
    """1 where the function with the output in it has the syntax tree of the fixed one; white space and comments are none of it.

    Args:
        outputs: Generated fixes, in the representation of the row.
        targets: The true ones.
        metas: Of rows of the task ``repair``.

    Returns:
        0 or 1 a row; 0 where a side does not parse, or its language has no parser here.
    """
    scores = []
    for output, target, meta in zip(outputs, targets, metas, strict=True):
        place = Place(
            tuple(split_lines(str(meta.get("before", "")))),
            int(meta.get("start", 0)),
            int(meta.get("end", 0)),
        )
        sides = [patched(place, text, meta.get("output", "OR1")) for text in (output, target)]
        scores.append(float(same_tree(sides[0], sides[1], str(meta.get("language", "")))))
    return scores


def same_tree(one: str | None, other: str | None, language: str) -> bool:
    """Whether two functions parse to the same tree."""
    if one is None or other is None or language not in PARSED:
        return False
    first = shape(one, language)
    return first is not None and first == shape(other, language)
