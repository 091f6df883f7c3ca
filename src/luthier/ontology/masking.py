"""Masked loss regularisation: frequent edges are left out of the loss in proportion, anew in every epoch.

Source: Lo, Jiang, Li and Jamnik 2024, "End-to-End Ontology Learning with Large Language Models", section 3.2.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.records import Row
from luthier.rows import Rows

Edge = tuple[str, str]
_NODE = re.compile(r"path (\d+) node (\d+)")
# Third word of the generator's counter, so that no other stream of the same seed and epoch is met.
_STREAM = 1


def span_name(path: int, position: int) -> str:
    """Name of the span of a node behind the root, by which its tokens are found again in a row."""
    return f"path {path} node {position}"


def node_of(name: str) -> tuple[int, int] | None:
    """Path and position that a span's name tells, or None if it is no node behind the root."""
    found = _NODE.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


@dataclass(frozen=True, slots=True)
class EdgeCounts:
    """How often each edge stands in the training paths, by ids of nodes.

    Attributes:
        counts: Occurrences n(u, v).
        mean: M, the mean of n over the edges; 0 without any.
    """

    counts: Counter[Edge]
    mean: float

    @classmethod
    def of(cls, paths: Iterable[Sequence[str]]) -> EdgeCounts:
        """The counts over some paths of node ids."""
        counts = Counter(edge for path in paths for edge in pairwise(path))
        return cls(counts, counts.total() / len(counts) if counts else 0.0)

    def mask_probability(self, edge: Edge) -> float:
        """max(0, 1 - M / n): the share of an edge's occurrences that is left out of the loss."""
        n = self.counts[edge]
        return max(0.0, 1 - self.mean / n) if n else 0.0

    def weight(self, edge: Edge) -> float:
        """min(1, M / n): what an occurrence of the edge weighs on average."""
        return 1 - self.mask_probability(edge)

    def is_head(self, edge: Edge) -> bool:
        """Whether it occurs more often than the mean."""
        return self.counts[edge] > self.mean


def paths_of(rows: Rows) -> Iterable[list[str]]:
    """The paths of node ids of all rows."""
    for text in rows.column("meta").to_pylist():
        yield from json.loads(text)["paths"]


def draws(seed: int, epoch: int, row_id: str, path: int, num_nodes: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one a position of a path, shape (num_nodes,).

    A counter-based generator: each number depends on (seed, epoch, row, path, position) and on nothing else, whichever
    process draws it, in whatever order, before or after a resume.
    """
    row = int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8], "big")
    philox = np.random.Philox(key=[seed, epoch], counter=[0, row, path, _STREAM])
    return np.random.Generator(philox).random(num_nodes)


def is_masked(row: Row, counts: EdgeCounts, seed: int, epoch: int) -> dict[tuple[int, int], bool]:
    """Whether each node behind a root is left out of the loss in an epoch, by path and position."""
    masked = {}
    for number, path in enumerate(row.meta["paths"]):
        drawn = draws(seed, epoch, row.id, number, len(path))
        for position, edge in enumerate(pairwise(path), 1):
            masked[number, position] = bool(drawn[position] < counts.mask_probability(edge))
    return masked


def masked_weights(counts: EdgeCounts, seed: int) -> Callable[[Row, int], Row]:
    """The row of an epoch with the weights of masked nodes set to 0.

    First nodes, separators, line ends and the stop token keep theirs.
    """

    def reweigh(row: Row, epoch: int) -> Row:
        masked = is_masked(row, counts, seed, epoch)
        return _scaled(row, lambda path, position: 0.0 if masked[path, position] else 1.0)

    return reweigh


def mean_weights(counts: EdgeCounts) -> Callable[[Row, int], Row]:
    """The row with every node weighed by min(1, M / n): the expectation of ``masked_weights``, without its variance."""

    def reweigh(row: Row, epoch: int) -> Row:
        paths = row.meta["paths"]
        return _scaled(
            row,
            lambda path, position: counts.weight((paths[path][position - 1], paths[path][position])),
        )

    return reweigh


def _scaled(row: Row, factor: Callable[[int, int], float]) -> Row:
    places = [node_of(name) for name in row.span_names]
    factors = np.array([1.0 if place is None else factor(*place) for place in places], np.float32)
    return replace(row, loss_weights=row.loss_weights * factors[row.span_ids])


def realised(
    counts: EdgeCounts, rows: Rows, visits: Iterable[tuple[int, int]], seed: int
) -> list[dict[str, Any]]:
    """How often each edge was masked in training, beside the formula.

    Args:
        counts: Of the training rows.
        rows: The training rows.
        visits: Index of a row and epoch, of each time that a row was trained on.
        seed: The recipe's.

    Returns:
        One object an edge, the most frequent first: ``edge`` (two ids), ``count``, ``probability``, ``drawn``, ``masked``.
    """
    drawn: Counter[Edge] = Counter()
    masked: Counter[Edge] = Counter()
    for index, epoch in visits:
        row = rows.row(index)
        for (path, position), gone in is_masked(row, counts, seed, epoch).items():
            edge = (row.meta["paths"][path][position - 1], row.meta["paths"][path][position])
            drawn[edge] += 1
            masked[edge] += gone
    return [
        {
            "edge": list(edge),
            "count": n,
            "probability": counts.mask_probability(edge),
            "drawn": drawn[edge],
            "masked": masked[edge],
        }
        for edge, n in sorted(counts.counts.items(), key=lambda item: (-item[1], item[0]))
    ]
