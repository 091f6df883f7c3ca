"""Output head and cross-entropy together, a slice of the tokens at a time: logits of all tokens never exist at once.

Shapes: N trained tokens, D width, V vocabulary, S tokens of a slice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Elements of the logits of one slice: 64 MiB in 32 bits.
MOST_LOGITS = 1 << 24


class _HeadLoss(torch.autograd.Function):
    """Negative log-likelihood of each label under ``softmax(hidden W')``, and the likeliest token."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        nll_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_ND.device)
        best_N = torch.empty_like(labels_N)
        frozen = not ctx.needs_input_grad[1]
        # A token's gradient is its loss's gradient times a vector that is known now: with a frozen head nothing of the
        # logits needs to be kept or computed again.
        unit_ND = torch.empty_like(hidden_ND) if frozen and ctx.needs_input_grad[0] else None
        low_VD = weight_VD.to(dtype)
        for part in _slices(len(labels_N), len(weight_VD)):
            logits_SV = (hidden_ND[part].to(dtype) @ low_VD.t()).float()
            best_N[part] = logits_SV.argmax(dim=-1)
            total_S = logits_SV.logsumexp(dim=-1)
            nll_N[part] = total_S - logits_SV.gather(1, labels_N[part, None])[:, 0]
            if unit_ND is not None:
                unit_ND[part] = _difference(logits_SV, total_S, labels_N[part]).to(dtype) @ low_VD
        ctx.dtype = dtype
        ctx.mark_non_differentiable(best_N)
        ctx.save_for_backward(hidden_ND, weight_VD, labels_N, unit_ND)
        return nll_N, best_N

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
            logits_SV = (hidden_SD @ low_VD.t()).float()
            d_SV = _difference(logits_SV, logits_SV.logsumexp(dim=-1), labels_N[part]) * g_N[part, None]
            d_SV = d_SV.to(ctx.dtype)
            dhidden_ND[part] = (d_SV @ low_VD).to(hidden_ND.dtype)
            dweight_VD += d_SV.t() @ hidden_SD
        return dhidden_ND, dweight_VD.to(weight_VD.dtype), None, None


def _difference(logits_SV: Tensor, total_S: Tensor, labels_S: Tensor) -> Tensor:
    """Probabilities minus the one-hot label, in the place of the logits."""
    d_SV = logits_SV.sub_(total_S[:, None]).exp_()
    d_SV[torch.arange(len(labels_S), device=labels_S.device), labels_S] -= 1
    return d_SV


def _slices(count: int, vocabulary: int) -> list[slice]:
    size = max(1, MOST_LOGITS // vocabulary)
    return [slice(start, start + size) for start in range(0, count, size)]


def is_linear(head: nn.Module | None) -> bool:
    """Whether the head is a mere matrix, without bias or adapter, so that it can go together with the loss."""
    return type(head) is nn.Linear and head.bias is None


def head_loss(
    hidden_ND: Tensor, head: nn.Module, labels_N: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Loss of each trained token, and the token that the model thinks likeliest.

    Args:
        hidden_ND: Last hidden states.
        head: The output head; ``is_linear``.
        labels_N: Token ids, int64.
        dtype: Of the matrix products.

    Returns:
        Negative log-likelihood in nats, fp32, shape (N,), with its gradient graph; and int64, shape (N,).
    """
    found: tuple[Tensor, Tensor] = _HeadLoss.apply(hidden_ND, head.weight, labels_N, dtype)  # type: ignore[no-untyped-call]
    return found
