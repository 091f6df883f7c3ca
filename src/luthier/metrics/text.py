"""How close a generated text is to the wanted one."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz import fuzz

from luthier.registry import metric


@metric("exact_match")
def exact_match(outputs: Sequence[str], targets: Sequence[str]) -> list[float]:
    """1 where output and target are the same words in the same order, else 0.

    White space only separates: ``x = 1`` equals ``x  =  1`` and differs from ``x=1``.

    Args:
        outputs: Generated texts, shape (row,).
        targets: Wanted texts, shape (row,).

    Returns:
        0.0 or 1.0 for each row. Two empty texts are equal.

    Source: CodeXGLUE, line-level completion, ``evaluator.py``: ``pred.split() == gt.split()``.
    """
    return [float(output.split() == target.split()) for output, target in zip(outputs, targets, strict=True)]


@metric("edit_similarity")
def edit_similarity(outputs: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Share of characters that output and target have in common, in order.

    ``2 * LCS(output, target) / (len(output) + len(target))`` over Unicode characters, LCS the length of the longest
    common subsequence. White space counts.

    Args:
        outputs: Generated texts, shape (row,).
        targets: Wanted texts, shape (row,).

    Returns:
        A score in [0, 1] for each row; 1 only for equal texts, two empty ones included.

    Source: CodeXGLUE, line-level completion (``fuzz.ratio`` / 100), as computed by rapidfuzz 3.
    """
    return [fuzz.ratio(output, target) / 100 for output, target in zip(outputs, targets, strict=True)]
