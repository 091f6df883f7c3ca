"""Training after ``luthier.audit(trainer)`` gives the same bits as training without: proven on real Trainers."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_model import make_tokenizer
from transformers import Trainer, TrainerCallback, set_seed

import luthier
from luthier import registry

pytestmark = pytest.mark.filterwarnings("default")  # of other people's trainers

Make = Callable[[Path], Trainer]


class Collator(tiny_trainer.Collator):
    """Notes the ids of every batch, which is the order of the data."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        made = super().__call__(batch)
        self.seen.append(made["input_ids"].flatten().tolist())
        return made


class Dropping(TrainerCallback):
    """Draws from every generator after each step, so that a generator that has moved on shows."""

    def __init__(self) -> None:
        self.drawn: list[float] = []
        self.calls = 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.drawn += [random.random(), float(np.random.rand()), float(torch.rand(()))]

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self.calls += 1


def lora(model: Any, **settings: Any) -> Any:
    return get_peft_model(
        model,
        LoraConfig(
            **{
                "r": 4,
                "target_modules": "all-linear",
                "lora_dropout": 0.1,
                "task_type": "CAUSAL_LM",
                **settings,
            }
        ),
    )


def plain_lora(folder: Path) -> Trainer:
    return tiny_trainer.trainer(
        lora(tiny_trainer.model(attention_dropout=0.1)),
        collator=Collator(),
        output_dir=str(folder),
        gradient_accumulation_steps=2,
        load_best_model_at_end=True,
        save_strategy="steps",
        save_steps=5,
        label_names=["labels"],
    )


def checkpointed_lora(folder: Path) -> Trainer:
    return tiny_trainer.trainer(
        lora(tiny_trainer.model("qwen3"), modules_to_save=["lm_head"]),
        collator=Collator(),
        output_dir=str(folder),
        gradient_checkpointing=True,
        bf16=True,
    )


def whole_model(folder: Path) -> Trainer:
    dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    return tiny_trainer.trainer(
        tiny_trainer.model("gpt2", **dropout), collator=Collator(), output_dir=str(folder), weight_decay=0.01
    )


def passed_optimizer(folder: Path) -> Trainer:
    made = tiny_trainer.trainer(tiny_trainer.model("mistral"), collator=Collator(), output_dir=str(folder))
    assert made.model is not None
    made.optimizer = torch.optim.SGD(made.model.parameters(), lr=0.1, momentum=0.9)
    made.lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(made.optimizer, 20)
    return made


def classifier(folder: Path) -> Trainer:
    model = tiny_trainer.classifier(num_labels=5, attention_dropout=0.1)
    return tiny_trainer.class_trainer(model, output_dir=str(folder), gradient_accumulation_steps=4)


def texts(count: int, seed: int) -> datasets.Dataset:
    items = tiny_trainer.items(count, seed)
    tokenizer = make_tokenizer()
    return datasets.Dataset.from_list(
        [
            {
                "prompt": tokenizer.decode([i for i, y in zip(item["input_ids"], item["labels"], strict=True) if y < 0]),
                "completion": tokenizer.decode([y for y in item["labels"] if y > 2]),
            }
            for item in items
        ]
    )  # fmt: skip


def sft(folder: Path, **settings: Any) -> Trainer:
    from trl import SFTConfig, SFTTrainer

    arguments = {
        **tiny_trainer.arguments(output_dir=str(folder)).to_dict(),
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": 64,
        **settings,
    }
    known = SFTConfig.__dataclass_fields__
    return SFTTrainer(
        tiny_trainer.model("qwen3"),
        args=SFTConfig(**{k: v for k, v in arguments.items() if k in known and not k.endswith("token")}),
        train_dataset=texts(48, 0),
        eval_dataset=texts(12, 1),
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1, task_type="CAUSAL_LM"),
    )


def sft_packed(folder: Path) -> Trainer:
    return sft(folder, packing=True, gradient_accumulation_steps=2)


def trained(make: Make, folder: Path, *, audits: int) -> dict[str, Any]:
    """What training leaves behind, after so many audits of the trainer."""
    make(folder)  # teaches the tiny model once for all tests, which draws
    set_seed(0)
    trainer = make(folder)
    draws = Dropping()
    trainer.add_callback(draws)
    reports = [luthier.audit(trainer) for _ in range(audits)]
    assert draws.calls == 0  # no callback hears of what an audit does
    seen = getattr(trainer.data_collator, "seen", [])
    del seen[:]
    trainer.train()
    assert trainer.model is not None
    return {
        "reports": reports,
        "losses": [
            {k: v for k, v in line.items() if "loss" in k or k in ("grad_norm", "learning_rate", "step")}
            for line in trainer.state.log_history
        ],
        "weights": {name: p.detach().clone() for name, p in trainer.model.state_dict().items()},
        "trained": [name for name, p in trainer.model.named_parameters() if p.requires_grad],
        "order": list(seen),
        "drawn": draws.drawn,
        "generators": (random.getstate(), torch.get_rng_state()),
    }


@pytest.mark.parametrize(
    "make",
    [plain_lora, checkpointed_lora, whole_model, passed_optimizer, classifier, sft, sft_packed],
    ids=lambda m: m.__name__,
)
def test_training_after_two_audits_is_bit_identical(make: Make, tmp_path: Path) -> None:
    without = trained(make, tmp_path / "without", audits=0)
    after = trained(make, tmp_path / "after", audits=2)
    assert after["losses"] == without["losses"] and len(without["losses"]) >= 4
    assert after["weights"].keys() == without["weights"].keys()
    for name, value in without["weights"].items():
        assert torch.equal(after["weights"][name], value), name
    assert after["trained"] == without["trained"]
    assert after["order"] == without["order"]
    assert after["drawn"] == without["drawn"] != []
    assert after["generators"][0] == without["generators"][0]
    assert torch.equal(after["generators"][1], without["generators"][1])
    first, second = after["reports"]
    assert first.findings == second.findings
    assert first.passed == second.passed
    assert len(first.passed) > 15


@pytest.mark.parametrize("make", [plain_lora, whole_model, sft_packed], ids=lambda m: m.__name__)
def test_the_model_itself_is_untouched(make: Make, tmp_path: Path) -> None:
    trainer = make(tmp_path)
    model: Any = trainer.model

    def state() -> dict[str, Any]:
        return {
            "values": {name: value.clone() for name, value in model.state_dict().items()},
            "trainable": {name: p.requires_grad for name, p in model.named_parameters()},
            "modules": {n: (type(m), m.training, sorted(vars(m))) for n, m in model.named_modules()},
            "hooks": {
                n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()
            },
            "config": model.config.to_dict(),
            "grads": [name for name, p in model.named_parameters() if p.grad is not None],
            "trainer": sorted(vars(trainer)),
            "arguments": trainer.args.to_dict(),
            "state": vars(trainer.state).copy(),
            "accelerator": {k: len(v) for k, v in vars(trainer.accelerator).items() if isinstance(v, list)},
        }

    before = state()
    luthier.audit(trainer)
    after = state()
    values, same = before.pop("values"), after.pop("values")
    assert after == before
    assert all(torch.equal(values[name], same[name]) for name in values)


def test_a_check_that_leaves_a_trace_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.no_grad()
    def careless(context: Any) -> Any:
        parameter = next(p for p in context.model.parameters() if p.requires_grad)
        parameter[0] += 1e-3
        return iter(())

    registry.lookup("check", "dropout-off", "test")  # or it would be registered twice
    monkeypatch.setitem(registry._registered["check"], "dropout-off", careless)
    without = trained(whole_model, tmp_path / "without", audits=0)
    after = trained(whole_model, tmp_path / "after", audits=1)
    assert after["losses"] != without["losses"]


def test_what_a_check_draws_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawing(context: Any) -> Any:
        random.random(), np.random.rand(), torch.rand(3)
        context.trainer.args.learning_rate = 1.0
        context.trainer.state.global_step = 7
        context.trainer.callback_handler.callbacks.clear()
        context.model.register_forward_hook(lambda *_: None)
        return iter(())

    registry.lookup("check", "dropout-off", "test")  # or it would be registered twice
    monkeypatch.setitem(registry._registered["check"], "dropout-off", drawing)
    without = trained(whole_model, tmp_path / "without", audits=0)
    after = trained(whole_model, tmp_path / "after", audits=1)
    assert after["losses"] == without["losses"] and after["drawn"] == without["drawn"]
    trainer = whole_model(tmp_path / "hooks")
    luthier.audit(trainer, only=["dropout-off"])
    assert not trainer.model._forward_hooks and trainer.state.global_step == 0
