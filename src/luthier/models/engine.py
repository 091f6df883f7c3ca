"""The fast way through a model, where the model allows it and a try proves it: packs, fused layers, compiled functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.encoding.batches import Batch, collate, pack
from luthier.models import fused, packed
from luthier.models.forward import base_model, head_is_plain, token_scores
from luthier.records import Row
from luthier.run_folder import logger

# Losses of a token on the two ways: the last digits in fp32; in bf16 products have three digits.
MOST_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass(frozen=True, slots=True)
class Engine:
    """How a model is computed in training and evaluation; recorded in ``environment.json``.

    Attributes:
        packed: Whether rows go one after another in one sequence, without padding.
        why_not_packed: If not, why.
        plain_head: Whether logits come from the model's own forward, because its head does more than one product.
        fused_adapters: LoRA layers computed as one product.
        compiled_layers: Norms and gates that are compiled.
    """

    packed: bool
    why_not_packed: str | None
    plain_head: bool
    fused_adapters: int
    compiled_layers: int

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Some rows as the model gets them."""
        return pack(rows) if self.packed else collate(rows, pad_id=0)

    def to_dict(self) -> dict[str, Any]:
        """For ``environment.json``."""
        return asdict(self)


def start(
    model: PreTrainedModel | PeftModel, rows: Sequence[Row], *, packing: bool, fusing: bool, compiling: bool
) -> Engine:
    """Sets a model up for the fastest way that gives its own losses, tried on a few rows.

    Args:
        model: In training form.
        rows: A few real rows, short.
        packing: Whether to try packs.
        fusing: Whether to try LoRA as one product.
        compiling: Whether to compile norms and gates.
    """
    base = base_model(model)
    device = base.device
    plain_head = not head_is_plain(model, collate(rows[:1], 0).to(device))
    own = _losses(model, [collate([row], 0).to(device) for row in rows], plain_head)
    why_not = "switched off" if not packing else packed.can_pack(base)
    attention = base.config._attn_implementation
    if why_not is None and attention != "sdpa":
        why_not = f"model.attention is {attention}"
    if why_not is None:
        base.config._attn_implementation = packed.NAME
        why_not = _difference(own, _losses(model, [pack(rows).to(device)], plain_head), model)
        if why_not:
            base.config._attn_implementation = attention
    one_by_one = [collate([row], 0).to(device) for row in rows]
    num_fused = num_compiled = 0
    if fusing:
        num_fused = fused.fuse_lora(model)
        why = _difference(own, _losses(model, one_by_one, plain_head), model)
        if why:
            logger.warning("train: adapters are not fused: %s", why)
            fused.unfuse(model)
            num_fused = 0
    if compiling:
        num_compiled = fused.fuse_elementwise(model)
    return Engine(why_not is None, why_not, plain_head, num_fused, num_compiled)


@torch.no_grad()
def _losses(model: PreTrainedModel | PeftModel, batches: Sequence[Batch], plain: bool) -> torch.Tensor:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    losses = torch.cat([token_scores(model, batch, plain=plain).nll_N for batch in batches])
    for module, mode in modes.items():
        module.training = mode
    return losses


def _difference(own: torch.Tensor, other: torch.Tensor, model: PreTrainedModel | PeftModel) -> str | None:
    """What is wrong with losses of another way; None if they agree."""
    low = getattr(base_model(model), "product_dtype", base_model(model).dtype)
    most = float((own - other).abs().max())
    limit = MOST_DIFFERENCE.get(low, MOST_DIFFERENCE[torch.bfloat16])
    if math.isfinite(most) and most <= limit:
        return None
    return f"a token's loss differs by {most:.4f} nats from the model's own, over {limit}"
