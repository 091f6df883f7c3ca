"""Project-level completion as the harness of Long Code Arena scores a line."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz import fuzz

from luthier.registry import metric


@metric("long_code_arena_exact_match")
def long_code_arena_exact_match(outputs: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Whether output and target are equal without the white space around them; inside, white space counts.

    Args:
        outputs: Generated lines, shape (row,).
        targets: Lines of the file, shape (row,).

    Returns:
        0.0 or 1.0 for each row.

    Source: Long Code Arena, lca-baselines, ``project_level_code_completion/eval/line_generators.py``.
    """
    return [float(output.strip() == target.strip()) for output, target in zip(outputs, targets, strict=True)]


@metric("long_code_arena_edit_similarity")
def long_code_arena_edit_similarity(outputs: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Share of characters in common, in order, rounded to a whole per cent for each row; white space counts, indents included.

    Args:
        outputs: Generated lines, shape (row,).
        targets: Lines of the file, shape (row,).

    Returns:
        In [0, 1] for each row.

    Source: Long Code Arena, lca-baselines, ``project_level_code_completion/eval/line_generators.py``, whose
    ``thefuzz.fuzz.ratio`` rounds rapidfuzz's.
    """
    return [round(fuzz.ratio(o.strip("\n"), t)) / 100 for o, t in zip(outputs, targets, strict=True)]
