"""How near a predicted ontology is to the true one: five figures that compare graphs, in blocks of bounded memory.

Source: Lo, Jiang, Li and Jamnik 2024, "End-to-End Ontology Learning with Large Language Models", section 4.

Shapes: E edges of the prediction, F of the truth; N and M nodes; D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array

from luthier.registry import metric

Floats = NDArray[np.floating[Any]]
# Cosine of two titles above which they count as the same (Lo et al. 2024: the median similarity of WordNet synonyms).
THRESHOLD = 0.436
# Simple graph convolutions before nodes are compared.
NUM_CONVOLUTIONS = 2
# Rows of a similarity matrix held at once.
_BLOCK = 512
# Cells of a matrix up to which the best assignment is computed: 800 MB (twice that for a matrix that is taller than wide).
MOST_CELLS = 10_000 * 10_000
_NO_MOTIF = ("003", "012", "102")  # triads that are not connected


@dataclass(frozen=True, slots=True)
class TitledGraph:
    """A graph as these metrics see it.

    Attributes:
        titles: Title of each node, shape (N,).
        edges: Places of parent and child, shape (E, 2).
        vectors: Embedding of each title, shape (N, D); zeros are like nothing.
    """

    titles: Sequence[str]
    edges: NDArray[np.int64]
    vectors: Floats

    def title_pairs(self) -> set[tuple[str, str]]:
        """The edges as pairs of titles."""
        return {(self.titles[u], self.titles[v]) for u, v in self.edges.tolist()}


@dataclass(frozen=True, slots=True)
class Score:
    """Precision, recall and F1.

    Attributes:
        precision, recall, f1: In [0, 1] for texts alike at all; a matching of opposites can be below 0.
        f1_bounds: Where F1 surely lies; both ends are ``f1`` unless the matrix was too large for the best assignment,
            and then the three are those of a greedy assignment, the lower end.
    """

    precision: float
    recall: float
    f1: float
    f1_bounds: tuple[float, float]

    @classmethod
    def of(cls, precision: float, recall: float) -> Score:
        """The score of an exact precision and recall."""
        f1 = _harmonic(precision, recall)
        return cls(precision, recall, f1, (f1, f1))

    @classmethod
    def matched(cls, matching: tuple[float, float], num_predicted: int, num_true: int) -> Score:
        """The score of a matching's lower and upper value."""
        if not num_predicted or not num_true:
            return cls.of(0.0, 0.0)
        low, high = (cls.of(value / num_predicted, value / num_true) for value in matching)
        return cls(low.precision, low.recall, low.f1, (low.f1, high.f1))


def literal(predicted: TitledGraph, true: TitledGraph) -> Score:
    """Edges whose two titles are those of an edge on the other side, letter by letter."""
    ours, theirs = predicted.title_pairs(), true.title_pairs()
    if not ours or not theirs:
        return Score.of(0.0, 0.0)
    both = len(ours & theirs)
    return Score.of(both / len(ours), both / len(theirs))


def fuzzy(predicted: TitledGraph, true: TitledGraph, threshold: float = THRESHOLD) -> Score:
    """Edges for which some edge on the other side has both endpoints more similar than the threshold."""
    if not len(predicted.edges) or not len(true.edges):
        return Score.of(0.0, 0.0)
    hit_F = np.zeros(len(true.edges), bool)
    num_hit = 0
    for _, parents_BF, children_BF in _edge_blocks(predicted, true):
        near_BF = (parents_BF > threshold) & (children_BF > threshold)
        num_hit += int(near_BF.any(axis=1).sum())
        hit_F |= near_BF.any(axis=0)
    return Score.of(num_hit / len(predicted.edges), float(hit_F.mean()))


def continuous(predicted: TitledGraph, true: TitledGraph, most_cells: int = MOST_CELLS) -> Score:
    """The best matching of edges, each pair worth the lesser similarity of its two endpoints."""

    def blocks() -> Iterator[tuple[slice, Floats]]:
        for rows, parents_BF, children_BF in _edge_blocks(predicted, true):
            yield rows, np.minimum(parents_BF, children_BF)

    shape = (len(predicted.edges), len(true.edges))
    return Score.matched(best_matching(blocks, shape, most_cells), *shape)


def graph(predicted: TitledGraph, true: TitledGraph) -> Score:
    """The best matching of nodes by cosine, once every title's embedding is mixed with those of its ancestors."""
    ours_ND, theirs_MD = (_unit(convolved(each)) for each in (predicted, true))

    def blocks() -> Iterator[tuple[slice, Floats]]:
        for rows in _blocks(len(ours_ND)):
            yield rows, ours_ND[rows] @ theirs_MD.T

    shape = (len(ours_ND), len(theirs_MD))
    return Score.matched(best_matching(blocks, shape), *shape)


def convolved(graph: TitledGraph, num_convolutions: int = NUM_CONVOLUTIONS) -> Floats:
    """Embeddings after simple graph convolutions with identity weights, along the edges, shape (N, D).

    One convolution gives node v its own vector / d_v, plus for each parent u the vector of u / sqrt(d_u d_v), where d is 1
    plus the number of parents.

    Source: Wu et al. 2019, "Simplifying Graph Convolutional Networks", eq. 8, on the directed graph.
    """
    size = len(graph.titles)
    parents, children = graph.edges[:, 0], graph.edges[:, 1]
    degree_N = 1.0 + np.bincount(children, minlength=size)
    own = np.arange(size)
    values = np.concatenate([1 / np.sqrt(degree_N[parents] * degree_N[children]), 1 / degree_N])
    places = (np.concatenate([children, own]), np.concatenate([parents, own]))
    operator_NN = coo_array((values, places), shape=(size, size)).tocsr()
    mixed_ND = np.asarray(graph.vectors, np.float64)
    for _ in range(num_convolutions):
        mixed_ND = operator_NN @ mixed_ND
    return mixed_ND


def motif_distance(predicted: TitledGraph, true: TitledGraph) -> float:
    """Half the L1 distance of how often each of the 13 connected graphs of three nodes occurs: 0 is alike, 1 is disjoint.

    A graph without any such triple differs by 1 from one with some, and by 0 from another one.
    """
    ours, theirs = motif_shares(predicted.edges), motif_shares(true.edges)
    if ours is None or theirs is None:
        return float((ours is None) != (theirs is None))
    return sum(abs(ours[name] - theirs[name]) for name in ours) / 2


def motif_shares(edges: NDArray[np.int64]) -> dict[str, float] | None:
    """Share of each connected triad, by its name in the triad census; None if there is none. Self-loops do not count."""
    counts = nx.triadic_census(nx.DiGraph([(u, v) for u, v in edges.tolist() if u != v]))
    connected = {name: count for name, count in counts.items() if name not in _NO_MOTIF}
    total = sum(connected.values())
    return {name: count / total for name, count in connected.items()} if total else None


def compare(predicted: TitledGraph, true: TitledGraph) -> dict[str, dict[str, Any]]:
    """All five figures, as plain values by name."""
    scores: dict[str, dict[str, Any]] = {}
    measures: dict[str, Callable[[TitledGraph, TitledGraph], Score]] = {
        "literal": literal,
        "fuzzy": fuzzy,
        "continuous": continuous,
        "graph": graph,
    }
    for name, measure in measures.items():
        score = measure(predicted, true)
        low, high = score.f1_bounds
        scores[name] = {"precision": score.precision, "recall": score.recall, "f1": score.f1}
        if low != high:
            scores[name]["f1_bounds"] = [low, high]
    return scores | {"motif": {"distance": motif_distance(predicted, true)}}


def best_matching(
    blocks: Callable[[], Iterator[tuple[slice, Floats]]], shape: tuple[int, int], most_cells: int = MOST_CELLS
) -> tuple[float, float]:
    """Lower and upper end of the greatest sum over a one-to-one matching of rows and columns.

    Both are the sum itself up to ``most_cells`` cells (Hungarian method; 8 bytes a cell). Beyond, the lower end is that of
    a greedy matching and the upper one that of the best partner for each row, or for each column, whichever is less.

    Args:
        blocks: Gives the matrix in rows from the top.
        shape: Of the matrix; every node of the smaller side is matched.
        most_cells: See above.
    """
    if shape[0] * shape[1] <= most_cells:
        whole = np.empty(shape, np.float64)
        for rows, values in blocks():
            whole[rows] = -values  # to be minimised: maximising would copy the matrix
        best = -float(whole[linear_sum_assignment(whole)].sum())
        return best, best
    best_of_rows, best_of_columns = np.empty(shape[0]), np.full(shape[1], -np.inf)
    free = np.ones(shape[1], bool)
    low = 0.0
    for rows, values in blocks():
        best_of_rows[rows] = values.max(axis=1)
        best_of_columns = np.maximum(best_of_columns, values.max(axis=0))
        for row in np.argsort(-values.max(axis=1), kind="stable"):
            if free.any():
                column = int(np.where(free, values[row], -np.inf).argmax())
                low += float(values[row, column])
                free[column] = False
    most = min(shape)
    tops = (np.sort(best)[::-1][:most].sum() for best in (best_of_rows, best_of_columns))
    return low, float(min(tops))


def _edge_blocks(predicted: TitledGraph, true: TitledGraph) -> Iterator[tuple[slice, Floats, Floats]]:
    """Similarity of parents and of children of some predicted edges with all true ones, shape (block, F) each."""
    ours_ND, theirs_MD = _unit(predicted.vectors), _unit(true.vectors)
    for rows in _blocks(len(predicted.edges)):
        parents, children = (
            ours_ND[predicted.edges[rows, end]] @ theirs_MD[true.edges[:, end]].T for end in (0, 1)
        )
        yield rows, parents, children


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))


def _unit(vectors_ND: Floats) -> Floats:
    whole_ND = np.asarray(vectors_ND, np.float64)
    lengths = np.linalg.norm(whole_ND, axis=1, keepdims=True)
    unit_ND: Floats = whole_ND / np.where(lengths, lengths, 1)
    return unit_ND


def _harmonic(precision: float, recall: float) -> float:
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


@metric("path_f1")
def path_f1(outputs: Sequence[str], targets: Sequence[str]) -> list[float]:
    """F1 of the paths of a document, each right or wrong as a whole.

    Args:
        outputs: Valid paths, one a line, shape (row,).
        targets: The true ones, likewise.

    Returns:
        In [0, 1] for each row; two documents without paths are alike.
    """
    return [_f1_of_sets(*map(_lines, pair)) for pair in zip(outputs, targets, strict=True)]


@metric("edge_f1")
def edge_f1(outputs: Sequence[str], targets: Sequence[str]) -> list[float]:
    """F1 of the edges of a document's paths, pair of titles by pair of titles.

    Args:
        outputs: Valid paths, one a line, nodes apart by tabs, shape (row,).
        targets: The true ones, likewise.

    Returns:
        In [0, 1] for each row; two documents without paths are alike.
    """
    return [_f1_of_sets(*map(_edges, pair)) for pair in zip(outputs, targets, strict=True)]


def _lines(text: str) -> set[Any]:
    return {line for line in text.split("\n") if line}


def _edges(text: str) -> set[Any]:
    paths = [line.split("\t") for line in _lines(text)]
    return {edge for path in paths for edge in pairwise(path)}


def _f1_of_sets(ours: set[Any], theirs: set[Any]) -> float:
    if not ours and not theirs:
        return 1.0
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))
