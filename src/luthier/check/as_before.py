"""Rooms in which a check may do what it likes: what it changes in model, settings and generators is as before afterwards."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from luthier.models.forward import same_modes

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@contextmanager
def same_draws() -> Iterator[None]:
    """Python's, numpy's and torch's generators are as before afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module is in its former mode afterwards."""
    with same_modes(model), same_draws(), torch.no_grad():
        model.eval()
        yield


@contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Room for training steps: what is trained and how, and modes, gradients and generators are as before afterwards.

    Put back are the values of trained weights and of buffers, and of all parameters their number format, their gradient
    and whether they are trained.
    """
    values: dict[Tensor, Tensor] = {p: p.detach().clone() for p in model.parameters() if p.requires_grad}
    values |= {b: b.detach().clone() for b in model.buffers()}
    states = {p: (p.dtype, p.grad, p.requires_grad) for p in model.parameters()}
    for parameter in values:
        if parameter.requires_grad:
            parameter.grad = None  # else a backward pass adds to the very tensor that is put back
    try:
        with same_modes(model), same_draws(), torch.enable_grad():
            yield
    finally:
        for parameter, (dtype, gradient, trained) in states.items():
            if parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
            parameter.grad = gradient
            parameter.requires_grad_(trained)
        with torch.no_grad():
            for tensor, value in values.items():
                tensor.copy_(value)


@contextmanager
def no_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Training mode in which nothing is drawn at random; every module has its former probabilities afterwards."""
    before: list[tuple[torch.nn.Module, str, float]] = []
    for module in model.modules():
        for name, value in vars(module).items():
            own = name == "p" and isinstance(module, torch.nn.modules.dropout._DropoutNd)
            if type(value) is float and (own or "drop" in name or "jitter" in name):
                before.append((module, name, value))
    for module, name, _ in before:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextmanager
def attending(model: PreTrainedModel | PeftModel, implementation: str) -> Iterator[None]:
    """Room for forward passes with another attention implementation; each module has its former one afterwards.

    For models whose layers ask their config at each call (``_can_set_attn_implementation``).
    """
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    parts = [c for c in configs.values() if hasattr(c, "_attn_implementation_internal")]
    before = [c._attn_implementation_internal for c in parts]
    for config in parts:
        config._attn_implementation_internal = implementation
    try:
        yield
    finally:
        for config, former in zip(parts, before, strict=True):
            config._attn_implementation_internal = former


@contextmanager
def modules_as_before(model: torch.nn.Module) -> Iterator[None]:
    """A block after which every module has its former attributes and hooks; parameters' values are left as they are."""
    modules = list(model.modules())
    configs = {id(m.config): m.config for m in modules if hasattr(vars(m).get("config"), "to_dict")}
    with attributes_as_before([*modules, *configs.values()]):
        yield


@contextmanager
def attributes_as_before(things: Sequence[Any]) -> Iterator[None]:
    """A block after which things have their former attributes, and containers among these their former content."""
    before = [(thing, dict(vars(thing))) for thing in things]
    # What others change in place: hooks, submodules, lists of callbacks and of merged adapters.
    held = [{n: v.copy() for n, v in own.items() if isinstance(v, dict | list | set)} for _, own in before]
    try:
        yield
    finally:
        for (thing, own), contents in zip(before, held, strict=True):
            vars(thing).clear()
            vars(thing).update(own)
            for name, content in contents.items():
                refill(own[name], content)


def refill(container: dict[Any, Any] | list[Any] | set[Any], content: Any) -> None:
    """Puts a content back into the very object that it was copied from, to which others may refer."""
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


@contextmanager
def quiet() -> Iterator[None]:
    """Room for saving and loading without transformers' progress bars and remarks on what it reads."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging

    level, bars, hub_bars = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        (disable_progress_bars if hub_bars else enable_progress_bars)()
