"""Which split a record belongs to: by hash of its group, so that adding records moves no other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def stable_hash(*parts: str) -> int:
    """The first 64 bits of the parts' SHA-256; the same in every process and version."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big")


def assign(groups: np.ndarray, clusters: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """The split of each record, so that neither a group nor a cluster of copies straddles two.

    Groups that share a cluster are one component. It is placed in [0, 1) by a hash of the seed and its smallest
    group, and the shares cut that interval; so the split of a component depends on nothing but itself.

    Args:
        groups: ``stable_hash`` of each record's group, uint64, shape (num_records,).
        clusters: Number of each record's cluster of near copies, any integers, shape (num_records,).
        shares: Of each of ``records.SPLITS``, in proportion to their sum.
        seed: The recipe's.

    Returns:
        Index into ``records.SPLITS``, uint8, shape (num_records,).
    """
    if not len(groups):
        return np.empty(0, np.uint8)
    names, group_ids = np.unique(groups, return_inverse=True)
    _, cluster_ids = np.unique(clusters, return_inverse=True)
    # Groups and clusters are the two kinds of nodes, each record an edge between its two.
    num_nodes = len(names) + int(cluster_ids.max()) + 1
    edges = (np.ones(len(groups), np.int32), (group_ids, cluster_ids + len(names)))
    _, component_of_node = connected_components(
        coo_array(edges, shape=(num_nodes, num_nodes)), directed=False
    )
    components = component_of_node[: len(names)]  # of each group
    # names are sorted, so the first group of a component is its smallest.
    labels, first = np.unique(components, return_index=True)
    borders = np.cumsum(shares)[:-1] / np.cumsum(shares)[-1]
    # 53 bits, because a float of all 64 could round up to 1
    positions = np.array(
        [(stable_hash(str(seed), str(name)) >> 11) / 2**53 for name in names[first].tolist()]
    )
    split_of_component = np.zeros(int(labels.max()) + 1, np.uint8)
    split_of_component[labels] = np.searchsorted(borders, positions, side="right")
    result: np.ndarray = split_of_component[components[group_ids]]
    return result
