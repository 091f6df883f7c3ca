"""The five metrics of ontologies: identity, reversal, permutation, hand-worked examples, and slow references of their own."""

from collections import Counter
from functools import partial
from itertools import combinations, permutations
from math import sqrt

import networkx as nx
import numpy as np
import pytest

from luthier.metrics import ontology as metrics
from luthier.metrics.ontology import TitledGraph

NAMES = {
    "literal": metrics.literal,
    "fuzzy": metrics.fuzzy,
    "continuous": metrics.continuous,
    "graph": metrics.graph,
}


def random_graph(seed: int, num_nodes: int, num_edges: int, width: int = 5) -> TitledGraph:
    draw = np.random.default_rng(seed)
    pairs = {tuple(sorted(draw.choice(num_nodes, 2, replace=False).tolist())) for _ in range(num_edges)}
    return TitledGraph(
        [f"title {i}" for i in range(num_nodes)],
        np.array(sorted(pairs), np.int64).reshape(-1, 2),
        draw.normal(size=(num_nodes, width)),
    )


def permuted(graph: TitledGraph, seed: int = 0) -> TitledGraph:
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(graph.titles))  # the new place of each node
    titles = [""] * len(order)
    vectors = np.empty_like(graph.vectors)
    for old, new in enumerate(order):
        titles[new], vectors[new] = graph.titles[old], graph.vectors[old]
    return TitledGraph(titles, draw.permutation(order[graph.edges]), vectors)


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True)) / (
        sqrt(sum(a * a for a in x)) * sqrt(sum(b * b for b in y))
    )


def best_sum(values: list[list[float]]) -> float:
    """The greatest sum over one-to-one choices, by trying them all."""
    rows, columns = (
        (values, list(zip(*values, strict=True)))
        if len(values) <= len(values[0])
        else (list(zip(*values, strict=True)), values)
    )
    return max(
        sum(row[c] for row, c in zip(rows, choice, strict=True))
        for choice in permutations(range(len(columns)), len(rows))
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_is_like_itself_in_any_order(name: str) -> None:
    graph = random_graph(1, 12, 25)
    for other in (graph, permuted(graph)):
        score = NAMES[name](graph, other)
        assert (
            score.f1 == pytest.approx(1)
            and score.precision == pytest.approx(1)
            and score.f1_bounds == (score.f1, score.f1)
        )
    assert metrics.motif_distance(graph, permuted(graph)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_order_of_nodes_and_edges_changes_nothing(name: str) -> None:
    ours, theirs = random_graph(1, 9, 14), random_graph(2, 11, 18)
    assert NAMES[name](permuted(ours), permuted(theirs, 3)).f1 == pytest.approx(NAMES[name](ours, theirs).f1)


def test_reversed_a_dag_has_no_edge_in_common() -> None:
    graph = random_graph(1, 12, 25)
    reverse = TitledGraph(graph.titles, graph.edges[:, ::-1], graph.vectors)
    assert metrics.literal(graph, reverse).f1 == 0
    assert metrics.continuous(graph, reverse).f1 < 1 and metrics.graph(graph, reverse).f1 < 1
    assert metrics.fuzzy(graph, reverse).f1 < 1


def test_a_hand_worked_example() -> None:
    """Truth r->a, r->b; prediction r->a, r->c, a->c with cosines r.r = 1, c.b = 0.6, a.b = c.a = 0 and r.x = 0."""
    e = np.eye(4)
    true = TitledGraph(["r", "a", "b"], np.array([[0, 1], [0, 2]]), e[[0, 1, 2]])
    c = 0.6 * e[2] + 0.8 * e[3]
    ours = TitledGraph(["r", "a", "c"], np.array([[0, 1], [0, 2], [1, 2]]), np.array([e[0], e[1], c]))
    literal = metrics.literal(ours, true)
    assert (literal.precision, literal.recall, literal.f1) == (1 / 3, 1 / 2, pytest.approx(0.4))
    fuzzy = metrics.fuzzy(ours, true)  # r->c is like r->b (1 and 0.6 > 0.436)
    assert (fuzzy.precision, fuzzy.recall) == (pytest.approx(2 / 3), 1)
    assert metrics.fuzzy(ours, true, threshold=0.7).precision == pytest.approx(1 / 3)
    continuous = metrics.continuous(ours, true)  # 1 + min(1, 0.6)
    assert (continuous.precision, continuous.recall) == (pytest.approx(1.6 / 3), pytest.approx(0.8))
    # One convolution of the truth: r stays r; a becomes a/2 + r/sqrt(2), b likewise.
    one = metrics.convolved(true, 1)
    assert one == pytest.approx(np.array([e[0], e[1] / 2 + e[0] / sqrt(2), e[2] / 2 + e[0] / sqrt(2)]))
    two = metrics.convolved(true)
    assert two[1] == pytest.approx((e[1] / 2 + e[0] / sqrt(2)) / 2 + e[0] / sqrt(2))
    # Motifs: the truth is one fork (021D); the prediction one 030T.
    assert metrics.motif_distance(ours, true) == 1
    fork_and_chain = TitledGraph(list("rabc"), np.array([[0, 1], [0, 2], [1, 3]]), np.eye(4))
    assert metrics.motif_distance(fork_and_chain, true) == pytest.approx(
        0.5
    )  # {fork 1/2, chain 1/2} against {fork 1}


@pytest.mark.parametrize("seed", range(50))
def test_continuous_and_graph_equal_slow_references(seed: int) -> None:
    draw = np.random.default_rng(seed)
    ours = random_graph(2 * seed, int(draw.integers(2, 7)), int(draw.integers(1, 7)))
    theirs = random_graph(2 * seed + 1, int(draw.integers(2, 7)), int(draw.integers(1, 7)))

    pairs = [
        [
            min(cosine(ours.vectors[u], theirs.vectors[a]), cosine(ours.vectors[v], theirs.vectors[b]))
            for a, b in theirs.edges
        ]
        for u, v in ours.edges
    ]
    found = metrics.continuous(ours, theirs)
    assert found.precision == pytest.approx(best_sum(pairs) / len(ours.edges))
    assert found.recall == pytest.approx(best_sum(pairs) / len(theirs.edges))

    def smoothed(graph: TitledGraph) -> list[np.ndarray]:
        parents = {v: [u for u, w in graph.edges if w == v] for v in range(len(graph.titles))}
        degree = {v: 1 + len(parents[v]) for v in parents}
        x = [np.array(vector) for vector in graph.vectors]
        for _ in range(2):
            x = [
                x[v] / degree[v] + sum((x[u] / sqrt(degree[u] * degree[v]) for u in parents[v]), np.zeros(5))
                for v in parents
            ]
        return x

    nodes = [[cosine(x, y) for y in smoothed(theirs)] for x in smoothed(ours)]
    found = metrics.graph(ours, theirs)
    assert found.precision == pytest.approx(best_sum(nodes) / len(ours.titles))
    assert found.recall == pytest.approx(best_sum(nodes) / len(theirs.titles))
    near = [[cosine(ours.vectors[u], theirs.vectors[a]) > 0.436 and cosine(ours.vectors[v], theirs.vectors[b]) > 0.436 for a, b in theirs.edges] for u, v in ours.edges]  # fmt: skip
    assert metrics.fuzzy(ours, theirs).precision == pytest.approx(np.mean([any(row) for row in near]))
    assert metrics.fuzzy(ours, theirs).recall == pytest.approx(
        np.mean([any(c) for c in zip(*near, strict=True)])
    )


def form(edges: set[tuple[int, int]], triple: tuple[int, ...]) -> tuple[bool, ...]:
    """The same for graphs of three nodes that are alike but for names: the greatest table of edges over all orders of nodes."""
    return max(tuple((u, v) in edges for u, v in permutations(order, 2)) for order in permutations(triple))


KINDS = {
    form(set(nx.triad_graph(name).edges), tuple("abc")): name for name in nx.triadic_census(nx.DiGraph())
}


def counted(graph: TitledGraph) -> dict[str, float]:
    """Share of each connected triad, from a look at every triple."""
    edges = {(u, v) for u, v in graph.edges.tolist() if u != v}
    kinds = Counter(KINDS[form(edges, triple)] for triple in combinations(range(len(graph.titles)), 3))
    connected = {name: count for name, count in kinds.items() if name not in ("003", "012", "102")}
    return {name: count / sum(connected.values()) for name, count in connected.items()}


def test_motif_distance_equals_a_count_over_all_triples() -> None:
    assert len(KINDS) == 16
    draw, seen, distances = np.random.default_rng(0), set(), []
    for _ in range(20):
        graphs = []
        for _ in range(2):
            size = int(draw.integers(6, 11))
            edges = draw.integers(
                0, size, (int(draw.integers(5, 60)), 2)
            )  # some are self-loops, some there twice
            graphs.append(TitledGraph(["t"] * size, np.unique(edges, axis=0), np.ones((size, 1))))
        ours, theirs = map(counted, graphs)
        expected = sum(abs(ours.get(name, 0) - theirs.get(name, 0)) for name in {*ours, *theirs}) / 2
        assert metrics.motif_distance(*graphs) == pytest.approx(expected)
        distances.append(expected)
        shares = metrics.motif_shares(graphs[0].edges)
        assert shares is not None and len(shares) == 13
        assert {name: share for name, share in shares.items() if share} == pytest.approx(ours)
        seen |= {*ours, *theirs}
    assert len(seen) == 13 and sum(0 < distance < 1 for distance in distances) > 10


def test_graphs_without_edges_score_nothing() -> None:
    empty = TitledGraph(["r"], np.empty((0, 2), np.int64), np.ones((1, 3)))
    graph = random_graph(1, 6, 8, width=3)
    scores = metrics.compare(empty, graph)
    for name in ("literal", "fuzzy", "continuous"):
        assert scores[name] == {"precision": 0, "recall": 0, "f1": 0}
    assert scores["motif"]["distance"] == 1 and metrics.motif_distance(empty, empty) == 0


def test_blocks_and_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(5):
        ours, theirs = random_graph(seed, 30, 60), random_graph(seed + 9, 25, 90)
        usual = metrics.compare(ours, theirs)
        with monkeypatch.context() as patch:
            patch.setattr(metrics, "_BLOCK", 7)
            in_blocks = metrics.compare(ours, theirs)
            bounded = metrics.continuous(ours, theirs, most_cells=10)
            patch.setattr(metrics, "continuous", partial(metrics.continuous, most_cells=10))
            told = metrics.compare(ours, theirs)
        for name in NAMES:
            assert in_blocks[name]["f1"] == pytest.approx(usual[name]["f1"])
        low, high = bounded.f1_bounds
        assert (
            0.5 * usual["continuous"]["f1"]
            < low
            <= usual["continuous"]["f1"]
            <= high
            < 1.5 * usual["continuous"]["f1"]
        )
        assert bounded.f1 == low < high
        assert told["continuous"]["f1_bounds"] == [low, high]
        assert "f1_bounds" not in usual["continuous"]


@pytest.mark.parametrize(
    ("matrix", "best", "bounds"),
    [
        ([[1.0, 0.9], [0.9, 0.0], [0.0, 0.0]], 1.8, (1.0, 1.9)),
        ([[1.0, 0.2, 0.0], [0.9, 0.1, 0.0]], 1.1, (1.1, 1.2)),  # columns cannot all be matched at their best
        ([[1.0, 0.9], [0.2, 0.1]], 1.1, (1.1, 1.2)),  # rows cannot
        ([[0.1, 0.0], [0.9, 0.8]], 0.9, (0.9, 1.0)),  # the better row chooses first
    ],
)
def test_a_matching_is_the_best_up_to_so_many_cells_and_bounded_beyond(
    matrix: list[list[float]], best: float, bounds: tuple[float, float]
) -> None:
    values = np.array(matrix)

    def found(most_cells: int) -> tuple[float, float]:
        blocks = lambda: iter([(slice(0, len(values)), values)])  # noqa: E731
        return metrics.best_matching(blocks, values.shape, most_cells)

    assert found(values.size) == pytest.approx((best, best))
    assert found(values.size - 1) == pytest.approx(bounds)


def test_as_similar_as_the_threshold_is_not_more_similar() -> None:
    e = np.eye(3)
    ours = TitledGraph(["a", "b"], np.array([[0, 1]]), e[[0, 1]])
    for vectors in (e[[0, 2]], e[[2, 1]]):  # one end is the same, the other at a right angle
        assert metrics.fuzzy(ours, TitledGraph(["c", "d"], ours.edges, vectors), threshold=0).f1 == 0
    assert metrics.fuzzy(ours, ours, threshold=0).f1 == 1


def test_rows_are_compared_by_paths_and_edges() -> None:
    assert metrics.path_f1(["r\ta\tb\nr\tc", ""], ["r\ta\tb", ""]) == [pytest.approx(2 / 3), 1]
    assert metrics.path_f1(["r\ta\n", ""], ["r\ta", "r\ta"]) == [1, 0]
    assert metrics.edge_f1(["r\ta\tb", "r\tx"], ["r\ta\tc", "r\ty"]) == [pytest.approx(0.5), 0]
    assert metrics.edge_f1(["r\ta b"], ["r\ta\tb"]) == [0]  # titles have spaces
