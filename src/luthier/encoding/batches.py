"""Rows -> padded batches. Shapes: B rows, T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from luthier.records import Row


@dataclass(frozen=True, slots=True)
class Batch:
    """A padded batch.

    Attributes:
        input_ids_BT: Token ids, int64; padding holds ``pad_id``, which nothing ever looks at.
        attention_mask_BT: 1 at real tokens, by length and never by token id.
        position_ids_BT: Position of each token in its row, whatever the padding side.
        loss_weights_BT: Weight of each token as a target, fp32; 0 at context and padding.
        left_padded: Whether padding stands before the rows.
        row_lengths: Tokens of each row, if the batch is one sequence of rows one after another (B = 1); else empty.
        labels: Of each row, where a head labels rows: the number of its class, or 0 and 1 for each class; else empty.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    position_ids_BT: Tensor
    loss_weights_BT: Tensor
    left_padded: bool
    row_lengths: tuple[int, ...] = ()
    labels: tuple[Any, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows that are in it."""
        return len(self.row_lengths) or len(self.input_ids_BT)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device),
            attention_mask_BT=self.attention_mask_BT.to(device),
            position_ids_BT=self.position_ids_BT.to(device),
            loss_weights_BT=self.loss_weights_BT.to(device),
        )


def collate(
    rows: Sequence[Row], pad_id: int, side: Literal["left", "right"] = "right", multiple: int = 1
) -> Batch:
    """The batch of some rows, padded to the longest, and on to a multiple of so many tokens."""
    longest = padded_length(max(len(row.input_ids) for row in rows), multiple)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    positions = np.zeros((len(rows), longest), dtype=np.int64)
    weights = np.zeros((len(rows), longest), dtype=np.float32)
    for i, row in enumerate(rows):
        length = len(row.input_ids)
        place = slice(0, length) if side == "right" else slice(longest - length, longest)
        ids[i, place] = row.input_ids
        mask[i, place] = 1
        # Over padding on the right positions count on: where they restart, transformers sees a second packed row.
        positions[i, place.start :] = np.arange(longest - place.start)
        weights[i, place] = row.loss_weights
    padded_left = side == "left" and bool((mask == 0).any())
    return Batch(
        input_ids_BT=torch.from_numpy(ids),
        attention_mask_BT=torch.from_numpy(mask),
        position_ids_BT=torch.from_numpy(positions),
        loss_weights_BT=torch.from_numpy(weights),
        left_padded=padded_left,
        labels=_labels(rows),
    )


def padded_length(length: int, multiple: int) -> int:
    """The next multiple."""
    return -(-length // multiple) * multiple


def pack(rows: Sequence[Row]) -> Batch:
    """The rows one after another in one sequence, without padding; the first token of each is no target of the row before."""
    ids = np.concatenate([np.asarray(row.input_ids, np.int64) for row in rows])
    weights = np.concatenate([np.asarray(row.loss_weights, np.float32) for row in rows])
    lengths = tuple(len(row.input_ids) for row in rows)
    starts = np.cumsum([0, *lengths[:-1]])
    labels = _labels(rows)
    if not labels:
        weights[starts] = 0
    positions = np.arange(len(ids)) - np.repeat(starts, lengths)
    return Batch(
        input_ids_BT=torch.from_numpy(ids)[None],
        attention_mask_BT=torch.ones(1, len(ids), dtype=torch.int64),
        position_ids_BT=torch.from_numpy(positions)[None],
        loss_weights_BT=torch.from_numpy(weights)[None],
        left_padded=False,
        row_lengths=lengths,
        labels=labels,
    )


def _labels(rows: Sequence[Row]) -> tuple[Any, ...]:
    return tuple(row.meta["label"] for row in rows) if all("label" in row.meta for row in rows) else ()


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row indices grouped by similar length, so that rows x longest stays within ``max_tokens``.

    Args:
        lengths: Tokens of each row.
        max_tokens: Tokens of a group, padding included; a row that is longer goes alone.

    Returns:
        Every index once, longest rows first, so that memory peaks at once if at all.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= max_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def pack_groups(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row indices grouped so that rows one after another stay within ``max_tokens``: no padding, so few groups.

    Args:
        lengths: Tokens of each row.
        max_tokens: Tokens of a group; a row that is longer goes alone.

    Returns:
        Every index once; each row goes into the first group that has room, longest rows first.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((i for i, left in enumerate(room) if left >= lengths[index]), None)
        if place is None:
            groups.append([])
            room.append(max_tokens)
            place = len(groups) - 1
        groups[place].append(index)
        room[place] -= lengths[index]
    return groups


def shuffled(
    position: int, count: int, num_rows: int, seed: int, classes: Classes | None = None
) -> list[int]:
    """The rows at ``position`` to ``position + count`` of an endless stream of reshuffled epochs.

    The order depends on seed and position alone, so a resumed run goes on exactly where it was.

    Args:
        position: Rows drawn before.
        count: Rows to draw.
        num_rows: Of an epoch.
        seed: The recipe's.
        classes: Draw by class: an epoch has as many rows, but more of rare classes and fewer of frequent ones.
    """
    indices: list[int] = []
    while len(indices) < count:
        epoch, offset = divmod(position + len(indices), num_rows)
        order = _epoch(num_rows, seed, epoch, classes)
        indices += order[offset : offset + count - len(indices)].tolist()
    return indices


class Classes:
    """The class of each training row, and how often each class is drawn.

    Args:
        labels: Number of each row's class, shape (num_rows,).
        balance: 0 draws each class as often as it has rows, 1 all classes equally often.
    """

    def __init__(self, labels: np.ndarray, balance: float) -> None:
        by_class = np.argsort(labels, kind="stable")
        _, sizes = np.unique(labels, return_counts=True)
        self._rows = np.split(by_class, np.cumsum(sizes)[:-1])
        shares = sizes.astype(np.float64) ** (1 - balance)
        # Whole numbers that add up: borders between classes on the line from 0 to num_rows, rounded.
        self._counts = np.diff(np.round(np.cumsum([0, *shares]) / shares.sum() * len(labels))).astype(
            np.int64
        )

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """The rows of one epoch, not in order: each row of a class equally often, up to one."""
        parts = []
        for rows, count in zip(self._rows, self._counts.tolist(), strict=True):
            rounds = [generator.permutation(rows) for _ in range(-(-count // len(rows)))]
            parts.append(np.concatenate(rounds)[:count])
        return np.concatenate(parts)


@lru_cache(maxsize=2)
def _epoch(num_rows: int, seed: int, epoch: int, classes: Classes | None) -> np.ndarray:
    """Row numbers of an epoch in their order; kept, since a step needs only a few of them."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    if classes is None:
        return generator.permutation(num_rows)
    return generator.permutation(classes.draw(generator))
