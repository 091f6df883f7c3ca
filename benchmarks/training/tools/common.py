"""What the three trainers that build on transformers share: settings, the rows, and a clock.

Imports only what every peer's environment has.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

Settings = dict[str, Any]


def read() -> tuple[Settings, list[dict[str, Any]]]:
    """The settings named on the command line, and the rows in the order in which they are trained."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    return settings, json.loads(Path(settings["rows"]).read_text())


def arguments(settings: Settings) -> dict[str, Any]:
    """What is the same for all, as ``TrainingArguments`` name it."""
    return {
        "output_dir": settings["folder"],
        "max_steps": settings["steps"],
        "per_device_train_batch_size": settings["batch_size"],
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": settings["seed"],
        "use_cpu": True,
    }


def lora(settings: Settings) -> dict[str, Any] | None:
    """The adapter, as peft's ``LoraConfig`` names it; None to train the whole model."""
    if settings["full"]:
        return None
    return {
        "r": settings["rank"],
        "lora_alpha": settings["alpha"],
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }


class Clock(TrainerCallback):
    """Notes when each step ended, its loss, and which rows the trainer has, and writes that when training ends."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows
        self._ends: list[float] = []
        self._losses: list[float] = []
        self._same_rows = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        had = given["train_dataloader"].dataset
        self._same_rows = len(had) == len(self._rows) and all(
            list(had[i]["input_ids"]) == row["input_ids"] and list(had[i]["labels"]) == row["labels"]
            for i, row in enumerate(self._rows)
        )
        # What the dataset holds is one thing, in which order it is drawn another.
        sampler = given["train_dataloader"].batch_sampler.sampler
        self._same_rows &= list(sampler) == list(range(len(self._rows)))

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._ends.append(time.time())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **given: Any) -> None:
        if "loss" in logs:
            self._losses.append(float(logs["loss"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        size = args.per_device_train_batch_size
        tokens = [
            sum(len(row["input_ids"]) for row in self._rows[step * size : (step + 1) * size])
            for step in range(len(self._ends))
        ]
        result = {
            "ends": self._ends,
            "seconds": self._ends,
            "losses": self._losses,
            "tokens": tokens,
            "same_rows": self._same_rows,
        }
        Path(sys.argv[2]).write_text(json.dumps(result))
