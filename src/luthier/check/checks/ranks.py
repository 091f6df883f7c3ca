from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

from luthier.check.context import CheckContext, Skip
from luthier.check.trainer import TrainerContext
from luthier.records import Finding, Severity
from luthier.registry import check


@check("ranks")
def ranks(context: CheckContext) -> Iterator[Finding]:
    """Processes, devices and workers share the rows among them, and each trained token weighs the same on all.

    What it does: reads a ``Trainer``'s arguments and the code of a streamed data set: several devices in one process
    (``nn.DataParallel``), losses of ranks that are averaged without their numbers of tokens, a stream whose code does not
    ask which worker or rank it is in. Nothing is run on several processes.

    Why is this bad: under ``nn.DataParallel`` each device divides by the items of all; a rank with few trained tokens
    weighs as much as one with many; a stream that every worker reads from its beginning gives each row several times.

    Example: an ``IterableDataset`` with ``dataloader_num_workers=4``, whose ``__iter__`` does not call
    ``get_worker_info``: each row comes four times an epoch.

    Fix: start one process a device (``torchrun``, ``accelerate launch``); ``average_tokens_across_devices=True``; split
    the stream by worker and rank, or use ``datasets.IterableDataset``, which does.

    Catalogue: 25, 33, 35
    """
    if not isinstance(context, TrainerContext):
        raise Skip("only a Trainer's arguments are read")
    trainer: Any = context.trainer
    args, num_ranks = trainer.args, context.training.plan.num_ranks
    context.looked_at(
        f"{num_ranks} ranks, {args.n_gpu} devices and {args.dataloader_num_workers} workers each"
    )
    if args.n_gpu > 1:
        yield _finding(
            "error",
            f"{args.n_gpu} devices in one process (nn.DataParallel): the loss of each is divided by the items of all",
            "TrainingArguments.n_gpu",
            "torchrun or accelerate launch with a process for each device, or CUDA_VISIBLE_DEVICES=0",
            args.n_gpu,
            1,
        )
    by_tokens = args.average_tokens_across_devices and (
        trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
    )
    if num_ranks > 1 and not by_tokens and context.objective == "tokens":
        yield _finding(
            "warning",
            f"the losses of {num_ranks} ranks are averaged without their numbers of trained tokens",
            "TrainingArguments.average_tokens_across_devices",
            "average_tokens_across_devices=True, and a model whose loss divides by num_items_in_batch",
            num_ranks,
            "weighted by tokens",
        )
    dataset = trainer.train_dataset
    if isinstance(dataset, IterableDataset) and not type(dataset).__module__.startswith("datasets."):
        readers = max(1, args.dataloader_num_workers)
        if readers > 1 and not _mentions(dataset, "get_worker_info"):
            yield _finding(
                "error",
                f"{readers} workers read the same stream, whose code never asks for get_worker_info: each row comes {readers} "
                "times an epoch",
                f"trainer.train_dataset ({type(dataset).__name__}), TrainingArguments.dataloader_num_workers",
                "dataloader_num_workers=0, or split the stream by torch.utils.data.get_worker_info()",
                readers,
                1,
            )


def _finding(
    severity: Severity, what: str, where: str, fix: str, measured: int, expected: int | str
) -> Finding:
    return Finding("ranks", severity, what, where, fix, measured=measured, expected=expected)


def _mentions(dataset: Any, name: str) -> bool:
    """Whether the code of a data set names something; True if its code cannot be read."""
    try:
        return name in inspect.getsource(type(dataset))
    except (OSError, TypeError):
        return True
