"""From a graph with documents to the paths of each document, and the published split by top-level nodes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from luthier.ontology.graph import Edge
from luthier.records import Split

# Of the top-level nodes, and of those that are left.
TEST_SHARE, EVAL_SHARE = 0.5, 0.3
COVERAGE = 0.99


def simple_paths(children: Mapping[str, Sequence[str]], root: str, most_edges: int) -> Iterator[list[str]]:
    """All paths from the root, itself included, that visit no node twice and have at most ``most_edges`` edges."""
    stack = [[root]]
    while stack:
        path = stack.pop()
        yield path
        if len(path) <= most_edges:
            stack += [[*path, child] for child in reversed(children.get(path[-1], ())) if child not in path]


def coverage(paths: Iterable[Sequence[str]], edges: set[Edge]) -> float:
    """Share of the edges that lie on some path; 1 without edges."""
    covered = {edge for path in paths for edge in pairwise(path)}
    return len(covered & edges) / len(edges) if edges else 1.0


def cut_off(children: Mapping[str, Sequence[str]], root: str, holders: set[str]) -> int:
    """The smallest number of edges from root to document for which simple paths cover more than 99% of all edges.

    Where documents hang too few for that, the smallest with the coverage that more edges cannot raise.

    Args:
        children: Ids of children by id.
        root: Id of the root.
        holders: Nodes that documents hang on.
    """
    edges = {(node, child) for node, below in children.items() for child in below}
    best, best_share = 1, 0.0
    for num_edges in range(1, len(children) + 2):
        longest = 0
        ending = []
        for path in simple_paths(children, root, num_edges - 1):
            longest = max(longest, len(path))
            if path[-1] in holders:
                ending.append(path)
        share = coverage(ending, edges)
        if share > best_share:
            best, best_share = num_edges, share
        if share > COVERAGE or longest < num_edges:  # no path is longer
            break
    return best


def parts(tops: Iterable[str], seed: int) -> dict[str, Split]:
    """The split of each top-level node: half are for testing, three tenths of the rest for evaluation, the rest for training.

    Source: Lo et al. 2024, section 4.1.
    """
    names = sorted(set(tops))
    random.Random(seed).shuffle(names)
    num_test = round(TEST_SHARE * len(names))
    num_eval = round(EVAL_SHARE * (len(names) - num_test))
    splits: list[tuple[Split, int]] = [("test", 0), ("eval", num_test), ("train", num_test + num_eval)]
    return {
        name: next(split for split, first in reversed(splits) if place >= first)
        for place, name in enumerate(names)
    }
