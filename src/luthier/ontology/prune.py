"""From the sum of all paths to an ontology: light edges out, cycles cut, orphans re-attached; the result is a DAG.

Source: Lo et al. 2024, section 3.3 and appendix; the second reading of the relative rule is that of the published code
(andylolu2/ollm, ``post_processing.py``), which differs from the paper.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from luthier.ontology.graph import Edge, Ontology, Relation

RelativeRule = Literal["paper", "nucleus"]
_ROUNDING = 1e-9
_STEPS = 21


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned ontology.

    Attributes:
        ontology: A DAG in which every node is under the root.
        removed: Each edge that went, with the reason: ``self-loop``, ``into-root``, ``inverse``, ``absolute``,
            ``relative`` or ``cycle``.
        num_attached: Nodes that had lost all their parents and now hang under the root.
    """

    ontology: Ontology
    removed: list[tuple[Edge, str]]
    num_attached: int


def prune(raw: Ontology, alpha: float = 0.0, beta: float = 0.0, rule: RelativeRule = "paper") -> Pruned:
    """The ontology without self-loops, edges into the root, the lighter edge of inverse pairs, light edges and cycles.

    Args:
        raw: The sum of all paths.
        alpha: Absolute rule: this share of the edges, the lightest, goes.
        beta: Relative rule; 0 removes nothing. Of each node's outgoing edges,
            ``paper``: sorted by weight, the lightest go whose cumulative share is at most beta, so that the heaviest stays
            and a single child always does;
            ``nucleus``: sorted from the heaviest, all that weigh at most as much as the one with which the cumulative
            share passes 1 - beta go, a single child included.
        rule: Which reading.
    """
    return _finish(raw, _Candidates(raw).choose(alpha, beta, rule)[1])


def sweep_points(num_edges: int) -> list[tuple[float, float]]:
    """The 441 published pairs of alpha and beta, alpha first."""
    alphas = 1 - np.geomspace(1 / max(num_edges, 1), 1, _STEPS)
    betas = np.geomspace(0.1, 1, _STEPS) - 0.1
    return [(float(alpha), float(beta)) for alpha in alphas for beta in betas]


def pruned_at(
    raw: Ontology, points: Sequence[tuple[float, float]], rule: RelativeRule = "paper"
) -> Iterator[tuple[list[int], Pruned]]:
    """``prune`` at several points: every different result once, made when it is asked for, with the places of its points."""
    candidates = _Candidates(raw)
    places: dict[bytes, list[int]] = {}
    for place, (alpha, beta) in enumerate(points):
        kept, _ = candidates.choose(alpha, beta, rule)
        places.setdefault(hashlib.sha256(kept.tobytes()).digest(), []).append(place)
    for own in places.values():
        yield own, _finish(raw, candidates.choose(*points[own[0]], rule)[1])


class _Candidates:
    """The edges that thresholds choose from, in an order that depends on nothing but their names."""

    def __init__(self, raw: Ontology) -> None:
        self.edges = sorted(raw.edges)
        self.removed: list[tuple[Edge, str]] = []
        weights = {edge: raw.edges[edge].weight for edge in self.edges}
        rest = []
        for u, v in self.edges:
            if u == v:
                self.removed.append(((u, v), "self-loop"))
            elif v == raw.root:
                self.removed.append(((u, v), "into-root"))
            elif weights.get((v, u), -math.inf) > weights[u, v] and u != raw.root:
                self.removed.append(((u, v), "inverse"))
            else:
                rest.append((u, v))
        self.edges = rest
        places = {node: place for place, node in enumerate(sorted(raw.titles))}
        self.weights = np.array([weights[edge] for edge in rest], np.float64)
        self.parents = np.array([places[u] for u, _ in rest], np.int64)

    def choose(
        self, alpha: float, beta: float, rule: RelativeRule
    ) -> tuple[NDArray[np.bool_], list[tuple[Edge, str]]]:
        keep = np.ones(len(self.edges), bool)
        order = np.argsort(self.weights, kind="stable")
        keep[order[: math.floor(alpha * len(order) + _ROUNDING)]] = False
        light = ~keep
        left = np.flatnonzero(keep)
        gone = left[_relative(self.parents[left], self.weights[left], beta, rule)]
        keep[gone] = False
        removed = [(self.edges[i], "absolute") for i in np.flatnonzero(light)]
        removed += [(self.edges[i], "relative") for i in gone]
        return keep, self.removed + removed


def _relative(
    parents: NDArray[np.int64], weights: NDArray[np.float64], beta: float, rule: RelativeRule
) -> NDArray[np.bool_]:
    """Which edges the relative rule removes."""
    gone = np.zeros(len(parents), bool)
    if not len(parents) or beta <= 0:
        return gone
    order = np.lexsort((weights if rule == "paper" else -weights, parents))
    sorted_parents, sorted_weights = parents[order], weights[order]
    starts = np.flatnonzero(np.diff(sorted_parents, prepend=-1))
    groups = np.repeat(np.arange(len(starts)), np.diff([*starts, len(order)]))
    running = np.cumsum(sorted_weights)
    before = running[starts] - sorted_weights[starts]
    shares = (running - before[groups]) / np.add.reduceat(sorted_weights, starts)[groups]
    if rule == "paper":
        gone[order] = shares <= beta + _ROUNDING
        return gone
    # The first edge of each node with which the share passes 1 - beta; the last one does so always.
    passes = np.where(shares > 1 - beta, np.arange(len(order)), len(order))
    threshold = sorted_weights[np.minimum.reduceat(passes, starts)][groups]
    gone[order] = sorted_weights <= threshold
    return gone


def _finish(raw: Ontology, removed: list[tuple[Edge, str]]) -> Pruned:
    dropped = {edge for edge, _ in removed}
    edges = {edge: relation for edge, relation in raw.edges.items() if edge not in dropped}
    cut = cycle_edges(edges)
    for edge in cut:
        del edges[edge]
    children = {v for _, v in edges}
    orphans = sorted({u for u, _ in edges} - children - {raw.root})
    for node in orphans:
        edges[raw.root, node] = Relation(0.0, attached=True)
    return Pruned(
        raw.with_edges(edges),
        removed + [(edge, "cycle") for edge in cut],
        len(orphans),
    )


def cycle_edges(edges: dict[Edge, Relation]) -> list[Edge]:
    """The edges to cut so that no cycle is left, found greedily: heavy edges are kept first, and an edge goes that would close a cycle.

    Only edges inside strongly connected parts are looked at.
    """
    graph = nx.DiGraph(list(edges))
    part_of: dict[str, int] = {}
    for number, part in enumerate(nx.strongly_connected_components(graph)):
        if len(part) > 1:
            part_of |= dict.fromkeys(part, number)
    inside = [(u, v) for u, v in edges if u in part_of and part_of[u] == part_of.get(v)]
    kept = nx.DiGraph()
    kept.add_nodes_from(part_of)
    cut = []
    for u, v in sorted(inside, key=lambda edge: (-edges[edge].weight, edge)):
        if nx.has_path(kept, v, u):
            cut.append((u, v))
        else:
            kept.add_edge(u, v)
    return cut
