"""The shape of a recipe's model in training form, from its config alone: every parameter counted, none loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from luthier.errors import UserError, one_line
from luthier.models import rope, scratch
from luthier.models.forward import base_model
from luthier.models.head import is_linear
from luthier.models.load import Precision, resolve, without_weights
from luthier.models.pretrained import UNLOADABLE
from luthier.recipe import Model

_PUBLISHED = Path(__file__).with_name("published.json")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_LAYER = re.compile(r"\.layers\.(\d+)\.")
PARTS = ("embedding", "attention", "MLP", "norms", "head", "new tokens", "adapter", "other")


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of a block.

    Attributes:
        name: Such as ``q_proj``.
        inputs, outputs: Widths.
        rank: Of its adapter; 0 without one.
        trained: Whether its own weight is trained.
    """

    name: str
    inputs: int
    outputs: int
    rank: int
    trained: bool

    @property
    def weights(self) -> int:
        """Weights of the matrix, without adapter and bias."""
        return self.inputs * self.outputs

    @property
    def adapter(self) -> int:
        """Weights of the adapter's two matrices."""
        return self.rank * (self.inputs + self.outputs)


@dataclass(frozen=True, slots=True)
class Shape:
    """A model of LLaMA-style blocks: RMS norms, grouped attention with rotary positions, a gated MLP.

    Attributes:
        source: Where the config came from.
        parameters: All, by part (``PARTS``); a head that is tied to the embedding is counted there.
        trained: Those of them that are trained.
        product_bytes: Bytes of a number in a matrix product: 2 in bf16, 4 in fp32.
        stream_bytes: Bytes of a number between the blocks: as wide as the embedding's.
        hidden: Width between the blocks.
        intermediate: Width inside the MLP.
        heads, kv_heads, head_width: Of attention.
        vocabulary: Rows of the output head.
        window: Tokens that a token sees at most, itself included; None if all before it.
        layers: The linear layers of each block.
        stream_norms: Numbers of a token that a block's norms between its parts take.
        head_norms: Numbers of a token that a block's norms of queries and keys take; 0 without these.
        norms_trained: Whether the norms' weights are trained.
        first_trained: Index of the first block that the backward pass has to reach.
        embedding_trained, head_trained: Whether these are.
        plain_head: Whether all logits exist at once, because the head is more than a matrix.
        dropout: Whether adapters have dropout, which keeps their products apart.
    """

    source: str
    parameters: dict[str, int]
    trained: dict[str, int]
    product_bytes: int
    stream_bytes: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    window: int | None
    layers: tuple[tuple[Linear, ...], ...]
    stream_norms: int
    head_norms: int
    norms_trained: bool
    first_trained: int
    embedding_trained: bool
    head_trained: bool
    plain_head: bool
    dropout: bool

    @property
    def total(self) -> int:
        """Parameters of the base model, without what the recipe adds."""
        return sum(count for part, count in self.parameters.items() if part not in ("adapter", "new tokens"))

    @property
    def num_trained(self) -> int:
        """Parameters that are trained."""
        return sum(self.trained.values())

    @property
    def num_frozen(self) -> int:
        """Parameters that are not."""
        return sum(self.parameters.values()) - self.num_trained

    @property
    def attention_width(self) -> int:
        """Numbers of all heads' queries for a token."""
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Numbers of all heads' keys for a token."""
        return self.kv_heads * self.head_width

    def linears(self) -> Iterator[Linear]:
        """The linear layers of all blocks."""
        for layer in self.layers:
            yield from layer


def published() -> dict[str, Any]:
    """Configs of well-known models that come with Luthier, by Hub name: ``source`` and ``config``."""
    known: dict[str, Any] = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
    return known


def config_of(settings: Model) -> tuple[PreTrainedConfig, str]:
    """The config of a recipe's model, and where it came from: a local folder, the recipe, the published ones, or the Hub.

    Raises:
        UserError: Nothing of this name is there, or the Hub is out of reach.
    """
    folder = Path(settings.name).expanduser()
    if settings.scratch is not None and not (folder / "config.json").is_file():  # it is not made yet
        return scratch.config_of(settings.scratch.config, settings.scratch.vocab_size), "model.scratch"
    known = {name.lower(): entry for name, entry in published().items()}
    if settings.name.lower() in known and settings.revision is None and not folder.exists():
        entry = known[settings.name.lower()]
        return AutoConfig.for_model(**entry["config"]), entry["source"]
    place = str(folder) if (folder / "config.json").is_file() else resolve(settings)
    try:
        config = AutoConfig.from_pretrained(
            place, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    except UNLOADABLE as error:
        raise UserError(
            f"the model's config cannot be read: {one_line(error)}",
            f"recipe key model.name ({settings.name})",
            f"name a local folder with its config.json, or one that comes with luthier: {', '.join(published())}",
        ) from error
    return config, place if Path(place).is_dir() else f"https://huggingface.co/{place}"


def shape_of(settings: Model, precision: Precision) -> Shape:
    """The shape of a recipe's model in training form.

    Raises:
        UserError: No config, names in the recipe that match nothing, or blocks of another kind than LLaMA's.
    """
    config, source = config_of(settings)
    if settings.rope is not None:
        rope.scale(config, settings.rope)
    model = without_weights(settings, config, precision)
    base = base_model(model)
    text = base.config.get_text_config()  # after room was made for new tokens
    layers: list[list[Linear]] = [[] for _ in range(text.num_hidden_layers)]
    for name, module in base.named_modules():
        kind = name.rpartition(".")[2]
        if (place := _LAYER.search(name)) and kind in (*_ATTENTION, *_MLP):
            layers[int(place[1])].append(_linear(kind, module))
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    parameters, trained = _counts(base)
    kinds = [sorted(linear.name for linear in layer) for layer in layers]
    if "other" in parameters or any(names != sorted((*_ATTENTION, *_MLP)) for names in kinds):
        raise UserError(
            f"{type(base).__name__} is not made of LLaMA-style blocks ({', '.join(_ATTENTION + _MLP)})",
            f"recipe key model.name ({settings.name})",
            "plan for a dense model such as Llama, Mistral or Qwen; the formulae know no other",
        )
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    in_block = [
        (int(place[1]), name, p) for name, p in base.named_parameters() if (place := _LAYER.search(name))
    ]
    last = len(layers) - 1  # of all blocks the one that is frozen last
    norms = [(name, p) for index, name, p in in_block if index == last and _part(name) == "norms"]
    reached = [index for index, _, p in in_block if p.requires_grad]
    embedding_trained = any(p.requires_grad for p in embedding.parameters())
    return Shape(
        source=source,
        parameters=parameters,
        trained=trained,
        product_bytes=2 if precision == "bf16" else 4,
        stream_bytes=next(embedding.parameters()).element_size(),
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=heads,
        kv_heads=text.num_key_value_heads,
        head_width=width,
        vocabulary=text.vocab_size,
        window=getattr(text, "sliding_window", None),
        layers=tuple(map(tuple, layers)),
        stream_norms=sum(p.numel() for name, p in norms if p.numel() == text.hidden_size),
        head_norms=sum(
            width * (heads if "q_norm" in name else text.num_key_value_heads)
            for name, p in norms
            if p.numel() != text.hidden_size
        ),
        norms_trained=any(p.requires_grad for _, p in norms),
        first_trained=0 if embedding_trained else min(reached, default=text.num_hidden_layers),
        embedding_trained=embedding_trained,
        head_trained=head is not None and any(p.requires_grad for p in head.parameters()),
        plain_head=not is_linear(head),
        dropout=settings.adapter is not None and settings.adapter.dropout > 0,
    )


def _linear(name: str, module: Any) -> Linear:
    rank = sum(module.r.values()) if isinstance(module, LoraLayer) else 0
    base: Any = module.get_base_layer() if isinstance(module, LoraLayer) else module
    return Linear(name, base.in_features, base.out_features, rank, base.weight.requires_grad)


def _counts(base: PreTrainedModel) -> tuple[dict[str, int], dict[str, int]]:
    """All parameters and the trained ones by part; tied weights count once."""
    parameters: dict[str, int] = {}
    trained: dict[str, int] = {}
    owned = {
        id(p): part
        for part, module in (
            ("head", base.get_output_embeddings()),
            ("embedding", base.get_input_embeddings()),
        )
        if module is not None
        for p in module.parameters()
    }
    for name, parameter in base.named_parameters():
        part = _part(name) or owned.get(id(parameter), "other")
        parameters[part] = parameters.get(part, 0) + parameter.numel()
        if parameter.requires_grad:
            trained[part] = trained.get(part, 0) + parameter.numel()
    return {part: parameters[part] for part in PARTS if part in parameters}, trained


def _part(name: str) -> str | None:
    words = name.split(".")
    if any(word.startswith("lora_") for word in words):
        return "adapter"
    if any(word.startswith("trainable_tokens_") for word in words):
        return "new tokens"
    if any(word in _ATTENTION for word in words):
        return "attention"
    if any(word in _MLP for word in words):
        return "MLP"
    return "norms" if any(word.endswith("norm") for word in words) else None
