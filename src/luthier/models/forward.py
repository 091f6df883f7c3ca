"""What a model says of a batch's trained tokens: the one forward pass of training, checking and evaluation.

Shapes: B rows, T tokens, N trained tokens of the batch, D width, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, PreTrainedModel

from luthier.encoding.batches import Batch
from luthier.models import packed
from luthier.models.classifier import class_logits, class_nll, class_targets, head_of, predicted
from luthier.models.head import head_loss, is_linear


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores of the trained tokens of a batch.

    Attributes:
        nll_N: Negative log-likelihood in nats, fp32, with its gradient graph.
        weights_N: Loss weights.
        rows_N: Index of each token's row in the batch.
        labels_N: The tokens; of a model that labels rows the classes, one for each row.
        likeliest_N: The most likely tokens or classes; None with a gradient, since training has no use for them.
    """

    nll_N: Tensor
    weights_N: Tensor
    rows_N: Tensor
    labels_N: Tensor
    likeliest_N: Tensor | None

    @property
    def best_N(self) -> Tensor:
        """The most likely tokens."""
        if self.likeliest_N is None:
            raise RuntimeError("the most likely tokens are only known under torch.no_grad()")
        return self.likeliest_N

    @property
    def correct_N(self) -> Tensor:
        """Whether the most likely token is the token."""
        return self.best_N == self.labels_N

    def weighted_sum(self) -> Tensor:
        """Sum of weight x negative log-likelihood: what a step adds up before it divides once."""
        return (self.nll_N * self.weights_N).sum()


def token_scores(
    model: PreTrainedModel | PeftModel, batch: Batch, *, plain: bool = False, cache: Cache | None = None
) -> TokenScores:
    """Scores of all trained tokens of a batch; logits exist only where a token is trained.

    Args:
        model: A causal language model, with or without an adapter.
        batch: On the model's device.
        plain: Go through the model's own forward and cut out the logits afterwards: slower, and the reference for
            models whose head does more than one matrix product (see ``head_is_plain``).
        cache: An empty one, to be filled with the batch's keys and values.
    """
    base = base_model(model)
    sharded: Callable[..., tuple[Any, ...]] | None = vars(base).get("sharded_scores")
    if sharded is None:
        return own_scores(model, batch, plain=plain, cache=cache)
    # Weights in shards are gathered by a call of the model (peft passes that by), or by an entry of their own.
    if plain:
        return own_scores(base, batch, plain=True, cache=cache)
    return TokenScores(*sharded(batch, cache))


def own_scores(
    model: PreTrainedModel | PeftModel, batch: Batch, *, plain: bool, cache: Cache | None
) -> TokenScores:
    """``token_scores`` of a model whose weights are all here."""
    if head_of(base_model(model)) is not None:
        return _row_scores(base_model(model), batch, cache)
    targets_BS = batch.loss_weights_BT[:, 1:] != 0
    labels_N = batch.input_ids_BT[:, 1:][targets_BS]
    base = base_model(model)
    head = base.get_output_embeddings()
    if plain or not is_linear(head):
        if plain:
            logits_NV = model(**forward_inputs(base, batch, cache)).logits[:, :-1][targets_BS].float()
        else:
            logits_NV = head(_hidden(base, batch, cache)[targets_BS]).float()
        best_N = None if torch.is_grad_enabled() else logits_NV.argmax(dim=-1)
        nll_N = functional.cross_entropy(logits_NV, labels_N, reduction="none")
    else:
        dtype = getattr(base, "product_dtype", head.weight.dtype)
        nll_N, best_N = head_loss(_hidden(base, batch, cache)[targets_BS], head, labels_N, dtype)
    return TokenScores(
        nll_N=nll_N,
        weights_N=batch.loss_weights_BT[:, 1:][targets_BS],
        rows_N=_rows(batch)[:, 1:][targets_BS],
        labels_N=labels_N,
        likeliest_N=best_N,
    )


def _row_scores(base: PreTrainedModel, batch: Batch, cache: Cache | None) -> TokenScores:
    """Scores of a model whose head labels rows: of each token with a weight, against the label of its row."""
    head, read_BT = head_of(base), batch.loss_weights_BT != 0
    assert head is not None
    rows_N = _rows(batch)[read_BT]
    logits_NC = own_row_logits(base, batch, cache)
    targets = class_targets(head, batch.labels, rows_N.device)[rows_N]
    best_N, labels_N = predicted(logits_NC, targets, head)
    return TokenScores(
        nll_N=class_nll(logits_NC, targets, head),
        weights_N=batch.loss_weights_BT[read_BT],
        rows_N=rows_N,
        labels_N=labels_N,
        likeliest_N=None if torch.is_grad_enabled() else best_N,
    )


def row_logits(base: PreTrainedModel, batch: Batch) -> Tensor:
    """What the head for classes says at each token with a weight: fp32, shape (N, C); rows in the batch's order."""
    sharded: Callable[..., Tensor] | None = vars(base).get("sharded_row_logits")
    return own_row_logits(base, batch, None) if sharded is None else sharded(batch, None)


def own_row_logits(base: PreTrainedModel, batch: Batch, cache: Cache | None) -> Tensor:
    """``row_logits`` of a model whose weights are all here."""
    hidden_BTD = base.base_model(**forward_inputs(base.base_model, batch, cache)).last_hidden_state
    return class_logits(base, hidden_BTD[batch.loss_weights_BT != 0])


def _rows(batch: Batch) -> Tensor:
    """Index of each token's row, int64, shape (B, T)."""
    shape, device = batch.input_ids_BT.shape, batch.input_ids_BT.device
    if not batch.row_lengths:
        return torch.arange(shape[0], device=device)[:, None].expand(shape)
    lengths = torch.tensor(batch.row_lengths)
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)[None]


def _hidden(base: PreTrainedModel, batch: Batch, cache: Cache | None) -> Tensor:
    """Last hidden states of all tokens but the last, each of which predicts the next token, shape (B, T - 1, D)."""
    hidden_BTD: Tensor = base.base_model(**forward_inputs(base.base_model, batch, cache)).last_hidden_state
    return hidden_BTD[:, :-1]


def base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model inside, whose layers hold the adapter's, if there is one."""
    if not isinstance(model, PeftModel):
        return model
    inner: PreTrainedModel = model.get_base_model()  # type: ignore[assignment] # typed as any module
    return inner


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder's layers: of a model's lists of modules the one that holds the most parameters; none if it has no list."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return list(max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()), default=[]))


@contextmanager
def same_modes(model: torch.nn.Module) -> Iterator[None]:
    """Every module is in its former mode afterwards: parts of a model may be kept in evaluation mode on purpose.

    On processors with AVX-512 bf16 bitsandbytes (0.50) repacks 4-bit weights for good at the first pass in evaluation mode,
    for a product that has no gradients: it does not inside of this.
    """
    modes = {module: module.training for module in model.modules()}
    repacking: list[Any] = [m for m in modes if getattr(m, "support_avx512bf16_for_cpu", False)]
    try:
        for module in repacking:
            module.support_avx512bf16_for_cpu = False
        yield
    finally:
        for module in repacking:
            module.support_avx512bf16_for_cpu = True
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def head_is_plain(model: PreTrainedModel | PeftModel, batch: Batch) -> bool:
    """Whether the output head is one matrix product (no soft-capping or scaling), by comparing both ways.

    A head for classes is one by the way that it is made.
    """
    if head_of(base_model(model)) is not None:
        return True
    with same_modes(model):
        model.eval()
        fast, own = token_scores(model, batch), token_scores(model, batch, plain=True)
    return torch.allclose(fast.nll_N, own.nll_N, rtol=1e-2, atol=1e-2)


def name_of_cache(model: torch.nn.Module) -> str:
    """What the model's forward calls its cache: transformers' Mamba has another name for it than all others."""
    return (
        "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else "past_key_values"
    )


def forward_inputs(model: torch.nn.Module, batch: Batch, cache: Cache | None) -> dict[str, Any]:
    """What a model or its decoder is called with for a batch."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids_BT, "use_cache": cache is not None}
    if cache is not None:
        inputs[name_of_cache(model)] = cache
    # Behind the rows padding needs no mask: a causal model never looks ahead, and attention is faster without.
    if batch.left_padded:
        inputs["attention_mask"] = batch.attention_mask_BT
    if batch.row_lengths:
        inputs |= packed.inputs(batch.row_lengths, batch.input_ids_BT.device)
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = batch.position_ids_BT
    return inputs
