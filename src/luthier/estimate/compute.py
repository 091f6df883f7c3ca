"""Operations of matrix products for each token, as Luthier computes them.

A product of a matrix of W weights costs 2 W for a token. Symbols: N weights of a layer, L layers, A attention width,
T tokens of a row, D width, V vocabulary.

Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1 (2 N forward, 4 N backward); Chowdhery et al. 2022,
arXiv:2204.02311, appendix B (the attention term, 12 L A T).
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.estimate.shape import Shape


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of a token of training, by part of the step.

    Attributes:
        forward: Blocks and attention.
        backward: The same, backwards; only through what leads to a trained weight.
        head: Output head and loss, both ways, where every token is trained.
    """

    forward: float
    backward: float
    head: float

    def training(self, trained_share: float, *, checkpointing: bool = False) -> float:
        """FLOPs of a token in training, of which a share is trained; checkpointing computes the blocks forward twice."""
        return self.forward * (2 if checkpointing else 1) + self.backward + self.head * trained_share


def flops(shape: Shape, row_tokens: float) -> Flops:
    """Operations of a token of rows of that length.

    A frozen matrix has no product for its own gradient: 2 N forward and 2 N backward. A trained one, and an adapter's
    two matrices, have it: 2 N and 4 N. Nothing before the first trained layer is gone through backwards. Of a frozen
    head the gradient is known in the forward pass (4 D V in all); a trained one is computed once more (8 D V).
    """
    attention = _attention(shape, row_tokens)
    weights = sum(linear.weights for linear in shape.linears())
    adapters = sum(linear.adapter for linear in shape.linears())
    forward = 2 * (weights + adapters) + attention * len(shape.layers)
    passed = shape.layers[shape.first_trained :]
    to_inputs = sum(linear.weights for layer in passed for linear in layer)
    if passed and not shape.embedding_trained:
        # Nothing before the first queries, keys and values is trained; only adapters as one product compute it all the same.
        to_inputs -= sum(
            linear.weights
            for linear in passed[0]
            if linear.name in ("q_proj", "k_proj", "v_proj") and (shape.dropout or not linear.rank)
        )
    to_weights = sum(linear.weights for linear in shape.linears() if linear.trained)
    backward = 2 * (to_inputs + to_weights) + 4 * adapters + 2.5 * attention * len(passed)
    head = 2 * shape.hidden * shape.vocabulary
    times = 2 if not shape.head_trained else 3 if shape.plain_head else 4
    return Flops(forward, backward, times * head)


def _attention(shape: Shape, row_tokens: float) -> float:
    """Operations of the two products of one layer's attention, for a token, forward; backwards there are five.

    A token sees itself and those before it in its row, half of the row on average; or its window, which grows to its size
    at the start of the row.
    """
    seen = min(row_tokens, shape.window or row_tokens)
    keys = seen - seen * (seen - 1) / (2 * row_tokens) if row_tokens else 0.0
    return 4 * shape.attention_width * keys
