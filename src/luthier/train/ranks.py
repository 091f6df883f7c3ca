"""The processes of a training: which one this is, and sums over all of them."""

from __future__ import annotations

import functools
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState
from torch import Tensor

from luthier.errors import Refused
from luthier.run_folder import RunFolder, logger

# One process prepares and checks, or writes a checkpoint, while the others wait, which takes as long as it takes.
_PATIENCE = timedelta(days=2)
# Within a step they answer each other soon, or one of them hangs.
_ANSWER = timedelta(minutes=30)
# Elements of the gradients that are summed in one message.
_MESSAGE = 1 << 24

# What gloo, NCCL and torch's store say of a process that is gone.
_LOST = re.compile(r"gloo|nccl|connection (was )?(closed|reset)|broken pipe|timed? ?out", re.IGNORECASE)


@functools.cache
def _patient_group() -> torch.distributed.ProcessGroup:
    """All processes, over a line on which they wait for each other as long as it takes."""
    group = torch.distributed.new_group(timeout=_PATIENCE, backend="gloo")
    if not isinstance(group, torch.distributed.ProcessGroup):
        raise TypeError("this process is in no group")
    return group


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
        self._state = PartialState(cpu=not torch.cuda.is_available(), timeout=_ANSWER)
        self.index: int = 0 if alone else self._state.process_index
        self.count: int = 1 if alone else self._state.num_processes
        self.device: torch.device = self._state.device
        if self.count > 1:
            _patient_group()  # all have to be here to make it, so that none may be busy for long
        if self.index:
            logger.setLevel("WARNING")  # what is the same in all of them is said once

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def wait(self) -> None:
        """Returns when all processes are here."""
        if self.count > 1:
            torch.distributed.barrier(_patient_group())

    @contextmanager
    def one_after_the_first(self) -> Iterator[None]:
        """The first process goes through the block alone; the others follow, and find done what it did."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    @contextmanager
    def together(self, run: RunFolder | None = None) -> Iterator[None]:
        """A block in which the loss of another process is told as such.

        Raises:
            Refused: One that this one waits for has ended, or does not answer.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _LOST.search(str(error)):
                raise
            if threading.current_thread() is threading.main_thread():
                # torchrun's, until this one has said why it ends
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise Refused(
                f"process {self.index} of {self.count} ends, because another one has ended or does not answer "
                f"({' '.join(str(error).split())[:160]})",
                str(run.checkpoints) if run else "the start",
                "see what the other one said last, and start all of them again: they go on from the newest checkpoint",
            ) from error

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

    def most(self, value: int) -> int:
        """The largest of all processes' numbers."""
        if self.count == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, in double precision."""
        if self.count == 1:
            return list(values)
        total: Tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return [float(value) for value in total]
