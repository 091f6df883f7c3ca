"""Line completion as CodeXGLUE's evaluator scores it, to the last printed digit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz.distance import Indel

from luthier.registry import metric

_LITERAL = re.compile(r"<(STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)


def with_literals(text: str) -> str:
    """The text with its literals written out: a number is 0, a string empty, a kept one itself."""
    text = text.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    for kind, value in _LITERAL.findall(text):
        text = text.replace(f"<{kind}_LIT:{value}>", value)
    return text


@metric("codexglue_exact_match")
def codexglue_exact_match(outputs: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Whether output and target are the same tokens between white space, once literals are written out.

    Args:
        outputs: Generated lines in the tokens of CodeXGLUE, shape (row,).
        targets: The published ``gt``, shape (row,).

    Returns:
        0.0 or 1.0 for each row; the evaluator prints 100 times the mean.

    Source: CodeXGLUE, line-level completion, ``evaluator.py``.
    """
    pairs = zip(outputs, targets, strict=True)
    return [
        float(with_literals(output.strip()).split() == with_literals(target).split())
        for output, target in pairs
    ]


@metric("codexglue_edit_similarity")
def codexglue_edit_similarity(outputs: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Share of characters in common, in order, rounded to a whole per cent for each row as the evaluator does.

    Args:
        outputs: Generated lines in the tokens of CodeXGLUE, shape (row,).
        targets: The published ``gt``, shape (row,).

    Returns:
        In [0, 1] for each row; the evaluator prints 100 times the mean.

    Source: CodeXGLUE, line-level completion, ``evaluator.py``, whose ``fuzz.ratio`` is fuzzywuzzy's with
    python-Levenshtein; without that package fuzzywuzzy falls back on difflib, which gives other figures.
    """
    pairs = [(with_literals(o.strip()), with_literals(t)) for o, t in zip(outputs, targets, strict=True)]
    return [
        round(100 * (1 - Indel.distance(output, target) / ((len(output) + len(target)) or 1))) / 100
        for output, target in pairs
    ]
