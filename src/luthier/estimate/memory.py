"""Memory of one GPU in training, by part, as Luthier trains.

The formulae count what torch's autograd keeps of Luthier's own code: packed rows, LoRA as one product, head and loss in
slices; tests/unit/estimate/test_memory.py holds them against what torch counts. Symbols: D width between blocks, A width
of all queries, K width of all keys, F width inside the MLP, H heads, T tokens of a row, r rank; p bytes of a number in a
product, s between blocks.

Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4 (activations of a block, here for gated MLPs, rotary
positions and no dropout); Rajbhandari et al. 2020, arXiv:1910.02054 (states and their sharding); Dettmers et al. 2023,
arXiv:2305.14314 (bits of NF4 with double quantisation).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from luthier.estimate.shape import Linear, Shape
from luthier.models.head import MOST_LOGITS
from luthier.models.memory import MARGIN
from luthier.models.packed import TILE

# Bytes of a 4-bit weight with a scale of 8 bits for each 64, and one of 32 bits for each 256 of these.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True, slots=True)
class Way:
    """How memory is saved.

    Attributes:
        checkpointing: Of a block only its input is kept; the rest is computed again in the backward pass.
        sharded: Weights, gradients and optimizer states are split over all GPUs (ZeRO stage 3, FSDP).
        four_bit: Frozen matrices of the blocks are kept in NF4 (QLoRA).
    """

    checkpointing: bool = False
    sharded: bool = False
    four_bit: bool = False

    @property
    def name(self) -> str:
        """Such as ``sharding+checkpointing``; ``plain`` with none of them."""
        given = {"4-bit": self.four_bit, "sharding": self.sharded, "checkpointing": self.checkpointing}
        return "+".join(name for name, is_given in given.items() if is_given) or "plain"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one GPU at the peak of a step, by part.

    Attributes:
        frozen_weights: In the format of products, or in 4 bits.
        trained_weights: In fp32.
        gradients: Of trained weights, in fp32.
        optimizer_states: AdamW's two averages, in fp32.
        copies: Weights once more, as products need them: cast to bf16, adapters beside their matrix, gathered shards,
            matrices out of 4 bits.
        activations: What the forward pass keeps for the backward pass.
        working: Tensors of one block, or logits of a slice, that come and go at the peak.
    """

    frozen_weights: float
    trained_weights: float
    gradients: float
    optimizer_states: float
    copies: float
    activations: float
    working: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(asdict(self).values()))

    def allowed(self, of: float) -> float:
        """Most bytes that all of it may come to: with the weights in place, ``memory.fit`` plans with a share of what is free."""
        weights = self.frozen_weights + self.trained_weights
        return weights + MARGIN * max(0.0, of - weights)


def memory(
    shape: Shape, way: Way, *, tokens: int, row_tokens: int, trained_share: float = 1.0, num_gpus: int = 1
) -> Memory:
    """Memory of a step's largest micro-batch.

    Args:
        shape: The model's.
        way: How memory is saved.
        tokens: Of the micro-batch, on one GPU.
        row_tokens: Of its longest row.
        trained_share: Of the tokens that carry a loss.
        num_gpus: Over which states are split, if they are.
    """
    parts = num_gpus if way.sharded else 1
    blocks = sum(linear.weights for linear in shape.linears() if not linear.trained)
    frozen = float((shape.num_frozen - blocks) * shape.stream_bytes)
    frozen += blocks * (NF4_BYTES if way.four_bit else shape.stream_bytes)
    trained = 4 * shape.num_trained
    return Memory(
        frozen_weights=frozen / parts,
        trained_weights=trained / parts,
        gradients=trained / parts,
        optimizer_states=2 * trained / parts,
        copies=_copies(shape, way),
        activations=activations(shape, way, tokens, trained_share),
        working=_working(shape, way, tokens, row_tokens, trained_share),
    )


def activations(shape: Shape, way: Way, tokens: int, trained_share: float) -> float:
    """Bytes that the forward pass of a micro-batch keeps for the backward pass."""
    kept = _by_block(shape, tokens)
    if way.checkpointing:
        inputs = tokens * shape.hidden * shape.stream_bytes
        blocks = inputs * len(kept) + max(kept, default=0.0)
    else:
        blocks = sum(kept)
    # Around the blocks: cosines and sines of positions, the last norm, and the head's input and gradient.
    last = 4 * shape.hidden + (shape.stream_bytes * shape.hidden if shape.norms_trained else 0)
    around = tokens * (2 * shape.head_width * shape.stream_bytes + last)
    head = (1 if shape.head_trained else 2) * shape.hidden * shape.stream_bytes
    return blocks + around + tokens * trained_share * head


def _by_block(shape: Shape, tokens: int) -> list[float]:
    """Bytes that each block keeps of a micro-batch; those before the first trained one keep nothing."""
    return [tokens * block(shape, layer) for layer in shape.layers[shape.first_trained :]]


def block(shape: Shape, layer: tuple[Linear, ...]) -> float:
    """Bytes that one block keeps of a token.

    Norms 4 (D + D): their input in fp32; once more normalised if their weights are trained. Inputs of layers that are
    trained or adapted: p D for queries, keys and values, p D and p F for the MLP, p r for each adapter. Attention:
    queries, keys, values and the result, which is the output layer's input: p (2 A + 2 K), and 4 H of sums. The gated
    activation: p 3 F.
    """
    p, s = shape.product_bytes, shape.stream_bytes
    norms = 4 * (shape.stream_norms + shape.head_norms)
    if shape.norms_trained:
        norms += s * shape.stream_norms + p * shape.head_norms
    attention = 2 * p * (shape.attention_width + shape.kv_width) + 4 * shape.heads
    return norms + _inputs(shape, layer) + attention + 3 * p * shape.intermediate


def _inputs(shape: Shape, layer: tuple[Linear, ...]) -> float:
    """Bytes of the inputs of linear layers, and of what their adapters make of these, for a token."""
    p = shape.product_bytes
    total, shared = 0.0, set()
    for linear in layer:
        total += p * linear.rank
        if linear.trained and p != shape.stream_bytes and linear.name != "o_proj":
            total += p * linear.inputs  # each casts its own
        elif linear.rank and shape.dropout:
            total += (4 + p) * linear.inputs  # each draws its own
        elif (linear.trained or linear.rank) and linear.name != "o_proj":
            source = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}.get(
                linear.name, linear.name
            )
            total += 0 if source in shared else p * linear.inputs
            shared.add(source)
    return total


def _working(shape: Shape, way: Way, tokens: int, row_tokens: int, trained_share: float) -> float:
    """Bytes beyond what is kept: of logits at the head, or of gradients within one block, whichever are more.

    Going backwards, a block's MLP comes first: gradients of both its halves, 2 p F. What it kept is gone when the
    scores' turn comes, a tile of queries with all their keys at a time: five numbers in fp32 of each. At the head no
    block is at work, so that under checkpointing its logits take the place of a block's activations.
    """
    p = shape.product_bytes
    # Whole tiles, or rows, that follow each other.
    size = max(row_tokens, TILE) // min(row_tokens, TILE) * min(row_tokens, TILE)
    keys = min(size, tokens, (shape.window or size) + TILE)
    scores = 20 * shape.heads * min(TILE, keys) * keys
    freed = tokens * (4 * p * shape.intermediate + (4 + p) * shape.hidden)
    inside = max(2 * p * shape.intermediate * tokens, scores - freed)
    logits = _logits(shape, tokens * trained_share)
    if way.checkpointing:
        logits -= max(_by_block(shape, tokens), default=0.0)
    return max(inside + 4 * shape.hidden * tokens, logits)


def _logits(shape: Shape, num_trained: float) -> float:
    """Bytes of logits, their exponentials and gradients: of a slice, or of all trained tokens with a plain head."""
    numbers = num_trained * shape.vocabulary
    return (numbers if shape.plain_head else min(numbers, MOST_LOGITS)) * (shape.product_bytes + 12)


def _copies(shape: Shape, way: Way) -> float:
    """Bytes of weights in a second form."""
    p = shape.product_bytes
    matrices = [sum(linear.weights for linear in layer) for layer in shape.layers]
    largest = max((linear.weights for linear in shape.linears()), default=0)
    cast = [sum(x.weights for x in layer if x.trained) * p if p != 4 else 0 for layer in shape.layers]
    copies = float(max(cast) if way.checkpointing else sum(cast))
    if not shape.dropout and not way.four_bit:
        copies += p * sum(linear.rank * linear.outputs for linear in shape.linears())
    if way.sharded:  # the block at work and the next one, in the format of products
        copies += 2 * max(matrices) * p
    if way.four_bit:
        copies += largest * p
    return copies
