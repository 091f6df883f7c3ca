"""What ``TrainerContext`` says of a Trainer is what that Trainer then does: its log is the reference."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.fixtures import tiny_trainer
from transformers import Trainer, TrainerCallback, get_scheduler

import luthier
from luthier.check.as_before import unchanged
from luthier.check.context import Skip
from luthier.check.model_rows import cut
from luthier.check.trainer import TrainerContext, untouched
from luthier.train import rehearsal

pytestmark = pytest.mark.filterwarnings("default")  # of other people's trainers


class Events(TrainerCallback):
    def __init__(self) -> None:
        self.evaluated: list[int] = []
        self.saved: list[int] = []
        self.rates: list[float] = []

    def on_evaluate(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self.evaluated.append(state.global_step)

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self.saved.append(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.rates.append(logs["learning_rate"])


def followed(trainer: Trainer, folder: Path) -> tuple[Any, Events]:
    """The plan, and what happened when it was carried out."""
    with untouched(trainer):
        plan = TrainerContext(trainer, folder).training.plan
    events = Events()
    trainer.add_callback(events)
    trainer.train()
    return plan, events


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_type": "linear", "warmup_steps": 3},
        {"lr_scheduler_type": "cosine", "warmup_steps": 0.2},
        {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4, "max_steps": 7},
        {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 2},
        {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 5, "eval_strategy": "epoch"},
        {"save_strategy": "steps", "save_steps": 4, "eval_steps": 3},
        {
            "max_steps": -1,
            "num_train_epochs": 1,
            "dataloader_drop_last": True,
            "per_device_train_batch_size": 5,
        },
    ],
    ids=str,
)
def test_plan_is_what_happens(tmp_path: Path, settings: dict[str, Any]) -> None:
    trainer = tiny_trainer.trainer(output_dir=str(tmp_path / "out"), logging_steps=1, **settings)
    plan, events = followed(trainer, tmp_path)
    assert plan.num_steps == trainer.state.global_step
    assert plan.learning_rates == pytest.approx(events.rates)
    # transformers evaluates and saves by steps once more at the end
    assert [s for s in plan.eval_steps if s <= plan.num_steps] == sorted(set(events.evaluated) - {plan.num_steps}) + (
        [plan.num_steps] if plan.num_steps in plan.eval_steps else []
    )  # fmt: skip
    assert {s for s in plan.save_steps if s <= plan.num_steps} <= set(events.saved)
    assert plan.steps_per_epoch == pytest.approx(plan.num_steps / trainer.state.epoch, rel=0.35)


def test_plan_of_a_passed_scheduler(tmp_path: Path) -> None:
    for make in (
        lambda optimizer: get_scheduler("cosine", optimizer, 2, 20),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=30),
        lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 16),
            ],
            milestones=[4],
        ),
    ):
        trainer = tiny_trainer.trainer(output_dir=str(tmp_path), logging_steps=1)
        assert trainer.model is not None
        trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-3)
        trainer.lr_scheduler = make(trainer.optimizer)
        plan, events = followed(trainer, tmp_path)
        assert plan.learning_rates == pytest.approx(events.rates)


def test_plan_of_a_scheduler_for_more_steps(tmp_path: Path) -> None:
    trainer = tiny_trainer.trainer(output_dir=str(tmp_path))
    assert trainer.model is not None
    trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-3)
    trainer.lr_scheduler = get_scheduler("linear", trainer.optimizer, 0, 100)
    context = TrainerContext(trainer, tmp_path)
    plan = context.training.plan
    assert plan.learning_rates[-1] == pytest.approx(1e-3 * 0.81)
    assert plan.schedule_steps == 99  # of 100, the last is at 1% of the peak


@pytest.mark.parametrize("accumulation", [1, 3])
def test_step_is_the_first_step_of_training(tmp_path: Path, accumulation: int) -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        tiny_trainer.model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trainer = tiny_trainer.trainer(
        model,
        output_dir=str(tmp_path),
        max_steps=1,
        logging_steps=1,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=1e9,
        eval_strategy="no",
    )
    with untouched(trainer), unchanged(model):
        context = TrainerContext(trainer, tmp_path)
        _ = context.rows  # in the order in which the loader gives them
        batches = [list(range(4 * i, 4 * i + 4)) for i in range(accumulation)]
        step = context.training.step(batches)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert step.loss == pytest.approx(logged["loss"], abs=1e-4)
    assert step.norm == pytest.approx(logged["grad_norm"], rel=1e-5)


def test_a_trained_token_that_few_rows_hold_is_not_missed_in_two(tmp_path: Path) -> None:
    items = tiny_trainer.items(40)
    ids = [0] + items[0]["input_ids"] * 3
    labels = [-100] * (len(ids) - 2) + ids[-2:]
    items.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    adapter = LoraConfig(
        r=4,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        trainable_token_indices={"embed_tokens": [0]},
    )
    trainer = tiny_trainer.trainer(
        get_peft_model(tiny_trainer.model(), adapter), train=items, output_dir=str(tmp_path)
    )
    report = luthier.audit(trainer, only=["gradients"])
    assert report.findings == [] and report.passed == ["gradients"]


def test_data_can_be_looked_at_where_parameters_have_no_numbers(tmp_path: Path) -> None:
    model = tiny_trainer.model()
    trainer = tiny_trainer.trainer(model, output_dir=str(tmp_path))
    model.model.layers[1].mlp.to("meta")
    context = TrainerContext(trainer, tmp_path)
    with pytest.raises(Skip, match="no numbers"):
        _ = context.model
    context.only_tokens()
    assert context.model_name == "LlamaForCausalLM"


def test_cutting_keeps_what_is_trained(tmp_path: Path) -> None:
    items = []
    for index, item in enumerate(tiny_trainer.items(8)):
        prompt = [10 + index] * (40 + index)
        ids = prompt + item["input_ids"][-4:]
        items.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(prompt) + ids[-4:]})  # fmt: skip
    trainer = tiny_trainer.trainer(train=items, output_dir=str(tmp_path))
    with untouched(trainer):
        context = TrainerContext(trainer, tmp_path)
        rows = context.rows["train"]
        for index in range(len(rows)):
            (item,) = context.items([index], 16)
            row = rows.row(index)
            assert len(item["input_ids"]) <= 16
            assert item["labels"][-4:] == row.input_ids[-4:].tolist()
            assert all(len(value) == len(item["input_ids"]) for value in item.values())


@pytest.mark.parametrize("length", [20, 60, 64, 65, 200])
@pytest.mark.parametrize("first", [1, 10, 45, 50, 190])
def test_items_rows_and_rehearsals_are_cut_alike(tmp_path: Path, length: int, first: int) -> None:
    if first >= length - 1:
        pytest.skip("nothing would be trained")
    ids = [3 + i for i in range(length)]
    labels = [-100] * first + ids[first : first + 2] + [-100] * (length - first - 2)
    item = {"input_ids": ids, "attention_mask": [1] * length, "labels": labels}
    trainer = tiny_trainer.trainer(train=[item] * 4, output_dir=str(tmp_path))
    with untouched(trainer):
        context = TrainerContext(trainer, tmp_path)
        row = context.rows["train"].row(0)
        (made,) = context.items([0], 64)
    assert made["input_ids"] == cut(row, 64).input_ids.tolist()
    assert made["input_ids"] == rehearsal._cut(row, 64).input_ids.tolist()
    assert [label for label in made["labels"] if label != -100] == ids[first : first + 2][
        : len(made["labels"])
    ]
