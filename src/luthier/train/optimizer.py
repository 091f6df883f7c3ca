"""AdamW with decay on matrices only."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from typing import Any

import torch

from luthier.errors import UserError
from luthier.recipe import Train

_KEY = "recipe key train.optimizer"


def refuse_unavailable(settings: Train) -> None:
    """Asks whether the optimizer can run here.

    Raises:
        UserError: bitsandbytes is not installed, or its paged optimizers would page nothing: they do so on NVIDIA GPUs.
    """
    name = settings.optimizer
    if name != "adamw" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{name} needs bitsandbytes, which is not installed", _KEY, "pip install 'luthier[quantised]'"
        )
    if name.startswith("paged") and not torch.cuda.is_available():
        raise UserError(
            f"{name} moves its state between the memory of an NVIDIA GPU and the machine's, and there is no such GPU",
            _KEY,
            f"train.optimizer={name.removeprefix('paged_')}",
        )


def adamw(parameters: Iterable[tuple[str, torch.nn.Parameter]], settings: Train) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; vectors (norms, biases) are in a group without decay.

    A parameter with an attribute ``_optim`` gets the ``weight_decay`` that it names, and ``lr_scale`` times the learning
    rate: state-space models need that (the attribute is S4's, arXiv:2111.00396).

    Raises:
        UserError: The optimizer cannot run here.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; the update itself is torch's, or bitsandbytes' with a state of
        8 bits (Dettmers et al. 2022, arXiv:2110.02861), which keeps tensors of fewer than 4,096 numbers in 32.
    """
    refuse_unavailable(settings)
    options: dict[str, Any] = {
        "params": _groups(parameters, settings),
        "lr": settings.learning_rate,
        "betas": settings.betas,
        "eps": settings.epsilon,
    }
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(**options, fused=True)
    return _bitsandbytes(options, settings.optimizer)


def _bitsandbytes(options: dict[str, Any], name: str) -> torch.optim.Optimizer:
    optimizers: Any = importlib.import_module("bitsandbytes.optim")  # an extra, without types

    class TensorAdamW(optimizers.AdamW):  # type: ignore[misc]
        """Its state is tensors alone, each with memory of its own, as checkpoints hold them."""

        def init_state(self, group: Any, p: torch.nn.Parameter, gindex: int, pindex: int) -> None:
            super().init_state(group, p, gindex, pindex)
            state = self.state[p]
            state["step"] = torch.tensor(float(state["step"]))
            for shared in ("qmap1", "qmap2"):
                if shared in state:
                    state[shared] = state[shared].clone()

        def update_step(self, group: Any, p: torch.nn.Parameter, gindex: int, pindex: int) -> None:
            count = self.state[p]["step"]
            self.state[p]["step"] = int(count)
            super().update_step(group, p, gindex, pindex)
            self.state[p]["step"] = count + 1

    optimizer: torch.optim.Optimizer = TensorAdamW(
        **options, optim_bits=8 if name.endswith("8bit") else 32, is_paged=name.startswith("paged")
    )
    return optimizer


def _groups(parameters: Iterable[tuple[str, torch.nn.Parameter]], settings: Train) -> list[dict[str, Any]]:
    found: dict[tuple[float, float], list[torch.nn.Parameter]] = {
        (1.0, settings.weight_decay): [],
        (1.0, 0.0): [],
    }
    for name, p in parameters:
        if not p.requires_grad:
            continue
        own = getattr(p, "_optim", {})
        # Mamba's A has two dimensions, and is published without decay (state-spaces/mamba).
        decayed = p.ndim >= 2 and not name.endswith("A_log")
        decay = own.get("weight_decay", settings.weight_decay if decayed else 0.0)
        found.setdefault((own.get("lr_scale", 1.0), decay), []).append(p)
    return [
        {"params": ps, "weight_decay": decay, "lr": settings.learning_rate * scale, "lr_scale": scale}
        for (scale, decay), ps in found.items()
        if ps
    ]
