"""The fast way through a model, where the model allows it and a try proves it: packs, fused layers, compiled functions."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.encoding.batches import Batch, collate, micro_batches, pack, pack_groups
from luthier.errors import UserError
from luthier.models import fused, packed
from luthier.models.forward import base_model, head_is_plain, same_modes, token_scores
from luthier.records import Row
from luthier.run_folder import logger

Switch = bool | Literal["auto"]

# Operations from which compiling earns its ten seconds back: it saves a quarter of the time of a run of 1e11 to 1e12 a
# second, as on processors and small GPUs.
LEAST_WORK_TO_COMPILE = 2e13
# Less than this is noise.
LEAST_SPEEDUP = 1.03

# Losses of a token on the two ways: the last digits in fp32; in bf16 products have three digits.
MOST_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass(frozen=True, slots=True)
class Engine:
    """How a model is computed in training and evaluation; recorded in ``environment.json``. The default is the plain way.

    Attributes:
        packed: Whether rows go one after another in one sequence, without padding.
        why_not_packed: If not, why.
        plain_head: Whether logits come from the model's own forward, because its head does more than one product.
        fused_adapters: LoRA layers computed as one product.
        compiled_layers: Norms and gates that are compiled.
        compile_speedup: Tokens/s with them over tokens/s without, where that was measured.
    """

    packed: bool = False
    why_not_packed: str | None = "not tried"
    plain_head: bool = True
    fused_adapters: int = 0
    compiled_layers: int = 0
    compile_speedup: float | None = None

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Some rows as the model gets them."""
        return pack(rows) if self.packed else collate(rows, pad_id=0)

    def groups(self, lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
        """Micro-batches of rows of such lengths, each within ``max_tokens``, as indices."""
        return pack_groups(lengths, max_tokens) if self.packed else micro_batches(lengths, max_tokens)

    def to_dict(self) -> dict[str, Any]:
        """For ``environment.json``."""
        return asdict(self)


def start(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[Row],
    *,
    packing: Switch = "auto",
    fusing: bool = True,
    compiling: Switch = "auto",
    planned_tokens: int = 0,
) -> Engine:
    """Sets a model up for the fastest way that gives its own losses, tried on a few rows.

    Args:
        model: In training form.
        rows: A few real rows, short.
        packing: Whether rows are packed; ``auto`` is wherever the model allows it.
        fusing: Whether LoRA layers are computed as one product, where they can be.
        compiling: Whether norms and gates are compiled; ``auto`` is where the run is long enough to earn the time back,
            and where a measurement shows that it helps.
        planned_tokens: Of the whole run, for ``auto``.

    Raises:
        UserError: ``packing`` is wanted, and the model does not allow it.
    """
    base = base_model(model)
    plain_head = not head_is_plain(model, collate(rows[:1], 0).to(base.device))
    engine = Engine(plain_head=plain_head)
    own = _losses(model, engine, rows)
    why_not = "switched off" if packing is False else _pack(model, engine, rows, own)
    if why_not and packing is True:
        raise UserError(
            f"rows of this model cannot be packed: {why_not}",
            "recipe key train.packing",
            "train.packing=auto",
        )
    engine = replace(engine, packed=why_not is None, why_not_packed=why_not)
    if fusing and (num_fused := fused.fuse_lora(model)):
        if why := _difference(own, _losses(model, engine, rows), model):
            logger.warning("train: adapters are not computed as one product: %s", why)
            fused.unfuse(model)
        else:
            engine = replace(engine, fused_adapters=num_fused)
    if compiling is True:
        return replace(engine, compiled_layers=fused.fuse_elementwise(model))
    if compiling == "auto" and 6 * base.num_parameters() * planned_tokens >= LEAST_WORK_TO_COMPILE:
        return _compile_if_it_pays(model, engine, rows)
    return engine


def _pack(
    model: PreTrainedModel | PeftModel, engine: Engine, rows: Sequence[Row], own: torch.Tensor
) -> str | None:
    """Switches packing on; why it is not, if it is not."""
    config = base_model(model).config
    why_not = packed.can_pack(base_model(model))
    if why_not is None and config._attn_implementation != "sdpa":
        why_not = f"model.attention is {config._attn_implementation}"
    if why_not is None:
        config._attn_implementation = packed.NAME
        why_not = _difference(own, _losses(model, replace(engine, packed=True), rows), model)
        if why_not:
            config._attn_implementation = "sdpa"
    return why_not


def _compile_if_it_pays(model: PreTrainedModel | PeftModel, engine: Engine, rows: Sequence[Row]) -> Engine:
    before = _seconds(model, engine, rows)
    num_compiled = fused.fuse_elementwise(model)
    if not num_compiled:
        return engine
    speedup = round(before / _seconds(model, engine, rows), 3)
    if speedup >= LEAST_SPEEDUP:
        return replace(engine, compiled_layers=num_compiled, compile_speedup=speedup)
    fused.unfuse(model)
    if engine.fused_adapters:
        fused.fuse_lora(model)
    return replace(engine, compile_speedup=speedup)


def _seconds(model: PreTrainedModel | PeftModel, engine: Engine, rows: Sequence[Row]) -> float:
    """The faster of two forward and backward passes, after one to warm up."""
    times = []
    gradients = {p: p.grad for p in model.parameters()}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the compiler looks at gradients of inner tensors, which torch warns of
        for _ in range(3):
            began = time.perf_counter()
            batch = engine.batch(rows).to(base_model(model).device)
            token_scores(model, batch, plain=engine.plain_head).nll_N.mean().backward()
            times.append(time.perf_counter() - began)
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    return min(times[1:])


def probe_rows(rows: Sequence[Row]) -> list[Row]:
    """The first few rows, of different lengths up to 256 tokens, with a loss on every token that something precedes."""
    found = []
    for index in range(min(len(rows), 4)):
        row = rows[index]
        part = slice(0, (256, 192, 128, 64)[index])
        weights = np.ones(len(row.input_ids[part]), np.float32)
        weights[0] = 0
        found.append(
            replace(row, input_ids=row.input_ids[part], loss_weights=weights, span_ids=row.span_ids[part])
        )
    return found


@torch.no_grad()
def _losses(model: PreTrainedModel | PeftModel, engine: Engine, rows: Sequence[Row]) -> torch.Tensor:
    """Loss of each trained token of the rows: one at a time, or as one pack."""
    batches = [engine.batch(rows)] if engine.packed else [engine.batch([row]) for row in rows]
    device = base_model(model).device
    with same_modes(model):
        model.eval()
        scores = [token_scores(model, batch.to(device), plain=engine.plain_head) for batch in batches]
    return torch.cat([score.nll_N for score in scores])


def _difference(own: torch.Tensor, other: torch.Tensor, model: PreTrainedModel | PeftModel) -> str | None:
    """What is wrong with losses of another way; None if they agree."""
    low = getattr(base_model(model), "product_dtype", base_model(model).dtype)
    most = float((own - other).abs().max())
    limit = MOST_DIFFERENCE.get(low, MOST_DIFFERENCE[torch.bfloat16])
    if math.isfinite(most) and most <= limit:
        return None
    return f"a token's loss differs by {most:.4f} nats from the model's own, over {limit}"
