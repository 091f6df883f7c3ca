"""How many tokens go through the model at once: as many as memory holds, found by a try before the first step."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.engine import Engine, first_tokens
from luthier.models.forward import base_model, token_scores
from luthier.records import Row
from luthier.rows import Rows
from luthier.run_folder import logger

# Share of free memory that is planned with; the rest is for what a try does not see.
MARGIN = 0.8
# Tokens that go through a processor at once at most, if no row has more: with 23,814 of them a model of 135 million parameters
# trained no faster than with 6,144 (250 and 278 tokens/s), and took 17.5 GiB in place of 7.9.
MOST_ON_CPU = 8192
# Tokens of the first try, from which the others are estimated.
TRIED_TOKENS = 1024
# A gradient in fp32 and the two averages of AdamW, for each trained parameter.
BYTES_PER_TRAINED = 12
# Control groups of version 2, and which of them this process is in.
_GROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def fit(
    model: PreTrainedModel | PeftModel,
    engine: Engine,
    rows: Rows,
    *,
    rows_at_once: int,
    micro_batch_tokens: int | Literal["auto"] = "auto",
    gradient_checkpointing: bool | Literal["auto"] = "auto",
) -> Engine:
    """The engine with micro-batches that fit, and with gradient checkpointing switched on if only that makes them fit.

    A micro-batch is never larger than a step's rows at their longest, nor on a processor than ``MOST_ON_CPU`` tokens, so that
    where memory is plenty the result does not depend on how much of it was free.

    Args:
        model: In training form.
        engine: As ``engine.start`` made it.
        rows: Training rows.
        rows_at_once: Rows of a step on this process.
        micro_batch_tokens: Taken as it is, if it is a number.
        gradient_checkpointing: Whether activations are computed again in the backward pass; ``auto`` only where memory is
            short.

    Raises:
        UserError: Not even the longest row fits.
    """
    if gradient_checkpointing is True:
        checkpoint_gradients(model)
        engine = replace(engine, gradient_checkpointing=True)
    if micro_batch_tokens != "auto":
        return replace(engine, micro_batch_tokens=micro_batch_tokens)
    lengths = rows.lengths()
    order = np.argsort(-lengths, kind="stable")
    most = int(lengths[order[:rows_at_once]].sum())
    longest = int(lengths[order[0]])
    device = base_model(model).device
    if device.type == "cpu":
        most = min(most, max(longest, MOST_ON_CPU))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    free = MARGIN * available(device) - BYTES_PER_TRAINED * trained
    tried = _longest(rows, order, min(most, TRIED_TOKENS))
    per_token = _bytes_per_token(model, engine, tried)
    if per_token * longest > free and gradient_checkpointing == "auto":
        before = per_token
        checkpoint_gradients(model)
        engine = replace(engine, gradient_checkpointing=True)
        per_token = _bytes_per_token(model, engine, tried)
        logger.info(
            "train: gradient checkpointing: the longest row, of %d tokens, would need %.1f GiB and %.1f are free; with it %.1f",
            longest, before * longest / 2**30, free / 2**30, per_token * longest / 2**30,
        )  # fmt: skip
    if per_token * longest > free:
        raise UserError(
            f"the longest row, of {longest} tokens, needs about {per_token * longest / 2**30:.1f} GiB beside the model, "
            f"and {max(free, 0) / 2**30:.1f} GiB are free",
            "recipe key train.micro_batch_tokens",
            f"lower data.max_length to {max(8, int(free / per_token))} or less, end other programs, or take a smaller model",
        )
    tokens = min(most, int(free / per_token))
    if tokens < most:
        # What grows faster than the number of tokens, a try of that size shows.
        used = tokens * _bytes_per_token(model, engine, _longest(rows, order, tokens))
        tokens = max(longest, int(tokens * min(1.0, free / used)))
    logger.info(
        "train: %d tokens at once, %.2f MiB each; %.1f GiB are free", tokens, per_token / 2**20, free / 2**30
    )
    return replace(engine, micro_batch_tokens=tokens)


def _longest(rows: Rows, order: np.ndarray[Any, Any], num_tokens: int) -> list[Row]:
    """The longest rows, the last of them cut, that make up so many tokens."""
    found: list[Row] = []
    for index in order:
        row = first_tokens(rows.row(int(index)), num_tokens)
        found.append(row)
        num_tokens -= len(row.input_ids)
        if num_tokens < 2:
            break
    return found


def _bytes_per_token(model: PreTrainedModel | PeftModel, engine: Engine, rows: Sequence[Row]) -> float:
    """Memory that a forward and backward pass takes at its peak, beside what was taken before."""
    device = base_model(model).device
    give_back()
    before = in_use(device)
    _forget_peak(device)
    with torch.random.fork_rng():
        batch = engine.batch(rows).to(device)
        token_scores(model, batch, plain=engine.plain_head).weighted_sum().backward()
    model.zero_grad(set_to_none=True)
    return max(1, peak(device) - before) / sum(len(row.input_ids) for row in rows)


def checkpoint_gradients(model: PreTrainedModel | PeftModel) -> None:
    """Activations inside a layer are computed again in the backward pass instead of kept.

    Source: Chen et al. 2016, arXiv:1604.06174.
    """
    with warnings.catch_warnings():
        # transformers 5.23 has a new name for it, 5.0 does not.
        warnings.simplefilter("ignore", FutureWarning)
        base_model(model).gradient_checkpointing_enable({"use_reentrant": False})


def available(device: torch.device) -> int:
    """Free memory for this process in bytes: of the GPU, or its share of the machine's or the job's."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for later is free as well
        return int(torch.cuda.mem_get_info(device)[0])
    free = min([int(psutil.virtual_memory().available), *_left_in_groups()])
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _left_in_groups() -> list[int]:
    """Bytes that this process's control group, and each around it, has left of its limit: a container's, a job's.

    Files that were read count as used until something else wants their place: they are left, too.
    """
    left = []
    with contextlib.suppress(OSError):  # no Linux
        lines = _OWN_GROUP.read_text(encoding="utf-8").splitlines()
        own = _GROUPS / next((line[4:] for line in lines if line.startswith("0::/")), "")
        for group in (own, *own.parents):
            with contextlib.suppress(OSError, ValueError):  # of another version, or without a limit
                limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
                files = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
                left.append(limit - used + (int(files[1]) if files else 0))
    return left


def peak(device: torch.device) -> int:
    """Most memory that this process held since ``_forget_peak``, or since its start, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return int(psutil.Process().memory_info().rss)  # no Linux


def in_use(device: torch.device) -> int:
    """Memory that this process holds now, in bytes: of the GPU, or resident."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def give_back() -> None:
    """Hands freed memory back to the system: what grows token by token leaves holes that glibc would keep."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or not."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
