"""Pruning: what goes and what must stay, on hand-worked and on random graphs."""

import networkx as nx
import numpy as np
import pytest

from luthier.evaluate import ontology as stage
from luthier.metrics import ontology as metrics
from luthier.metrics.ontology import TitledGraph
from luthier.ontology.graph import Document, Ontology, Relation, build, shape
from luthier.ontology.prune import cycle_edges, prune, pruned_at, sweep_points


def make(weights: dict[tuple[str, str], float], root: str = "r") -> Ontology:
    nodes = dict.fromkeys([root, *(node for edge in weights for node in edge)])
    return Ontology(root, {n: n for n in nodes}, {edge: Relation(w) for edge, w in weights.items()})


def random_graph(seed: int, num_nodes: int = 14, num_edges: int = 40) -> Ontology:
    draw = np.random.default_rng(seed)
    names = ["r", *(f"n{i}" for i in range(num_nodes))]
    weights = {}
    for _ in range(num_edges):
        u, v = draw.choice(names, 2)
        weights[str(u), str(v)] = float(draw.integers(1, 6))
    return make(weights)


def removed(pruned, reason: str) -> set[tuple[str, str]]:
    return {edge for edge, why in pruned.removed if why == reason}


def test_documents_are_summed() -> None:
    raw = build(
        [
            Document("d1", [["r", "a", "b"], ["r", "a"]], [[0.0, -1.0, -3.0], [0.0, -2.0]]),
            Document("d2", [["r", "a"]], [[0.0, -3.0]]),
        ],
        "r",
    )
    assert raw.edges["r", "a"].weight == 2 and raw.edges["r", "a"].documents == ("d1", "d2")
    assert raw.edges["r", "a"].log_probability == -2.0 and raw.edges["a", "b"].log_probability == -3.0
    assert list(raw.titles) == ["r", "a", "b"]


def test_self_loops_inverse_pairs_and_ways_back_to_the_root_go() -> None:
    pruned = prune(make({("r", "a"): 3, ("a", "a"): 9, ("a", "r"): 5, ("a", "b"): 2, ("b", "a"): 1}))
    assert set(pruned.ontology.edges) == {("r", "a"), ("a", "b")}
    assert removed(pruned, "self-loop") == {("a", "a")}
    assert removed(pruned, "into-root") == {("a", "r")}
    assert removed(pruned, "inverse") == {("b", "a")}


def test_absolute_rule_takes_the_lightest_share() -> None:
    raw = make({("r", "a"): 4, ("r", "b"): 1, ("r", "c"): 2, ("r", "d"): 3})
    assert removed(prune(raw, alpha=0.5), "absolute") == {("r", "b"), ("r", "c")}
    assert removed(prune(raw, alpha=0.24), "absolute") == set()
    assert set(prune(raw, alpha=1 - 1 / 4).ontology.edges) == {("r", "a")}


def test_the_two_readings_of_the_relative_rule() -> None:
    raw = make({("r", "a"): 1, ("r", "b"): 2, ("r", "c"): 3, ("r", "d"): 4, ("a", "e"): 1})
    # From the lightest: 0.1, 0.3, 0.6, 1.0; and 1.0 for the single child.
    assert removed(prune(raw, beta=0.1), "relative") == {("r", "a")}
    assert removed(prune(raw, beta=0.3), "relative") == {("r", "a"), ("r", "b")}
    assert removed(prune(raw, beta=0.9), "relative") == {("r", "a"), ("r", "b"), ("r", "c")}
    # From the heaviest: 0.4, 0.7, 0.9, 1.0; 0.9 passes 0.8, and so do all that are no heavier; the single child goes too.
    assert removed(prune(raw, beta=0.2, rule="nucleus"), "relative") == {("r", "a"), ("r", "b"), ("a", "e")}
    assert removed(prune(raw, beta=0.0, rule="nucleus"), "relative") == set()


@pytest.mark.parametrize("seed", range(20))
def test_a_single_child_stays_and_no_cycle_does(seed: int) -> None:
    raw = random_graph(seed)
    before = prune(raw)
    for beta in (0.1, 0.5, 0.9):
        pruned = prune(raw, beta=beta)
        parents = {u for u, _ in set(raw.edges) - {e for e, _ in before.removed}}
        still = {u for u, v in pruned.ontology.edges} | {
            u for (u, _), why in pruned.removed if why == "cycle"
        }
        assert parents <= still  # the heaviest child of each node is never removed by the rule
    for alpha, beta in ((0, 0), (0.3, 0), (0.2, 0.4)):
        pruned = prune(raw, alpha, beta)
        graph = pruned.ontology.networkx()
        assert nx.is_directed_acyclic_graph(graph)
        assert set(nx.descendants(graph, "r")) == set(graph) - {"r"} and graph.in_degree("r") == 0
        kept = {edge for edge, relation in pruned.ontology.edges.items() if not relation.attached}
        gone = [edge for edge, _ in pruned.removed]
        assert kept | set(gone) == set(raw.edges) and len(kept) + len(gone) == len(raw.edges)
        assert len(pruned.ontology.edges) - len(kept) == pruned.num_attached


def test_of_a_cycle_the_lightest_edge_goes() -> None:
    edges = {
        ("a", "b"): Relation(3),
        ("b", "c"): Relation(1),
        ("c", "a"): Relation(2),
        ("c", "d"): Relation(0.5),
    }
    assert cycle_edges(edges) == [("b", "c")]


def test_orphans_hang_under_the_root() -> None:
    pruned = prune(make({("r", "a"): 5, ("b", "c"): 2}))
    assert pruned.num_attached == 1
    assert pruned.ontology.edges["r", "b"] == Relation(0.0, attached=True)
    figures = shape(make({("r", "a"): 5, ("b", "c"): 2, ("c", "b"): 1, ("d", "d"): 1}))
    assert (figures["num_unreachable"], figures["num_orphans"], figures["num_cycles"], figures["depth"]) == (
        3,
        0,
        2,
        1,
    )


def test_the_sweep_has_441_points_and_equals_pruning_alone() -> None:
    raw = random_graph(3)
    points = sweep_points(len(raw.edges))
    assert len(points) == 441 and points[0][1] == 0 and points[-1][0] == 0
    assert points[0][0] == pytest.approx(1 - 1 / len(raw.edges)) and points[20][1] == pytest.approx(0.9)
    some = points[::37]
    seen = []
    for places, pruned in pruned_at(raw, [*some, *some]):
        seen += places
        for place in places:
            alone = prune(raw, *some[place % len(some)])
            assert alone.ontology.edges == pruned.ontology.edges and alone.removed == pruned.removed
    assert sorted(seen) == list(range(2 * len(some)))


def test_all_points_of_a_sweep_are_matched_in_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, true = random_graph(3), random_graph(4, num_edges=25)
    vectors = dict(zip(raw.titles, np.random.default_rng(0).normal(size=(15, 4)), strict=True))

    def titled(ontology: Ontology) -> TitledGraph:
        titles, edges = ontology.arrays()
        return TitledGraph(titles, edges, np.array([vectors[title] for title in titles]))

    found, told = {}, []
    for limit in (10**6, 20 * len(true.edges)):  # the second between the smallest and the largest graph
        monkeypatch.setattr(stage, "_SWEEP_CELLS", limit)
        found[limit] = stage._sweep(raw, titled(true), titled, "paper", lambda *done: told.append(done))
    assert told[-1] == (441, 441)
    points = sweep_points(len(raw.edges))
    some = range(0, 441, 5)
    alone = {i: titled(prune(raw, *points[i]).ontology) for i in some}
    sizes = {len(graph.edges) for graph in alone.values()}
    assert min(sizes) < 20 < max(sizes)
    for sweep, most_cells in zip(found.values(), (10**6, 0), strict=True):
        assert [(point["alpha"], point["beta"]) for point in sweep] == points
        for i in some:
            expected = metrics.continuous(alone[i], titled(true), most_cells).f1
            assert sweep[i]["continuous_f1"] == pytest.approx(expected)
    best, greedy = ([point["continuous_f1"] for point in sweep] for sweep in found.values())
    small = [i for i in some if len(alone[i].edges) < 20]
    assert any(
        greedy[i] < best[i] - 1e-3 for i in small
    )  # those that a limit by point would have matched best
