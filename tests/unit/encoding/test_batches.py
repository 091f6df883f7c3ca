"""Batches, groups and orders by exact figures."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from luthier.encoding.batches import (
    Batch,
    Classes,
    collate,
    micro_batches,
    pack,
    pack_groups,
    padded_length,
    shuffled,
)
from luthier.records import Row


def row(length: int, **meta: object) -> Row:
    ids, weights = np.arange(10, 10 + length, dtype=np.int32), np.full(length, 0.5, np.float32)
    return Row("r", "g", ids, weights, np.zeros(length, np.int16), ["x"], 1, "", 0, meta=meta)


def assert_types(batch: Batch) -> None:
    for tensor in (batch.input_ids_BT, batch.attention_mask_BT, batch.position_ids_BT):
        assert tensor.dtype == torch.int64
    assert batch.loss_weights_BT.dtype == torch.float32


def test_padding_stands_on_its_side() -> None:
    right = collate([row(2), row(3)], 7, multiple=2)
    assert right.input_ids_BT.tolist() == [[10, 11, 7, 7], [10, 11, 12, 7]]
    assert right.attention_mask_BT.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert right.position_ids_BT.tolist() == [[0, 1, 2, 3]] * 2, "positions count on over padding"
    assert right.loss_weights_BT.tolist() == [[0.5, 0.5, 0, 0], [0.5, 0.5, 0.5, 0]]
    assert (right.left_padded, right.row_lengths, right.labels) == (False, (), ())
    assert_types(right)
    left = collate([row(2), row(3)], 7, "left")
    assert left.input_ids_BT.tolist() == [[7, 10, 11], [10, 11, 12]] and left.left_padded
    assert left.position_ids_BT.tolist() == [[0, 0, 1], [0, 1, 2]] and left.attention_mask_BT.tolist() == [
        [0, 1, 1],
        [1, 1, 1],
    ]
    assert left.loss_weights_BT.tolist() == [[0, 0.5, 0.5], [0.5, 0.5, 0.5]]
    assert not collate([row(3), row(3)], 7, "left").left_padded
    moved = left.to(torch.device("meta"))
    assert all(
        getattr(moved, name).is_meta
        for name in ("input_ids_BT", "attention_mask_BT", "position_ids_BT", "loss_weights_BT")
    )


def test_labels_are_those_of_rows_that_all_have_one() -> None:
    assert collate([row(1, label=2), row(2, label=[0, 1])], 0).labels == (2, [0, 1])
    assert collate([row(1, label=2), row(2)], 0).labels == ()


def test_packed_rows_do_not_predict_each_other() -> None:
    batch = pack([row(2), replace(row(1), loss_weights=np.array([0.5])), row(3)])
    assert batch.input_ids_BT.tolist() == [[10, 11, 10, 10, 11, 12]] and batch.row_lengths == (2, 1, 3)
    assert batch.position_ids_BT.tolist() == [[0, 1, 0, 0, 1, 2]] and batch.attention_mask_BT.tolist() == [
        [1] * 6
    ]
    assert batch.loss_weights_BT.tolist() == [[0, 0.5, 0, 0, 0.5, 0.5]] and batch.left_padded is False
    assert_types(batch)
    labelled = pack([row(1, label=0), row(1, label=1)])
    assert labelled.loss_weights_BT.tolist() == [[0.5, 0.5]] and labelled.labels == (0, 1)


def test_lengths_are_padded_to_the_next_multiple() -> None:
    assert [padded_length(n, 8) for n in (1, 8, 9, 16)] == [8, 8, 16, 16]


@pytest.mark.parametrize(
    ("budget", "groups"),
    [(12, [[1, 4], [0, 3, 2]]), (11, [[1], [4, 0], [3, 2]]), (1, [[1], [4], [0], [3], [2]])],
)
def test_groups_of_similar_length(budget: int, groups: list[list[int]]) -> None:
    assert micro_batches([4, 6, 1, 4, 6 if budget == 12 else 5], budget) == groups


def test_rows_fill_the_first_pack_with_room() -> None:
    assert pack_groups([4, 6, 1, 4, 5], 10) == [[1, 0], [4, 3, 2]]
    assert pack_groups([4, 6, 1, 4, 5], 11) == [[1, 4], [0, 3, 2]]
    assert pack_groups([12, 3, 10], 10) == [[0], [2], [1]] and pack_groups([], 5) == []


def test_classes_are_drawn_as_often_as_they_should() -> None:
    labels = np.array([0] * 12 + [5] * 3 + [2])
    draw = np.random.default_rng(0)
    for balance, counts in ((0.0, (12, 3, 1)), (1.0, (5, 5, 6)), (0.5, (9, 4, 3))):
        drawn = Classes(labels, balance).draw(draw)
        assert tuple(int((labels[drawn] == name).sum()) for name in (0, 5, 2)) == counts
        times = np.bincount(drawn, minlength=16)
        for name in (0, 5, 2):
            of_class = times[labels == name]
            assert of_class.max() - of_class.min() <= 1, "each row of a class equally often, up to one"
    stream = shuffled(0, 32, 16, seed=1, classes=Classes(labels, 1.0))
    for epoch in (stream[:16], stream[16:]):
        assert sorted(labels[epoch].tolist()) == [0] * 5 + [2] * 6 + [5] * 5
    assert stream[:16] != stream[16:]
    assert shuffled(5, 20, 16, seed=1, classes=Classes(labels, 1.0)) == stream[5:25]


def test_an_epoch_has_each_row_once() -> None:
    stream = shuffled(0, 32, 16, seed=1)
    assert sorted(stream[:16]) == sorted(stream[16:]) == list(range(16)) and stream[:16] != stream[16:]
    assert shuffled(5, 20, 16, seed=1) == stream[5:25] and shuffled(5, 0, 16, seed=1) == []


class Unshuffled(np.random.Generator):
    """Leaves an order as it is."""

    def permutation(self, x: np.ndarray, axis: int = 0) -> np.ndarray:
        return x


def test_rows_of_a_class_are_in_the_order_of_the_rows_before_they_are_shuffled() -> None:
    # The order in which a sort leaves equal labels may depend on the processor.
    drawn = Classes(np.arange(1000) % 3, 0.0).draw(Unshuffled(np.random.PCG64(0)))
    assert drawn.tolist() == [*range(0, 1000, 3), *range(1, 1000, 3), *range(2, 1000, 3)]
