"""How good a generated program is that had to use a library."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.errors import UserError
from luthier.execution.python_tests import all_passes
from luthier.projects.library import called_apis, resolved_calls
from luthier.registry import metric


@metric("chrf")
def chrf(outputs: Sequence[str], targets: Sequence[str]) -> list[float]:
    """ChrF of each text: the F-score (recall counts twice) of its character 1- to 6-grams, without white space.

    Args:
        outputs: Generated texts, shape (row,).
        targets: Wanted texts, shape (row,).

    Returns:
        A score in [0, 1] for each row.

    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation"; sacrebleu's sentence score / 100.
    """
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise UserError(
            "the metric chrf needs sacrebleu, which is not installed",
            "recipe key evaluate.metrics",
            "pip install 'luthier[projects]'",
        ) from error
    score = CHRF()
    return [
        score.sentence_score(output, [target]).score / 100
        for output, target in zip(outputs, targets, strict=True)
    ]


@metric("api_recall")
def api_recall(
    outputs: Sequence[str], targets: Sequence[str], *, metas: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Share of the library's names that the reference calls which the output calls as well, by the last name of each call.

    Args:
        outputs: Generated programs, shape (row,).
        targets: Not looked at.
        metas: Of the rows: ``apis`` are the names, at least one.

    Returns:
        A score in [0, 1] for each row.

    Source: Long Code Arena, Bogomolov et al. 2024, arXiv:2406.11612.
    """
    _need(metas, "apis")
    return [
        len(called_apis(output, meta["apis"])) / len(meta["apis"])
        for output, meta in zip(outputs, metas, strict=True)
    ]


@metric("api_recall_resolved")
def api_recall_resolved(
    outputs: Sequence[str], targets: Sequence[str], *, metas: Sequence[Mapping[str, Any]]
) -> list[float]:
    """The same by whole dotted targets, followed through imports: a method of another library with the same name does not count.

    Args:
        outputs: Generated programs, shape (row,).
        targets: Not looked at.
        metas: Of the rows: ``resolved`` are the targets, at least one, and ``packages`` the names that the library is imported by.

    Returns:
        A score in [0, 1] for each row.
    """
    _need(metas, "resolved")
    scores = []
    for output, meta in zip(outputs, metas, strict=True):
        found = set(resolved_calls(output, meta["packages"]))
        scores.append(len(found & set(meta["resolved"])) / len(meta["resolved"]))
    return scores


@metric("syntax_valid")
def syntax_valid(outputs: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Whether each output is a Python program by its syntax.

    Args:
        outputs: Generated programs, shape (row,).
        targets: Not looked at.

    Returns:
        0.0 or 1.0 for each row; an empty text is none.
    """
    return [float(_parses(output)) for output in outputs]


@metric("runs")
def runs(outputs: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Whether each output runs to its end without an error, in a sandbox of 10 seconds and 1 GiB without a network.

    Args:
        outputs: Generated programs, shape (row,); the libraries that they use have to be installed.
        targets: Not looked at.

    Returns:
        0.0 or 1.0 for each row.
    """
    return [float(passed) for passed in all_passes(outputs)]


def _parses(text: str) -> bool:
    try:
        return bool(ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _need(metas: Sequence[Mapping[str, Any]], name: str) -> None:
    if not all(meta.get(name) for meta in metas):
        raise UserError(
            f"some of the test rows do not say which names they call ({name})",
            "recipe key evaluate.metrics",
            "leave API recall out, or take rows of the task library-generation",
        )
