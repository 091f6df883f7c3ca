"""Masks: their shares, and that nothing but seed, epoch and place decides them."""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context

import numpy as np
import pytest
from scipy.stats import binomtest

from luthier.ontology import masking
from luthier.records import Row

COUNTS = {"often": 400, "sometimes": 100, "rarely": 10}


def make_row(name: str, paths: list[list[str]]) -> Row:
    names = ["prompt"]
    for number, path in enumerate(paths):
        names += ["root"]
        for position in range(1, len(path)):
            names += ["separator", masking.span_name(number, position)]
        names += ["separator"]
    span_ids = np.arange(len(names)).repeat(2)
    weights = (span_ids > 0).astype(np.float32)
    return Row(name, name, np.zeros(len(span_ids), np.int32), weights, span_ids.astype(np.int16), names, 2, "", 0, meta={"paths": paths})  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    names = [name for name, n in COUNTS.items() for _ in range(n)]
    return [
        make_row(f"row{i}", [["top", name], ["top", name, f"{name} below"]]) for i, name in enumerate(names)
    ]


@pytest.fixture(scope="module")
def counts(rows: list[Row]) -> masking.EdgeCounts:
    return masking.EdgeCounts.of(path for row in rows for path in row.meta["paths"])


def masks(rows: list[Row], counts: masking.EdgeCounts, seed: int, epoch: int) -> list[dict]:
    return [masking.is_masked(row, counts, seed, epoch) for row in rows]


def test_counts_and_formula(counts: masking.EdgeCounts) -> None:
    assert counts.counts["top", "often"] == 800 and counts.counts["often", "often below"] == 400
    assert counts.mean == sum(3 * n for n in COUNTS.values()) / 6 == 255
    assert counts.mask_probability(("top", "often")) == 1 - 255 / 800
    assert counts.mask_probability(("top", "rarely")) == 0 and counts.weight(("top", "rarely")) == 1
    assert counts.mask_probability(("never", "seen")) == 0
    assert counts.is_head(("top", "often")) and not counts.is_head(("top", "sometimes"))


def test_shares_follow_the_formula_for_every_edge(rows: list[Row], counts: masking.EdgeCounts) -> None:
    class Sequence(list):
        row = list.__getitem__

    visits = [(index, epoch) for epoch in range(3) for index in range(len(rows))]
    seen = masking.realised(counts, Sequence(rows), visits, seed=5)
    assert [entry["count"] for entry in seen] == sorted(counts.counts.values(), reverse=True)
    for entry in seen:
        assert entry["drawn"] == 3 * entry["count"]
        if entry["probability"]:
            assert binomtest(entry["masked"], entry["drawn"], entry["probability"]).pvalue > 1e-4
        else:
            assert entry["masked"] == 0
    assert any(entry["masked"] for entry in seen)


def test_epochs_and_seeds_differ_and_runs_do_not(rows: list[Row], counts: masking.EdgeCounts) -> None:
    assert masks(rows, counts, 0, 1) == masks(rows, counts, 0, 1)
    assert masks(rows, counts, 0, 1) != masks(rows, counts, 0, 2)
    assert masks(rows, counts, 0, 1) != masks(rows, counts, 1, 1)
    alone = masking.is_masked(rows[17], counts, 0, 1)
    assert alone == masks(rows, counts, 0, 1)[17]  # whatever was drawn before


def test_workers_do_not_matter(rows: list[Row], counts: masking.EdgeCounts) -> None:
    with ProcessPoolExecutor(4, get_context("fork")) as pool:
        parts = [pool.submit(masks, rows[i::4], counts, 0, 1) for i in range(4)]
        drawn = {i: part.result() for i, part in enumerate(parts)}
    assert [drawn[i % 4][i // 4] for i in range(len(rows))] == masks(rows, counts, 0, 1)


def test_only_nodes_below_the_root_lose_their_weight(rows: list[Row], counts: masking.EdgeCounts) -> None:
    reweigh = masking.masked_weights(counts, 0)
    lost: Counter[str] = Counter()
    for row in rows:
        drawn = reweigh(row, 0)
        assert drawn.loss_weights is not row.loss_weights and row.loss_weights.sum() == 2 * (
            len(row.span_names) - 1
        )
        for place in np.unique(row.span_ids):
            both = drawn.loss_weights[row.span_ids == place]
            name = row.span_names[place]
            assert both[0] == both[1]  # a node goes whole
            if masking.node_of(name) is None:
                assert both[0] == (name != "prompt")
            lost[name] += both[0] == 0 and name != "prompt"
    assert lost["path 0 node 1"] and lost["path 1 node 2"]


def test_fixed_weights_are_the_mean_of_the_masks(rows: list[Row], counts: masking.EdgeCounts) -> None:
    row = rows[0]
    masked, mean = masking.masked_weights(counts, 3), masking.mean_weights(counts)(row, 0).loss_weights
    drawn = np.mean([masked(row, epoch).loss_weights for epoch in range(2000)], axis=0)
    assert np.abs(drawn - mean).max() < 0.05 and mean.min() == 0
    edges = [edge for path in row.meta["paths"] for edge in pairwise(path)]
    assert {float(w) for w in mean if 0 < w < 1} == {np.float32(counts.weight(e)) for e in edges}
