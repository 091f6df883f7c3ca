"""The processes of a training: which one this is, and sums over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState
from torch import Tensor

from luthier.run_folder import logger

# One process prepares and checks while the others wait, which takes as long as it takes.
_PATIENCE = timedelta(days=2)
# Elements of the gradients that are summed in one message.
_MESSAGE = 1 << 24


class Ranks:
    """This process among those of a training, as ``torchrun`` started them; alone if it did not.

    Args:
        alone: Act as if there were no others: for what one process does while they wait.

    Attributes:
        index: Of this process; 0 writes the files.
        count: Processes.
        device: That this one computes on.
    """

    def __init__(self, *, alone: bool = False) -> None:
        # Without a GPU accelerate looks for other processes only if it is told to stay on the CPU.
        self._state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
        self.index: int = 0 if alone else self._state.process_index
        self.count: int = 1 if alone else self._state.num_processes
        self.device: torch.device = self._state.device
        if self.index:
            logger.setLevel("WARNING")  # what is the same in all of them is said once

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def wait(self) -> None:
        """Returns when all processes are here."""
        self._state.wait_for_everyone()

    @contextmanager
    def one_after_the_first(self) -> Iterator[None]:
        """The first process goes through the block alone; the others follow, and find done what it did."""
        with self._state.main_process_first():
            yield

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Adds up every parameter's gradient over all processes; one without counts as zeros."""
        if self.count == 1:
            return
        waiting: list[torch.nn.Parameter] = []
        for parameter in [*parameters, None]:
            if parameter is None or sum(p.numel() for p in waiting) + parameter.numel() > _MESSAGE:
                self._sum(waiting)
                waiting = []
            if parameter is not None:
                waiting.append(parameter)

    def _sum(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        if not parameters:
            return
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([part.reshape(-1).float() for part in parts])
        torch.distributed.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, in double precision."""
        if self.count == 1:
            return list(values)
        total: Tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return [float(value) for value in total]
