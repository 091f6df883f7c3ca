"""What the optimizer is told of a parameter outlives its way into shards."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.fixtures import tiny_trainer
from torch import distributed

from luthier.models import sharded
from luthier.recipe import Train
from luthier.train import callback
from luthier.train.optimizer import adamw


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def groups(model: torch.nn.Module) -> list[tuple[float, float, set[str]]]:
    """Learning rate, decay and names of each of the optimizer's groups."""
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = adamw(model.named_parameters(), Train(learning_rate=1e-2, weight_decay=0.1))
    return [
        (group["lr"], group["weight_decay"], {names[id(p)] for p in group["params"]})
        for group in optimizer.param_groups
    ]


def test_shards_have_the_learning_rates_and_decay_of_the_whole(one_process: None) -> None:
    model = tiny_trainer.model("bigs")
    whole = groups(model)
    sharded.shard(model, torch.device("cpu"), 1)
    assert sharded.is_sharded(model) and groups(model) == whole
    assert callback._broken_parameters(model) == []
    name, parameter = next(iter(model.named_parameters()))
    parameter.data.fill_(float("nan"))
    assert callback._broken_parameters(model) == [name]
    (slow,) = (names for rate, decay, names in whole if rate == pytest.approx(1e-3) and decay == 0)
    assert slow and all(name.endswith(("a_real", "a_imag", "log_step")) for name in slow)
