"""What the check accumulation says will be logged is what transformers' Trainer then logs."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.fixtures import tiny_trainer
from transformers import Trainer

import luthier
from luthier.records import Finding

pytestmark = pytest.mark.filterwarnings("default")  # of other people's trainers


def classifier(folder: Path, *, mended: bool, steps: int = 12, adapter: bool = False) -> Trainer:
    model: Any = tiny_trainer.classifier(num_labels=280)
    if adapter:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS"))
    if mended:
        (model.get_base_model() if adapter else model).accepts_loss_kwargs = False
    return tiny_trainer.class_trainer(
        model,
        num_labels=280,
        train=tiny_trainer.class_items(560, 280),
        output_dir=str(folder),
        gradient_accumulation_steps=steps,
        logging_steps=1,
    )


def finding(trainer: Trainer) -> Finding:
    (found,) = luthier.audit(trainer, only=["accumulation"]).findings
    return found


@pytest.mark.parametrize("adapter", [False, True])
def test_inflation_has_its_factor_cause_and_fix(tmp_path: Path, adapter: bool) -> None:
    found = finding(classifier(tmp_path, mended=False, adapter=adapter))
    assert found.severity == "error"
    assert found.measured == pytest.approx(12.0, abs=0.1) and found.expected == 1
    assert "12.00 times the loss" in found.what and "12.00 times the gradients" in found.what
    assert "transformers#47688" in found.what and "never gets it" in found.what
    assert "12 x ln 280 (5.63)" in found.what
    model = "model.get_base_model()" if adapter else "model"
    assert found.fix.startswith(f"{model}.accepts_loss_kwargs = False")


def test_the_predicted_loss_is_the_one_that_is_logged(tmp_path: Path) -> None:
    trainer = classifier(tmp_path, mended=False)
    found = finding(trainer)
    predicted = float(re.search(r"first logged loss will be about ([\d.]+)", found.what).group(1))  # type: ignore[union-attr]
    trainer.train()
    logged = trainer.state.log_history[0]["loss"]
    assert logged == pytest.approx(predicted, rel=0.06)  # of other rows
    assert logged == pytest.approx(12 * math.log(280), rel=0.05)


def test_the_fix_mends_it(tmp_path: Path) -> None:
    trainer = classifier(tmp_path, mended=True)
    assert luthier.audit(trainer).findings == []
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(280), rel=0.05)


def test_more_micro_batches_than_are_tried(tmp_path: Path) -> None:
    found = finding(classifier(tmp_path, mended=False, steps=40))
    assert found.measured == pytest.approx(40, abs=0.5)
    assert "16.00 times the loss" in found.what and "with 40 it has 40.0" in found.what


def test_a_training_that_does_not_accumulate_is_told_by_a_note(tmp_path: Path) -> None:
    found = finding(classifier(tmp_path, mended=False, steps=1))
    assert found.severity == "note" and found.measured == pytest.approx(2, abs=0.02)


def test_rows_of_one_length_have_no_mean_of_means(tmp_path: Path) -> None:
    model = tiny_trainer.model()
    model.accepts_loss_kwargs = False
    items = [
        {**item, "labels": [-100] * (len(item["labels"]) - 3) + item["labels"][-3:]}
        for item in tiny_trainer.items(48)
    ]
    made = tiny_trainer.trainer(model, train=items, gradient_accumulation_steps=4, output_dir=str(tmp_path))
    assert luthier.audit(made, only=["accumulation"]).findings == []
