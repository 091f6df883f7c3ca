"""Recurrences of Mamba and Mamba-2 over whole sequences, without a graph of one node a token.

States of a chunk of tokens are computed in buffers that stay in the processor's cache; backward keeps the states at
the chunks' beginnings and computes the others again. Everything is in fp32, or in fp64 where the input is.

Shapes: B rows, L tokens, T tokens of a chunk, D channels, N states of a channel, H heads, P channels of a head, G groups
of heads with the same inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# States of a chunk (T x rows x N x D): a megabyte in 32 bits for each of four buffers.
CHUNK_STATES = 1 << 18
# States of a token that are computed at once: of a larger batch, some rows after others.
STEP_STATES = 1 << 16
MIN_CHUNK, MAX_CHUNK = 8, 64
# Tokens of a chunk in the matrix form: twice as many cost twice the elements, half as many make products too small.
MATRIX_CHUNK = 64
# Added to the logarithm of a decay it makes the decay zero, and leaves no infinities to subtract from each other.
FORGET = -1e4

# Products are in the inputs' own format under autocast too.
_exact_forward = torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
_exact_backward = torch.amp.custom_bwd(device_type="cpu")


@torch.compiler.disable  # type: ignore[untyped-decorator] # its loops would be written out
def selective_scan(
    u_BLD: Tensor,
    step_BLD: Tensor,
    a_DN: Tensor,
    b_BLN: Tensor,
    c_BLN: Tensor,
    state_BDN: Tensor | None = None,
    starts_BL: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence of Mamba: ``h_t = exp(step_t A) h_(t-1) + step_t u_t B_t``, ``y_t = C_t h_t``.

    Args:
        u_BLD: Inputs.
        step_BLD: Step sizes, positive.
        a_DN: Negative.
        b_BLN: Input vectors.
        c_BLN: Output vectors.
        state_BDN: State before the first token; zero if None. It gets no gradient.
        starts_BL: True where a row of a pack begins, before which the state is forgotten.

    Returns:
        Outputs, shape (B, L, D); and the state after the last token, shape (B, D, N), without a gradient.

    Source: Gu and Dao 2023, arXiv:2312.00752, algorithm 2, with the discretisation of its code (eq. 4 for A, step x B).
    """
    found: tuple[Tensor, Tensor] = _SelectiveScan.apply(  # type: ignore[no-untyped-call]
        u_BLD, step_BLD, a_DN, b_BLN, c_BLN, state_BDN, starts_BL
    )
    return found


class _SelectiveScan(torch.autograd.Function):
    """``selective_scan``. Inside, tokens come first and channels last: (L, B, N, D)."""

    @staticmethod
    @_exact_forward  # type: ignore[untyped-decorator] # torch's
    def forward(
        ctx: Any,
        u: Tensor,
        step: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        state: Tensor | None,
        starts: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        rows, _, width = u.shape
        size = a.shape[1]
        y = torch.empty_like(u)
        last = u.new_empty(rows, width, size)
        a_ND = a.t().contiguous()
        keeps = any(ctx.needs_input_grad)
        kept: list[list[Tensor]] = []
        for part in _row_slices(rows, width * size):
            x = _Inputs(u[part], step[part], a_ND, b[part], c[part], None if starts is None else starts[part])
            h = _Buffers(x)
            h.states[0] = 0 if state is None else state[part].transpose(1, 2)
            begins = []
            for start, stop in h.chunks:
                if keeps:
                    begins.append(h.states[0].clone())
                h.run(x, start, stop)
                span = stop - start
                torch.matmul(x.c[start:stop, :, None], h.states[1 : span + 1], out=h.out[:span])
                y[part, start:stop] = h.out[:span, :, 0].transpose(0, 1)
                h.states[0] = h.states[span]
            last[part] = h.states[0].transpose(1, 2)
            kept.append(begins)
        ctx.save_for_backward(u, step, a, b, c, starts)
        ctx.kept = kept
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    @_exact_backward  # type: ignore[untyped-decorator] # torch's
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u, step, a, b, c, starts = ctx.saved_tensors
        dy = gradients[0]
        rows = len(u)
        a_ND = a.t().contiguous()
        du, dstep, db, dc = (torch.empty_like(t) for t in (u, step, b, c))
        da_ND = torch.zeros_like(a_ND)
        for part, begins in zip(_row_slices(rows, a.numel()), ctx.kept, strict=True):
            x = _Inputs(u[part], step[part], a_ND, b[part], c[part], None if starts is None else starts[part])
            dy_part = dy[part].transpose(0, 1).contiguous()
            h = _Buffers(x)
            g, scratch = torch.empty_like(h.decays), torch.empty_like(h.decays)
            # Gradient of the state that the chunk leaves to the next one.
            later = torch.zeros_like(h.states[0])
            for (start, stop), begin in zip(reversed(h.chunks), reversed(begins), strict=True):
                span = stop - start
                h.states[0] = begin
                h.run(x, start, stop)
                decays, states, gs, tmp = h.decays[:span], h.states[: span + 1], g[:span], scratch[:span]
                dy_T, b_T, c_T = dy_part[start:stop], x.b[start:stop], x.c[start:stop]
                torch.mul(dy_T[:, :, None], c_T[..., None], out=gs)
                gs[-1] += later
                for after, decay, now in _pairs(gs, decays):
                    torch.addcmul(now, decay, after, out=now)
                # With respect to the products of step and input, and what these were multiplied with.
                dproduct = torch.matmul(b_T[:, :, None], gs)[:, :, 0]
                db[part, start:stop] = torch.matmul(gs, x.product[start:stop, ..., None])[..., 0].transpose(
                    0, 1
                )
                dc[part, start:stop] = torch.matmul(states[1:], dy_T[..., None])[..., 0].transpose(0, 1)
                gs.mul_(decays)
                later.copy_(gs[0])
                gs.mul_(states[:-1])  # with respect to step x A
                torch.mul(gs, x.step[start:stop, :, None], out=tmp)
                da_ND += tmp.sum(dim=(0, 1))
                dstep_T = torch.mul(gs, a_ND, out=tmp).sum(dim=2)
                dstep_T.addcmul_(dproduct, x.u[start:stop])
                dstep[part, start:stop] = dstep_T.transpose(0, 1)
                du[part, start:stop] = dproduct.mul_(x.step[start:stop]).transpose(0, 1)
        return du, dstep, da_ND.t(), db, dc, None, None


class _Inputs:
    """Inputs of some rows with tokens first."""

    def __init__(
        self, u: Tensor, step: Tensor, a_ND: Tensor, b: Tensor, c: Tensor, starts: Tensor | None
    ) -> None:
        self.a_ND = a_ND
        self.u, self.step, self.b, self.c = (t.transpose(0, 1).contiguous() for t in (u, step, b, c))
        self.product = self.u * self.step
        self.starts = None if starts is None else starts.t()


class _Buffers:
    """States of one chunk at a time, computed in place."""

    def __init__(self, x: _Inputs) -> None:
        length, rows, width = x.u.shape
        size = len(x.a_ND)
        span = max(MIN_CHUNK, min(MAX_CHUNK, CHUNK_STATES // (rows * width * size), length))
        self.decays = x.u.new_empty(span, rows, size, width)
        self.states = x.u.new_empty(span + 1, rows, size, width)
        self.out = x.u.new_empty(span, rows, 1, width)
        self.chunks = [(start, min(start + span, length)) for start in range(0, length, span)]

    def run(self, x: _Inputs, start: int, stop: int) -> None:
        """Decays of the tokens from ``start`` to ``stop``, and their states behind the first one, which is given."""
        span = stop - start
        decays, inputs = self.decays[:span], self.states[1 : span + 1]
        torch.mul(x.step[start:stop, :, None], x.a_ND, out=decays)
        if x.starts is not None:
            decays.masked_fill_(x.starts[start:stop, :, None, None], FORGET)
        decays.exp_()
        torch.mul(x.product[start:stop, :, None], x.b[start:stop, ..., None], out=inputs)
        states = self.states[: span + 1].unbind(0)
        for decay, before, now in zip(decays.unbind(0), states[:-1], states[1:], strict=True):
            torch.addcmul(now, decay, before, out=now)


def _pairs(gs: Tensor, decays: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """From the last token to the first: a later token's gradient and decay, and the gradient before it."""
    found, factors = gs.unbind(0), decays.unbind(0)
    for t in range(len(found) - 1, 0, -1):
        yield found[t], factors[t], found[t - 1]


def _row_slices(rows: int, states: int) -> list[slice]:
    size = max(1, STEP_STATES // states)
    return [slice(start, start + size) for start in range(0, rows, size)]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def chunked_scan(
    x_BLHP: Tensor,
    step_BLH: Tensor,
    a_H: Tensor,
    b_BLGN: Tensor,
    c_BLGN: Tensor,
    state_BHPN: Tensor | None = None,
    starts_BL: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence of Mamba-2, ``h_t = exp(step_t a) h_(t-1) + step_t x_t B_t'``, ``y_t = h_t C_t``, as matrix products.

    Args:
        x_BLHP: Inputs.
        step_BLH: Step sizes, not negative.
        a_H: Negative.
        b_BLGN: Input vectors.
        c_BLGN: Output vectors.
        state_BHPN: State before the first token; zero if None. It gets no gradient.
        starts_BL: True where a row of a pack begins, before which the state is forgotten.

    Returns:
        Outputs, shape (B, L, H, P); and the state after the last token, shape (B, H, P, N), without a gradient.

    Source: Dao and Gu 2024, arXiv:2405.21060, section 6 (block decomposition).
    """
    rows, length, heads = x_BLHP.shape[:3]
    groups = b_BLGN.shape[2]
    # A group of heads is a row of its own.
    each = heads // groups
    x, step = (t.unflatten(2, (groups, each)).transpose(1, 2).flatten(0, 1) for t in (x_BLHP, step_BLH))
    b, c = (t.transpose(1, 2).flatten(0, 1) for t in (b_BLGN, c_BLGN))
    logs = (step_BLH.double() * a_H.double()).unflatten(2, (groups, each)).transpose(1, 2).flatten(0, 1)
    if starts_BL is not None:
        logs = logs + FORGET * starts_BL.repeat_interleave(groups, 0)[..., None]
    state = None
    if state_BHPN is not None:
        state = state_BHPN.unflatten(1, (groups, each)).flatten(0, 1).permute(0, 3, 1, 2)
    padding = -length % MATRIX_CHUNK
    if padding:  # without input and decay
        x, step, b, c, logs = (
            functional.pad(t, (0, 0) * (t.ndim - 2) + (0, padding)) for t in (x, step, b, c, logs)
        )
    y, last = _ChunkedScan.apply(x, step, logs, b, c, state)  # type: ignore[no-untyped-call]
    y = y[:, :length].unflatten(0, (rows, groups)).transpose(1, 2).flatten(2, 3)
    last = last.permute(0, 2, 3, 1).contiguous()
    return y, last.unflatten(0, (rows, groups)).flatten(1, 2)


class _ChunkedScan(torch.autograd.Function):
    """``chunked_scan`` with one group, of whole chunks, given the logarithms of the decays in fp64.

    Inside: R chunks of all rows, T tokens of a chunk; states have the shape (B, N, H P).
    """

    @staticmethod
    @_exact_forward  # type: ignore[untyped-decorator] # torch's
    def forward(
        ctx: Any, x: Tensor, step: Tensor, logs: Tensor, b: Tensor, c: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        k = _Chunks(x, step, logs, b, c)
        y_RTHP = _heads_last(k.weights() @ k.scaled_RHTP)
        added_RNHP = k.b_RTN.mT @ (k.scaled_RTHP * k.to_end_RTH[..., None]).flatten(2)
        begins_RNHP, last = k.carry(added_RNHP, state)
        off = (k.c_RTN @ begins_RNHP.flatten(2)).view_as(y_RTHP)
        y_RTHP.addcmul_(off, k.from_begin_RTH[..., None])
        ctx.save_for_backward(x, step, logs, b, c, y_RTHP, begins_RNHP)
        ctx.mark_non_differentiable(last)
        return y_RTHP.view_as(x), last

    @staticmethod
    @_exact_backward  # type: ignore[untyped-decorator] # torch's
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, step, logs, b, c, y_RTHP, begins_RNHP = ctx.saved_tensors
        k = _Chunks(x, step, logs, b, c)
        dy_RTHP = gradients[0].reshape(y_RTHP.shape)
        dy_RHTP = dy_RTHP.transpose(1, 2).contiguous()
        decays_RHTT = k.decays()
        dweights = dy_RHTP @ k.scaled_RHTP.mT
        dproduct_RTT = torch.mul(dweights, decays_RHTT, out=dweights).sum(dim=1)
        weights = decays_RHTT.mul_(k.products_RTT[:, None])
        dscaled_RTHP = _heads_last(weights.mT @ dy_RHTP)
        # What goes through the states at the chunks' beginnings.
        dy_begin = (dy_RTHP * k.from_begin_RTH[..., None]).flatten(2)
        dbegins, dends_RNHP = k.carry_back(k.c_RTN.mT @ dy_begin, begins_RNHP)
        dc = dy_begin @ begins_RNHP.flatten(2).mT
        to_end = k.to_end_RTH[..., None]
        dadded = (k.b_RTN @ dends_RNHP.flatten(2)).view_as(dscaled_RTHP).mul_(to_end)
        db = (k.scaled_RTHP * to_end).flatten(2) @ dends_RNHP.flatten(2).mT
        dscaled_RTHP += dadded
        dc.baddbmm_(dproduct_RTT, k.b_RTN)
        db.baddbmm_(dproduct_RTT.mT, k.c_RTN)
        # A token's logarithm is in the decays of all outputs from it on, and not in what it puts in itself.
        dtotal_RTH = (dy_RTHP * y_RTHP).sum(-1) - (dscaled_RTHP * k.scaled_RTHP).sum(-1)
        dtotal_RTH[:, -1] += (dadded * k.scaled_RTHP).sum(dim=(1, 3)) + dbegins
        dlogs = dtotal_RTH.double().flip(1).cumsum(1).flip(1)
        dstep = (dscaled_RTHP * k.x_RTHP).sum(-1)
        dx = dscaled_RTHP.mul_(k.step_RTH[..., None])
        return dx.view_as(x), dstep.view_as(step), dlogs.view_as(logs), db.view_as(b), dc.view_as(c), None


class _Chunks:
    """The inputs in chunks, and the decays between their tokens."""

    def __init__(self, x: Tensor, step: Tensor, logs: Tensor, b: Tensor, c: Tensor) -> None:
        self.rows = len(x)
        self.x_RTHP, self.step_RTH, logs_RTH, self.b_RTN, self.c_RTN = (
            t.reshape(-1, MATRIX_CHUNK, *t.shape[2:]) for t in (x, step, logs, b, c)
        )
        self.scaled_RTHP = self.x_RTHP * self.step_RTH[..., None]
        self.scaled_RHTP = self.scaled_RTHP.transpose(1, 2).contiguous()
        # In 64 bits: differences of long sums are taken.
        self.sums_RTH = logs_RTH.cumsum(1)
        self.from_begin_RTH = self.sums_RTH.to(x.dtype).exp()
        self.to_end_RTH = (self.sums_RTH[:, -1:] - self.sums_RTH).to(x.dtype).exp_()
        self.products_RTT = self.c_RTN @ self.b_RTN.mT

    def decays(self) -> Tensor:
        """What is left of each token's input at each later one, shape (R, H, T, T); zero above the diagonal."""
        sums_RHT = self.sums_RTH.transpose(1, 2).contiguous()
        decays = (sums_RHT[..., None] - sums_RHT[..., None, :]).to(self.x_RTHP.dtype)
        return decays.exp_().tril_()

    def weights(self) -> Tensor:
        """How much of each token's scaled input is in each output, shape (R, H, T, T)."""
        return self.decays().mul_(self.products_RTT[:, None])

    def carry(self, added_RNF: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """States at the beginning of each chunk, shape (R, N, H, P), and after the last one, shape (B, N, H, P)."""
        heads, width = self.x_RTHP.shape[2:]
        added = added_RNF.unflatten(2, (heads, width)).unflatten(0, (self.rows, -1))
        begins = torch.empty_like(added)
        now = torch.zeros_like(added[:, 0]) if state is None else state.to(added.dtype)
        for chunk, decay in enumerate(self._chunk_decays()):
            begins[:, chunk] = now
            now = torch.addcmul(added[:, chunk], decay, now)
        return begins.flatten(0, 1), now

    def carry_back(self, dbegins_RNF: Tensor, begins_RNHP: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the chunks' whole decays, as logarithms, shape (R, H); and of the states that they end with."""
        begins = begins_RNHP.unflatten(0, (self.rows, -1))
        dbegins = dbegins_RNF.view_as(begins)
        dends = torch.empty_like(begins)
        later = torch.zeros_like(begins[:, 0])
        dlogs = begins.new_empty(*begins.shape[:2], begins.shape[3])
        decays = self._chunk_decays()
        for chunk in range(len(decays) - 1, -1, -1):
            dends[:, chunk] = later
            through = later * decays[chunk]
            dlogs[:, chunk] = (through * begins[:, chunk]).sum(dim=(1, 3))
            later = through + dbegins[:, chunk]
        return dlogs.flatten(0, 1), dends.flatten(0, 1)

    def _chunk_decays(self) -> list[Tensor]:
        """Of each chunk what it leaves of the state, shape (B, 1, H, 1)."""
        decays = self.from_begin_RTH[:, -1].unflatten(0, (self.rows, -1))
        return [decay[:, None, :, None] for decay in decays.unbind(1)]


def _heads_last(y_RHTP: Tensor) -> Tensor:
    return y_RHTP.transpose(1, 2).contiguous()
