import numpy as np
import pytest

from luthier.prepare.split import assign, stable_hash


def names(count: int, prefix: str = "g") -> np.ndarray:
    return np.array([stable_hash(f"{prefix}{i}") for i in range(count)], np.uint64)


def alone(count: int) -> np.ndarray:
    return np.arange(count)


def test_shares_are_met_by_a_hash_that_never_changes() -> None:
    splits = assign(names(20_000), alone(20_000), (0.8, 0.1, 0.1), 0)
    shares = np.bincount(splits, minlength=3) / len(splits)
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    # Written down, because another hash would move rows from training to the test of runs made before.
    assert splits[:24].tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0]


def test_neither_a_group_nor_a_cluster_straddles() -> None:
    groups, clusters = np.repeat(names(500), 4), np.arange(2000)
    clusters[4:1000:8] = clusters[0:1000:8]  # groups 0 and 1, 2 and 3, ... share a cluster
    splits = assign(groups, clusters, (0.4, 0.3, 0.3), 1)
    assert all(len(set(splits[groups == group])) == 1 for group in np.unique(groups))
    assert all(len(set(splits[clusters == cluster])) == 1 for cluster in np.unique(clusters))
    assert len(set(splits)) == 3


def test_chains_of_groups_and_clusters_are_one_component() -> None:
    groups, clusters = np.repeat(names(100), 2), np.arange(200)
    clusters[2::2] = clusters[1:-1:2]  # the second record of each group is like the first of the next
    assert len(set(assign(groups, clusters, (0.4, 0.3, 0.3), 0))) == 1


def test_many_records_of_one_group_and_one_cluster_stay_together() -> None:
    groups, clusters = np.repeat(names(2), 256), np.zeros(512, np.int64)  # 256 edges of one pair of nodes
    assert all(len(set(assign(groups, clusters, (0.4, 0.3, 0.3), seed))) == 1 for seed in range(20))


def test_adding_records_moves_no_other() -> None:
    before = assign(names(300), alone(300), (0.5, 0.25, 0.25), 3)
    more = np.concatenate([names(200, "new"), names(300)])
    assert assign(more, alone(500), (0.5, 0.25, 0.25), 3)[200:].tolist() == before.tolist()


def test_a_share_of_zero_gets_nothing_and_seeds_differ() -> None:
    assert set(assign(names(3000), alone(3000), (0.7, 0.3, 0.0), 0)) == {0, 1}
    assert set(assign(names(3000), alone(3000), (0.7, 0.0, 0.3), 0)) == {0, 2}
    one, other = (assign(names(300), alone(300), (0.5, 0.25, 0.25), seed) for seed in (0, 1))
    assert one.tolist() != other.tolist()
    assert len(assign(names(0), alone(0), (1, 0, 0), 0)) == 0
