"""The fast way through a model, where the model allows it and a try proves it: packs, fused layers, compiled functions."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.encoding.batches import Batch, collate, micro_batches, pack, pack_groups, padded_length
from luthier.errors import UserError, one_line
from luthier.models import fused, packed
from luthier.models.forward import base_model, decoder_layers, head_is_plain, same_modes, token_scores
from luthier.recipe import TOKENS_AT_ONCE
from luthier.records import Row
from luthier.run_folder import logger

Switch = bool | Literal["auto"]

# A run has to be this long for compiling to earn back its half minute.
LEAST_SECONDS_TO_COMPILE = 180
# Less than this is noise.
LEAST_SPEEDUP = 1.03

# How far a way's losses may be from those in fp32, as a root mean square over tokens: half as far again as the model's
# own way is, whose products in bf16 have three digits; and the last digits of fp32.
MOST_ERROR = 1.5
LAST_DIGITS = 1e-4


@dataclass(frozen=True, slots=True)
class Engine:
    """How a model is computed in training and evaluation; recorded in ``environment.json``. The default is the plain way.

    Attributes:
        packed: Whether rows go one after another in one sequence, without padding.
        why_not_packed: If not, why.
        pad_to_multiple_of: Rows that are not packed are padded to such a number of tokens.
        plain_head: Whether logits come from the model's own forward, because its head does more than one product.
        fused_adapters: LoRA layers computed as one product.
        compiled_layers: Decoder layers that are compiled.
        compile_speedup: Tokens/s with them over tokens/s without, where that was measured.
        micro_batch_tokens: Tokens that go through the model at once, padding included; a longer row goes alone.
        gradient_checkpointing: Whether activations are computed again in the backward pass.
    """

    packed: bool = False
    why_not_packed: str | None = "not tried"
    pad_to_multiple_of: int = 1
    plain_head: bool = True
    fused_adapters: int = 0
    compiled_layers: int = 0
    compile_speedup: float | None = None
    micro_batch_tokens: int = TOKENS_AT_ONCE
    gradient_checkpointing: bool = False

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Some rows as the model gets them."""
        return pack(rows) if self.packed else collate(rows, pad_id=0, multiple=self.pad_to_multiple_of)

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Micro-batches of rows of such lengths, as indices."""
        if self.packed:
            return pack_groups(lengths, self.micro_batch_tokens)
        padded = [padded_length(length, self.pad_to_multiple_of) for length in lengths]
        return micro_batches(padded, self.micro_batch_tokens)

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
        compiling: Whether layers are compiled; ``auto`` is where the run is long enough to earn the time back, and where
            a measurement shows that it helps.
        planned_tokens: Of the whole run, for ``auto``.

    Raises:
        UserError: ``packing`` is wanted, and the model does not allow it.
    """
    base = base_model(model)
    plain_head = not head_is_plain(model, collate(rows[:1], 0).to(base.device))
    engine = Engine(plain_head=plain_head)
    with _adapters_that_count(model):
        judge = _Judge(model, engine, rows)
        why_not = "switched off" if packing is False else _pack(model, engine, judge)
        if why_not and packing is True:
            raise UserError(
                f"rows of this model cannot be packed: {why_not}",
                "recipe key train.packing",
                "train.packing=auto",
            )
        engine = replace(engine, packed=why_not is None, why_not_packed=why_not)
        if why_not:
            longest = getattr(base.config.get_text_config(), "max_position_embeddings", None)
            engine = replace(
                engine,
                pad_to_multiple_of=padding_multiple(
                    base.device, getattr(base, "product_dtype", base.dtype), longest
                ),
            )
        if fusing and (num_fused := fused.fuse_lora(model)):
            if why := judge.objection(engine):
                logger.warning("train: adapters are not computed as one product: %s", why)
                fused.unfuse(model)
            else:
                engine = replace(engine, fused_adapters=num_fused)
        if compiling is True:
            return replace(engine, compiled_layers=fused.compile_layers(model))
        if compiling == "auto":
            return _compile_if_it_pays(model, engine, rows, judge, planned_tokens)
        return engine


@contextmanager
def _adapters_that_count(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Second matrices of new adapters are zeros, under which a wrong product would be as good as a right one: for a while they are not."""
    zeros = [p for name, p in model.named_parameters() if ".lora_B." in name and not p.any()]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)  # of all processes the same
        for p in zeros:
            p.normal_(0, 0.02)
    try:
        yield
    finally:
        for p in zeros:
            p.data.zero_()


def padding_multiple(device: torch.device, dtype: torch.dtype, longest: int | None) -> int:
    """To a multiple of how many tokens it pays to pad rows: 8 where 16-bit products run on a GPU, else 1.

    Args:
        device: Of the model.
        dtype: Of its products.
        longest: Tokens that the model has positions for; one that a multiple of 8 would pass is left alone.

    Source: NVIDIA, "Matrix Multiplication Background User's Guide", section on tensor core requirements: dimensions that
        are multiples of 16 bytes.
    """
    pays = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    return 8 if pays and (longest is None or longest % 8 == 0) else 1


def _pack(model: PreTrainedModel | PeftModel, engine: Engine, judge: _Judge) -> str | None:
    """Switches packing on; why it is not, if it is not."""
    config = base_model(model).config
    why_not = packed.can_pack(base_model(model))
    if why_not is None and config._attn_implementation != "sdpa":
        why_not = f"model.attention is {config._attn_implementation}"
    if why_not is None:
        config._attn_implementation = packed.NAME
        why_not = judge.objection(replace(engine, packed=True))
        if why_not:
            config._attn_implementation = "sdpa"
    return why_not


def _compile_if_it_pays(
    model: PreTrainedModel | PeftModel,
    engine: Engine,
    rows: Sequence[Row],
    judge: _Judge,
    planned_tokens: int,
) -> Engine:
    before = _seconds(model, engine, rows)
    if before * planned_tokens / sum(len(row.input_ids) for row in rows) < LEAST_SECONDS_TO_COMPILE:
        return engine
    num_compiled = fused.compile_layers(model)
    try:
        speedup = round(before / _seconds(model, engine, rows), 3)
        why_not = judge.objection(engine)
    except Exception as error:  # whatever a missing or broken compiler raises
        speedup, why_not = None, one_line(error)
    if why_not is None and speedup is not None and speedup >= LEAST_SPEEDUP:
        return replace(engine, compiled_layers=num_compiled, compile_speedup=speedup)
    if why_not:
        logger.warning("train: layers are not compiled: %s", why_not)
    fused.unfuse(model)
    if engine.fused_adapters:
        fused.fuse_lora(model)
    return replace(engine, compile_speedup=speedup)


def _seconds(model: PreTrainedModel | PeftModel, engine: Engine, rows: Sequence[Row]) -> float:
    """The faster of two forward and backward passes, after one to warm up."""
    times = []
    gradients = {p: p.grad for p in model.parameters()}
    batch = engine.batch(rows).to(base_model(model).device)
    with torch.random.fork_rng(), warnings.catch_warnings():
        # The compiler looks at gradients of inner tensors, which torch warns of.
        warnings.simplefilter("ignore")
        for _ in range(3):
            began = time.perf_counter()
            token_scores(model, batch, plain=engine.plain_head).nll_N.mean().backward()
            if batch.input_ids_BT.is_cuda:
                torch.cuda.synchronize()  # until then it has only been asked for
            times.append(time.perf_counter() - began)
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    return min(times[1:])


def probe_rows(rows: Sequence[Row]) -> list[Row]:
    """The first few rows, of different lengths up to 256 tokens, with a loss on every token that something precedes."""
    return [first_tokens(rows[i], (256, 192, 128, 64)[i]) for i in range(min(len(rows), 4))]


def first_tokens(row: Row, num_tokens: int) -> Row:
    """The start of a row, with a loss on every token that something precedes."""
    part = slice(0, num_tokens)
    weights = np.ones(len(row.input_ids[part]), np.float32)
    weights[0] = 0
    return replace(row, input_ids=row.input_ids[part], loss_weights=weights, span_ids=row.span_ids[part])


@torch.no_grad()
def _losses(model: PreTrainedModel | PeftModel, engine: Engine, rows: Sequence[Row]) -> torch.Tensor:
    """Loss of each trained token of the rows: one at a time, or as one pack."""
    batches = [engine.batch(rows)] if engine.packed else [engine.batch([row]) for row in rows]
    device = base_model(model).device
    with same_modes(model):
        model.eval()
        scores = [token_scores(model, batch.to(device), plain=engine.plain_head) for batch in batches]
    return torch.cat([score.nll_N for score in scores])


class _Judge:
    """Whether other ways through a model are as near to exact losses as its own way is, on a few rows."""

    def __init__(self, model: PreTrainedModel | PeftModel, own: Engine, rows: Sequence[Row]) -> None:
        self._model, self._rows = model, rows
        with _in_fp32(model):
            self._exact_N = _losses(model, own, rows)
        self._own_error = self._error(own)

    def _error(self, engine: Engine) -> float:
        """Root mean square over tokens of the difference to the exact losses, in nats."""
        return float((_losses(self._model, engine, self._rows) - self._exact_N).square().mean().sqrt())

    def objection(self, engine: Engine) -> str | None:
        """What is wrong with the model's losses as it is now; None if nothing is."""
        error = self._error(engine)
        if error <= MOST_ERROR * self._own_error + LAST_DIGITS:
            return None
        return f"losses are {error:.4f} nats off those in fp32, and {self._own_error:.4f} the model's own way"


@contextmanager
def _in_fp32(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """The model computes in fp32 throughout. Weights of one layer at a time are widened, so that large models fit."""
    base = base_model(model)
    ends: tuple[Any, ...] = (base, base.base_model, base.get_output_embeddings())
    parts = [part for part in ends if part is not None]  # a classifier has no output embeddings
    autocast = {part: vars(part).pop("forward") for part in parts if "forward" in vars(part)}
    product_dtype = vars(base).pop("product_dtype", None)
    layers = decoder_layers(base)
    inside = {p for layer in layers for p in layer.parameters()}
    narrow: dict[torch.nn.Parameter, torch.Tensor] = {}

    def widen(parameters: Iterable[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.is_floating_point() and parameter.dtype != torch.float32:
                narrow[parameter] = parameter.data
                parameter.data = parameter.data.float()

    def narrow_again(parameters: Iterable[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter in narrow:
                parameter.data = narrow.pop(parameter)

    hooks = [layer.register_forward_pre_hook(lambda m, _: widen(m.parameters())) for layer in layers]
    hooks += [layer.register_forward_hook(lambda m, *_: narrow_again(m.parameters())) for layer in layers]
    widen(p for p in base.parameters() if p not in inside)
    try:
        yield
    finally:
        narrow_again(list(narrow))
        for hook in hooks:
            hook.remove()
        for module, forward in autocast.items():
            module.forward = forward
        if product_dtype is not None:
            base.product_dtype = product_dtype
