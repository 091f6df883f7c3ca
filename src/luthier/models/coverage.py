"""What of a model is trained, layer by layer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Coverage:
    """What of all layers of one name is trained.

    Attributes:
        name: Last part of the layers' names, such as ``q_proj``.
        trained_layers, layers: How many of them have anything that is trained, and how many there are.
        trained: Parameters that are trained, the adapter's own included.
        total: Parameters of the layers themselves, without an adapter's.
    """

    name: str
    trained_layers: int
    layers: int
    trained: int
    total: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.trained_layers} of {self.layers} layers, "
            f"{self.trained:,} trained parameters for {self.total:,} weights"
        )


def coverage(model: PreTrainedModel | PeftModel) -> list[Coverage]:
    """One line for each name of a layer, and a last one (``all``) for the whole model; tied weights count once."""
    layers: dict[str, dict[str, list[int]]] = {}
    for name, parameter in model.named_parameters():
        adapters = re.search(r"\.(lora_|trainable_tokens_|modules_to_save\.)", name)
        layer = name[: adapters.start()] if adapters else name.rpartition(".")[0]
        layer = re.sub(r"(\.(base_layer|token_adapter|original_module))+$", "", layer)  # peft's wrappers
        sums = layers.setdefault(layer.rpartition(".")[2], {}).setdefault(layer, [0, 0])
        sums[0] += parameter.numel() if parameter.requires_grad else 0
        sums[1] += 0 if adapters else _num_weights(parameter)
    rows = [
        Coverage(
            name, sum(t > 0 for t, _ in sums.values()), len(sums), *map(sum, zip(*sums.values(), strict=True))
        )
        for name, sums in sorted(layers.items())
    ]
    sums = [
        sum(getattr(row, key) for row in rows) for key in ("trained_layers", "layers", "trained", "total")
    ]
    return [*rows, Coverage("all", *sums)]


def _num_weights(parameter: Tensor) -> int:
    """Weights that a parameter stands for; of those in 4 bits a byte holds two."""
    quantised = getattr(parameter, "quant_state", None)
    return quantised.shape.numel() if quantised is not None else parameter.numel()
