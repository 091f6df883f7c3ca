"""What decay takes off a vector, against torch's AdamW."""

import re
from pathlib import Path

import pytest
import torch
from tests.fixtures import tiny_trainer

import luthier

pytestmark = pytest.mark.filterwarnings("default")  # of other people's trainers


def test_decay_is_what_adamw_takes(tmp_path: Path) -> None:
    model = tiny_trainer.model("mamba")
    trainer = tiny_trainer.trainer(
        model, weight_decay=0.1, learning_rate=1e-2, max_steps=50, eval_steps=10, output_dir=str(tmp_path)
    )
    (found,) = luthier.audit(trainer, only=["parameter-groups"]).findings
    said = float(re.search(r"takes ([\d.]+)% off", found.what).group(1)) / 100  # type: ignore[union-attr]
    vector = torch.nn.Parameter(torch.ones(3))
    vector.grad = torch.zeros(3)
    optimizer = torch.optim.AdamW([vector], lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (50 - step) / 50))
    for _ in range(50):
        optimizer.step()
        scheduler.step()
    assert said == pytest.approx(1 - float(vector[0]), rel=0.01)
    assert found.severity == "warning" and "norm_f" in found.what


def test_a_little_decay_is_a_note(tmp_path: Path) -> None:
    trainer = tiny_trainer.trainer(tiny_trainer.model("mamba"), weight_decay=0.01, output_dir=str(tmp_path))
    (found,) = luthier.audit(trainer, only=["parameter-groups"]).findings
    assert found.severity == "note"
