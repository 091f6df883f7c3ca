"""preflight-ml with both data loaders, the model and a loss, put into the form that it takes: ``model(inputs)``, ``(inputs, targets)``."""

from collections.abc import Iterator
from typing import Any

import cases
import torch
from preflight.registry import Severity
from preflight.reporter import print_results
from preflight.runner import run_checks
from torch import nn
from torch.nn import functional

from tools.common import Finding, each

SEVERITIES = {Severity.FATAL: "error", Severity.WARN: "warning", Severity.INFO: "note"}
INPUTS = ("input_ids", "attention_mask", "position_ids")


class Loader:
    """A trainer's data loader, whose batches are a tensor of shape (batch, kind of input, token) and the labels."""

    def __init__(self, loader: Any) -> None:
        self._loader, self.dataset = loader, loader.dataset

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self._loader:
            yield torch.stack([batch[name] for name in INPUTS if name in batch], dim=1), batch["labels"]


class Model(nn.Module):
    """A model that takes such a tensor and gives logits."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self._names = model, names

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self._names, inputs.unbind(1), strict=True))).logits


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss that the model itself would compute."""
    if labels.is_floating_point():
        return functional.mse_loss(logits.squeeze(-1), labels)
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels)
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=cases.IGNORED
    )


def look(setup: cases.SetUp) -> list[Finding]:
    trainer = cases.trainer(setup)
    loader = trainer.get_train_dataloader()
    first = next(iter(loader))
    results = run_checks(
        dataloader=Loader(loader),
        model=Model(trainer.model, [name for name in INPUTS if name in first]),
        loss_fn=loss,
        config={"val_dataloader": Loader(trainer.get_eval_dataloader())} if setup.eval else {},
    )
    print_results(results)
    return [
        {"severity": SEVERITIES[found.severity], "text": f"{found.name}: {found.message}"}
        for found in results
        if not found.passed
    ]


if __name__ == "__main__":
    each(look)
