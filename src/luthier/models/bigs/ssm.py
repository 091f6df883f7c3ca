"""A diagonal state-space model that all channels share: as a convolution, and as a recurrence from any state.

Shapes: B rows, L tokens, D channels, N complex states of a channel, T times of a table. A state is kept as real numbers,
real parts before imaginary ones: (B, 2N, D).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

# Smallest and largest first step size, and the slowest decay.
STEP_RANGE = (0.01, 1.0)
LARGEST_REAL = -1e-4


class DiagonalSSM(nn.Module):
    """``s_k = e^(dA) s_(k-1) + (e^(dA) - 1) / A u_k``, ``y_k = Re(C s_k) + D u_k``, in fp32 (fp64 for fp64).

    One A and C of N complex numbers and one step size d and D for all channels. As a convolution with the kernel
    ``K_l = Re sum_n C_n (e^(dA_n) - 1) / A_n e^(l d A_n)``.

    Source: Gu et al. 2022, arXiv:2206.11893 (S4D, zero-order hold); Wang et al. 2022, arXiv:2212.10544, section 3.
    """

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.a_real = nn.Parameter(torch.empty(num_states))
        self.a_imag = nn.Parameter(torch.empty(num_states))
        self.c = nn.Parameter(torch.empty(num_states, 2))
        self.d = nn.Parameter(torch.empty(1))
        self.log_step = nn.Parameter(torch.empty(1))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Marks A and the step size for the optimizer, whenever one is put in: a tenth of the learning rate, no decay."""
        if param is not None and name in ("a_real", "a_imag", "log_step"):
            param._optim = {"lr_scale": 0.1, "weight_decay": 0.0}  # type: ignore[attr-defined]
        super().register_parameter(name, param)

    @torch.compiler.disable  # type: ignore[untyped-decorator] # which knows no complex numbers
    def forward(
        self, u_BLD: Tensor, state: Tensor | None = None, *, keep: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs of some more tokens.

        Args:
            u_BLD: Inputs.
            state: After the tokens before; zero if None.
            keep: Whether the state is wanted.

        Returns:
            Outputs as the inputs, in at least fp32; and the state after the last token, if it is kept.
        """
        with torch.autocast(u_BLD.device.type, enabled=False):
            return self._run(u_BLD.to(torch.promote_types(u_BLD.dtype, torch.float32)), state, keep)

    def _run(self, u_BLD: Tensor, state: Tensor | None, keep: bool) -> tuple[Tensor, Tensor | None]:
        length = u_BLD.shape[1]
        exponents_N, weights_N = self._discrete()
        kernel_L = self._kernel(exponents_N, weights_N, length).to(u_BLD.dtype)
        y_BLD: Tensor = _Convolution.apply(u_BLD, kernel_L)  # type: ignore[no-untyped-call]
        y_BLD = torch.addcmul(y_BLD, u_BLD, self.d.to(u_BLD.dtype))
        if state is not None:
            later = weights_N * _powers(exponents_N, torch.arange(1, length + 1, device=u_BLD.device))
            y_BLD = y_BLD + torch.cat([later.real, -later.imag], dim=1).to(u_BLD.dtype) @ state
        if not keep:
            return y_BLD, None
        left_LN = _powers(exponents_N, torch.arange(length - 1, -1, -1, device=u_BLD.device))
        last = torch.cat([left_LN.real, left_LN.imag], dim=1).to(u_BLD.dtype).mT @ u_BLD
        if state is not None:
            factor_N1 = (exponents_N * length).exp()[:, None]
            real, imag = state.chunk(2, dim=1)
            a, b = factor_N1.real.to(u_BLD.dtype), factor_N1.imag.to(u_BLD.dtype)
            last = last + torch.cat([a * real - b * imag, a * imag + b * real], dim=1)
        return y_BLD, last

    def kernel(self, length: int) -> Tensor:
        """The first weights of the convolution, fp64, shape (L,)."""
        return self._kernel(*self._discrete(), length)

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """``dA`` and ``C (e^(dA) - 1) / A`` in fp64: angles of late tokens are large, and lose their digits in fp32."""
        a_N = torch.complex(self.a_real.double().clamp(max=LARGEST_REAL), self.a_imag.double())
        exponents_N = a_N * self.log_step.double().exp()
        return exponents_N, torch.view_as_complex(self.c.double()) * (exponents_N.exp() - 1) / a_N

    @staticmethod
    def _kernel(exponents_N: Tensor, weights_N: Tensor, length: int) -> Tensor:
        """Powers as products of two short tables: of every T-th token, and of the T tokens behind it."""
        span = math.isqrt(max(length - 1, 0)) + 1
        steps = torch.arange(span, device=exponents_N.device)
        far = weights_N * _powers(exponents_N, steps * span)
        kernel_L: Tensor = (far @ _powers(exponents_N, steps).mT).real.flatten()[:length]
        return kernel_L


def _powers(exponents_N: Tensor, times_T: Tensor) -> Tensor:
    return (exponents_N * times_T[:, None]).exp()


class _Convolution(torch.autograd.Function):
    """``y_l = sum_(k <= l) K_k u_(l - k)`` by FFT of at least twice the length, so that nothing comes round from the end."""

    @staticmethod
    def forward(ctx: Any, u_BLD: Tensor, kernel_L: Tensor) -> Tensor:
        ctx.save_for_backward(u_BLD, kernel_L)
        length = u_BLD.shape[1]
        size = _fft_size(2 * length)
        spectrum = torch.fft.rfft(u_BLD.mT, size).mul_(torch.fft.rfft(kernel_L, size))
        y_BLD: Tensor = torch.fft.irfft(spectrum, size)[..., :length].mT.contiguous()
        return y_BLD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        u_BLD, kernel_L = ctx.saved_tensors
        length = u_BLD.shape[1]
        size = _fft_size(2 * length)
        dy = torch.fft.rfft(gradients[0].mT, size)
        dkernel = du = None
        if ctx.needs_input_grad[1]:
            u = torch.fft.rfft(u_BLD.mT, size)
            dkernel = torch.fft.irfft((u.conj() * dy).sum(dim=(0, 1)), size)[:length]
        if ctx.needs_input_grad[0]:
            dy.mul_(torch.fft.rfft(kernel_L, size).conj())
            du = torch.fft.irfft(dy, size)[..., :length].mT.contiguous()
        return du, dkernel


def _fft_size(least: int) -> int:
    """The least power of two, or three times one, which are the quick ones."""
    power = 1 << max(1, (least - 1).bit_length())
    return 3 * power // 4 if 3 * power // 4 >= least else power


def hippo(num_states: int) -> Tensor:
    """Imaginary parts of the eigenvalues of the normal part of HiPPO-LegS, whose real parts are all -1/2; fp32, ascending.

    Source: Gu et al. 2022, arXiv:2111.00396, theorem 1 and appendix C.1 (normal plus low rank).
    """
    root = (2 * torch.arange(num_states, dtype=torch.float64, device="cpu") + 1).sqrt()
    half = torch.tril(root[:, None] * root / 2, diagonal=-1)
    angles_N: Tensor = torch.linalg.eigvalsh(1j * (half - half.mT)).float()
    return angles_N
