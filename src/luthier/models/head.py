"""Output head and cross-entropy together, a slice of the tokens at a time: logits of all tokens never exist at once.

Shapes: N trained tokens, D width, V vocabulary, S tokens of a slice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from luthier.models.compiled import compiled

# Elements of the logits of one slice: 64 MiB in 32 bits.
MOST_LOGITS = 1 << 24


class _HeadLoss(torch.autograd.Function):
    """Negative log-likelihood of each label under ``softmax(hidden W')``."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, dtype: torch.dtype
    ) -> Tensor:
        nll_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_ND.device)
        # A token's gradient is its loss's gradient times a vector that is known now: with a frozen head nothing of the
        # logits needs to be kept or computed again.
        unit_ND = None if ctx.needs_input_grad[1] else torch.empty_like(hidden_ND)
        low_VD = weight_VD.to(dtype)
        for part in _slices(len(labels_N), len(weight_VD)):
            logits_SV = hidden_ND[part].to(dtype) @ low_VD.t()
            nll_N[part], total_S = _nll(logits_SV, labels_N[part])
            if unit_ND is not None:
                unit_ND[part] = _gradient(logits_SV, total_S, labels_N[part]) @ low_VD
        ctx.dtype = dtype
        ctx.save_for_backward(hidden_ND, weight_VD, labels_N, unit_ND)
        return nll_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        g_N = gradients[0]
        hidden_ND, weight_VD, labels_N, unit_ND = ctx.saved_tensors
        if unit_ND is not None:
            return (unit_ND * g_N[:, None]).to(hidden_ND.dtype), None, None, None
        dhidden_ND = torch.empty_like(hidden_ND)
        dweight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        low_VD = weight_VD.to(ctx.dtype)
        for part in _slices(len(labels_N), len(weight_VD)):
            hidden_SD = hidden_ND[part].to(ctx.dtype)
            logits_SV = hidden_SD @ low_VD.t()
            _, total_S = _nll(logits_SV, labels_N[part])
            d_SV = _gradient(logits_SV, total_S, labels_N[part])
            dhidden_ND[part] = ((d_SV @ low_VD) * g_N[part, None]).to(hidden_ND.dtype)
            dweight_VD += d_SV.t() @ (hidden_SD * g_N[part, None]).to(ctx.dtype)
        return dhidden_ND, dweight_VD.to(weight_VD.dtype), None, None


@compiled
def _nll(logits_SV: Tensor, labels_S: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each label, and the logarithm of the sum that a row is divided by; fp32."""
    wide_SV = logits_SV.float()
    total_S = wide_SV.logsumexp(dim=-1)
    return total_S - wide_SV.gather(1, labels_S[:, None])[:, 0], total_S


@compiled
def _gradient(logits_SV: Tensor, total_S: Tensor, labels_S: Tensor) -> Tensor:
    """Probabilities minus the one-hot label."""
    probabilities_SV = (logits_SV.float() - total_S[:, None]).exp()
    tokens_V = torch.arange(logits_SV.shape[1], device=logits_SV.device)
    return (probabilities_SV - (tokens_V == labels_S[:, None]).float()).to(logits_SV.dtype)


def _slices(count: int, vocabulary: int) -> list[slice]:
    size = max(1, MOST_LOGITS // vocabulary)
    return [slice(start, start + size) for start in range(0, count, size)]


def is_linear(head: nn.Module | None) -> bool:
    """Whether the head is a mere matrix, without bias or adapter, so that it can go together with the loss."""
    return type(head) is nn.Linear and head.bias is None


def head_loss(
    hidden_ND: Tensor, head: nn.Module, labels_N: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Loss of each trained token; and without a gradient, the token that the model thinks likeliest.

    Args:
        hidden_ND: Last hidden states.
        head: The output head; ``is_linear``.
        labels_N: Token ids, int64.
        dtype: Of the matrix products.

    Returns:
        Negative log-likelihood in nats, fp32, shape (N,), with its gradient graph; and int64, shape (N,), or None.
    """
    weight: Any = head.weight
    if torch.is_grad_enabled():
        found: Tensor = _HeadLoss.apply(hidden_ND, weight, labels_N, dtype)  # type: ignore[no-untyped-call]
        return found, None
    nll_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_ND.device)
    best_N = torch.empty_like(labels_N)
    low_VD = weight.to(dtype)
    for part in _slices(len(labels_N), len(weight)):
        logits_SV = hidden_ND[part].to(dtype) @ low_VD.t()
        nll_N[part], _ = _nll(logits_SV, labels_N[part])
        best_N[part] = logits_SV.argmax(dim=-1)
    return nll_N, best_N
