"""Small functions that are compiled where the engine found that it pays, and run as they are everywhere else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.fx.experimental import _config as shapes

Function = TypeVar("Function", bound=Callable[..., Any])

# Shapes differ from batch to batch; training and evaluation are compiled apart.
MOST_VERSIONS = 64

_switched_on = False


def compiled(function: Function) -> Function:
    """The function, compiled while ``switch`` says so: for tensor code that reads and writes much and multiplies little."""

    @functools.cache
    def fast() -> Callable[..., Any]:
        return torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def choose(*arguments: Any) -> Any:
        # A size of 1 would be compiled apart, in seconds, for what takes next to no time.
        if not _switched_on or any(isinstance(a, torch.Tensor) and a.shape[:1] == (1,) for a in arguments):
            return function(*arguments)
        # Nor are two sizes always equal that are so the first time.
        with shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined] # which it gets when it is imported
            return fast()(*arguments)

    return choose  # type: ignore[return-value] # of the same signature


def switch(on: bool) -> None:
    """Whether such functions are compiled from now on, in this process."""
    global _switched_on
    if on:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_VERSIONS)
    _switched_on = on
