"""Keys and values of prompts, kept once for all beams of each, and the attention of a step over prompt and beam.

Shapes: P prompts in work, B beams of each, R = P x B rows, H heads, K heads of keys and values, G = H / K, D width of a head,
T tokens of the longest prompt in work, S new tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "luthier_beams"


class BeamCache:
    """Keys and values of the prompts in work, and of what their beams have written; the attention of one step over both.

    Args:
        num_layers: Of the model.
        num_beams: Of each prompt.
    """

    def __init__(self, num_layers: int, num_beams: int) -> None:
        self.num_beams = num_beams
        # Keys and values of each layer: (P, K, T, D), and (R, K, S, D).
        self.prompts: list[list[Tensor]] = [[] for _ in range(num_layers)]
        self.written: list[list[Tensor]] = [[] for _ in range(num_layers)]
        self.firsts: list[int] = []  # the columns of the new tokens that each prompt's own begin at
        self.hidden_PT = torch.empty(0, 0, dtype=torch.bool)
        self.hidden_RS = torch.empty(0, 0, dtype=torch.bool)
        self.parents_R: Tensor | None = None

    @property
    def num_columns(self) -> int:
        """New tokens that there is room for."""
        return self.written[0][0].shape[2] if self.written[0] else 0

    def put(self, slot: int, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """A prompt's keys and values (1, K, T, D) a layer, in the place of another or as a new last one."""
        length = layers[0][0].shape[2]
        new = slot == len(self.firsts)
        self.firsts[slot : slot + 1] = [self.num_columns]
        room = max(length, self.hidden_PT.shape[1])
        hidden = torch.ones(1, room, dtype=torch.bool, device=layers[0][0].device)
        hidden[:, :length] = False
        self.hidden_PT = functional.pad(
            self.hidden_PT.to(hidden.device), (0, room - self.hidden_PT.shape[1]), value=True
        )
        if new:
            self.hidden_PT = torch.cat([self.hidden_PT, hidden])
        else:
            self.hidden_PT[slot] = hidden[0]
        for held, found in zip(self.prompts, layers, strict=True):
            for side in range(2):
                padded = functional.pad(found[side], (0, 0, 0, room - length))
                if len(held) <= side:
                    held.append(padded)
                    continue
                if held[side].shape[2] < room:
                    held[side] = functional.pad(held[side], (0, 0, 0, room - held[side].shape[2]))
                if new:
                    held[side] = torch.cat([held[side], padded])
                else:
                    held[side][slot] = padded[0]
        if new and self.written[0]:
            for sides in self.written:
                sides[:] = [functional.pad(t, (0, 0, 0, 0, 0, 0, 0, self.num_beams)) for t in sides]

    def keep(self, slots: Sequence[int]) -> None:
        """Only these prompts go on."""
        chosen = torch.tensor(slots, device=self.hidden_PT.device)
        rows = (chosen[:, None] * self.num_beams + torch.arange(self.num_beams, device=chosen.device)).ravel()
        self.firsts = [self.firsts[slot] for slot in slots]
        self.hidden_PT = self.hidden_PT[chosen]
        for held, sides in zip(self.prompts, self.written, strict=True):
            held[:] = [t[chosen] for t in held]
            sides[:] = [t[rows] for t in sides]

    def begin(self, parents: Sequence[int]) -> list[int]:
        """Before a step: takes the row that each row goes on from; returns how many tokens each prompt's beams have written."""
        if spare := min(self.firsts):  # what no prompt in work has written
            for sides in self.written:
                sides[:] = [t[:, :, spare:] for t in sides]
            self.firsts = [first - spare for first in self.firsts]
        device = self.hidden_PT.device
        firsts_R = torch.tensor(self.firsts, device=device).repeat_interleave(self.num_beams)
        self.hidden_RS = torch.arange(self.num_columns + 1, device=device) < firsts_R[:, None]
        own = list(parents) == list(range(len(parents)))
        self.parents_R = None if own else torch.tensor(parents, device=device)
        return [self.num_columns - first for first in self.firsts]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of one new token a row, shape (R, 1, H, D), over its prompt and what its beam has written."""
        sides = self.written[layer]
        if sides:
            old = sides if self.parents_R is None else [t.index_select(0, self.parents_R) for t in sides]
            sides[:] = [torch.cat([past, new], 2) for past, new in zip(old, (key, value), strict=True)]
        else:
            sides[:] = [key, value]
        rows, heads, _, width = query.shape
        prompts, num_keys = len(self.hidden_PT), key.shape[1]
        group = heads // num_keys
        keys_PKTD, values_PKTD = self.prompts[layer]
        q = query.view(prompts, self.num_beams, num_keys, group, width)
        q_far = q.transpose(1, 2).reshape(prompts, num_keys, self.num_beams * group, width)
        far = (q_far @ keys_PKTD.transpose(2, 3)).float() * scaling
        far = far.masked_fill(self.hidden_PT[:, None, None], float("-inf"))
        far = far.view(prompts, num_keys, self.num_beams, group, -1)
        near = (q.reshape(rows, num_keys, group, width) @ sides[0].transpose(2, 3)).float() * scaling
        near = near.masked_fill(self.hidden_RS[:, None, None], float("-inf"))
        near = near.view(prompts, self.num_beams, num_keys, group, -1).transpose(1, 2)
        weights = torch.cat([far, near], -1).softmax(-1).to(value.dtype)
        room = keys_PKTD.shape[2]
        out = weights[..., :room].reshape(prompts, num_keys, self.num_beams * group, room) @ values_PKTD
        out = out.view(prompts, num_keys, self.num_beams, group, width).transpose(1, 2)
        own = weights[..., room:].transpose(1, 2).reshape(rows, num_keys, group, -1) @ sides[1]
        total: Tensor = out.reshape(rows, 1, heads, width) + own.view(rows, 1, heads, width)
        return total


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    beams: BeamCache | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """One new token of each beam over prompt and beam; transformers' own attention where prompts are read.

    Args:
        module: The layer.
        query: Shape (R, H, 1, D).
        key: Shape (R, K, 1, D).
        value: Shape (R, K, 1, D).
        attention_mask: Only looked at without ``beams``.
        dropout: Zero, since nothing is trained.
        scaling: Of the scores; ``D ** -0.5`` if None.
        beams: What was read and written so far.
        others: For transformers' own.
    """
    if beams is None:
        usual: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
        return usual
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key = query.to(value.dtype), key.to(value.dtype)
    layer: Any = module
    return beams.attend(layer.layer_idx, query, key, value, scaling), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
