"""A loss of 69.5 before the first step, with 280 classes: where it comes from, measured.

    python studies/loss-69/run.py        # writes results.json beside this file; a minute or two on a processor

A small Qwen3 with a head for 280 classes goes through transformers' Trainer and through Luthier's own step, with the same
weights and the same rows, at several numbers of accumulated micro-batches; then each other suspect is looked at alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from luthier.models.classifier import HEAD
from luthier.models.load import load_model, load_tokenizer
from luthier.recipe import Classifier, Head, Recipe
from luthier.records import Row
from luthier.run_folder import RunFolder
from luthier.train.loop import Loop, accumulate_gradients

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

import results  # noqa: E402 # what all benchmarks and studies write

NUM_CLASSES = 280
ACCUMULATION = (1, 2, 4, 8, 12, 16)
BATCH = 4
PAD, EOS, OTHER = 0, 1, 2  # the last one pads where the model does not expect it
VOCABULARY = 1000
LEARNING_STEPS = 60


def make_model(folder: Path, num_classes: int = NUM_CLASSES) -> Path:
    """A random Qwen3 with a head as transformers draws it, and a tokenizer of words."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=512, num_labels=num_classes, pad_token_id=PAD,
        eos_token_id=EOS, bos_token_id=None,
    )  # fmt: skip
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    words = {"<pad>": PAD, "<eos>": EOS, "<other>": OTHER} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<other>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<other>"
    ).save_pretrained(folder)
    return folder


def make_rows(
    count: int, num_classes: int = NUM_CLASSES, *, ends_in_eos: bool = False
) -> list[dict[str, Any]]:
    """Rows of random words, 20 to 60 of them, whose class is told by the first."""
    draw = np.random.default_rng(0)
    rows = []
    for index in range(count):
        label = index % num_classes
        ids = draw.integers(300, VOCABULARY, draw.integers(20, 60)).tolist()
        ids[0] = 3 + label
        rows.append({"input_ids": ids + [EOS] * ends_in_eos, "labels": label})
    return rows


def collate(rows: Sequence[dict[str, Any]], pad: int = PAD, multiple: int = 1) -> dict[str, Tensor]:
    """As transformers' collator with padding on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    longest += -longest % multiple
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[i, : len(row["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}


def trainer_step(
    folder: Path, rows: Sequence[Any], accumulation: int, *, accepts: bool | None = None, **changes: Any
) -> dict[str, float]:
    """What transformers' Trainer logs for its first step, and its eval loss."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    if accepts is not None:
        model.accepts_loss_kwargs = accepts
    with tempfile.TemporaryDirectory() as out:
        settings = {
            "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": accumulation, "max_steps": 1,
            "learning_rate": 1e-9, "logging_steps": 1, "max_grad_norm": 1.0, "report_to": "none", "use_cpu": True,
            "disable_tqdm": True, "save_strategy": "no", "remove_unused_columns": False, "lr_scheduler_type": "constant",
            "per_device_eval_batch_size": 16, "seed": 0, "log_level": "error",
        }  # fmt: skip
        arguments = TrainingArguments(output_dir=out, **{**settings, **changes})
        trainer = Trainer(
            model, arguments, train_dataset=list(rows), eval_dataset=make_rows(64), data_collator=collate
        )
        trainer.train()
        first = next(entry for entry in trainer.state.log_history if "loss" in entry)
        return {
            "loss": first["loss"],
            "gradient_norm": first["grad_norm"],
            "eval_loss": trainer.evaluate()["eval_loss"],
        }


def luthier_step(folder: Path, rows: Sequence[Any], accumulation: int) -> dict[str, float]:
    """Loss and gradient norm of Luthier's own step over the rows of so many micro-batches."""
    names = tuple(f"class{i}" for i in range(NUM_CLASSES))
    settings = Classifier(name=str(folder), adapter=None, precision="fp32", head=Head(names=names))
    model = load_model(settings, len(load_tokenizer(settings)), training=True, seed=0)
    loop = Loop(Recipe(), RunFolder(folder), model, None, None, None, None)  # type: ignore[arg-type] # no stage but the step
    count = BATCH * accumulation
    groups = [list(range(start, start + BATCH)) for start in range(0, count, BATCH)]
    loss = accumulate_gradients(loop, [_row(row) for row in rows[:count]], groups)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf)
    return {"loss": loss, "gradient_norm": float(norm)}


def _row(row: dict[str, Any]) -> Row:
    length = len(row["input_ids"])
    weights = np.zeros(length, np.float32)
    weights[-1] = 1.0
    return Row(
        id="", group="", input_ids=np.array(row["input_ids"], np.int32), loss_weights=weights,
        span_ids=np.zeros(length, np.int16), span_names=["text"], num_prompt_tokens=length, target="", target_bytes=0,
        meta={"label": row["labels"]},
    )  # fmt: skip


@torch.no_grad()
def first_loss(model: Any, rows: Sequence[Any], **padding: int) -> tuple[float, float]:
    """Mean loss of rows in batches outside of any trainer, and the spread of their logits over classes."""
    losses, spreads = [], []
    for start in range(0, len(rows), BATCH):
        batch = collate(rows[start : start + BATCH], **padding)
        output = model.eval()(**batch)
        losses.append(float(output.loss))
        spreads.append(float(output.logits.float().var(-1, unbiased=False).mean()))
    return float(np.mean(losses)), float(np.mean(spreads)) ** 0.5


def learned(folder: Path, rows: Sequence[Any], **padding: int) -> dict[str, float]:
    """A task that the first word answers, learned under one way to pad: the loss in the last ten steps, and of rows alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(LEARNING_STEPS):
        batch = collate([rows[(step * 16 + i) % len(rows)] for i in range(16)], **padding)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        alone = [float(model.eval()(**collate([row])).loss) for row in rows[:80]]
    return {"in_batches": float(np.mean(losses[-10:])), "alone": float(np.mean(alone))}


def suspects(folder: Path, easy: Path) -> dict[str, Any]:
    """The loss before training under each suspect alone, everything else as it should be."""
    rows, ended = make_rows(128), make_rows(128, ends_in_eos=True)

    def load(change: Callable[[Any], Any] = lambda model: None, **settings: Any) -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(folder, **settings)
        change(model)
        return model

    def eos_pads(model: Any) -> None:
        model.config.pad_token_id = EOS

    found: dict[str, Any] = {
        "as it should be": first_loss(load(), rows),
        "padding is EOS, and rows end in it": first_loss(load(eos_pads), ended, pad=EOS),
        "the head reads padding": first_loss(load(), rows, pad=OTHER),
        "padding to a multiple of 8": first_loss(load(), rows, multiple=8),
        "bf16": first_loss(load(dtype=torch.bfloat16), rows),
    }
    for gain in (4, 8, 16, 32):

        def larger(model: Any, gain: int = gain) -> None:
            model.model.norm.weight.data *= gain

        found[f"gains of the last norm times {gain}"] = first_loss(load(larger), rows)
    table = {name: {"loss": loss, "spread": spread} for name, (loss, spread) in found.items()}
    step = {"lr_scheduler_type": "linear", "warmup_steps": 10, "max_steps": 1}
    table["learning rate of 1e-3 after warm-up"] = {
        "loss": trainer_step(folder, rows, 1, learning_rate=1e-3, **step)["loss"],
        "reference": trainer_step(folder, rows, 1)["loss"],
    }
    few = make_rows(160, 8)
    table["learning"] = {
        "right": learned(easy, few),
        "reads padding": learned(easy, few, pad=OTHER),
        "uniform": math.log(8),
    }
    return table


def two_processes(folder: Path) -> dict[str, float]:
    """The first step of two processes with two micro-batches each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", __file__,
               "--as-process", str(folder)]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found: dict[str, float] = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith('{"loss"'))
    )
    return found


def study(folder: Path) -> dict[str, Any]:
    """Everything that the page tells."""
    began = time.perf_counter()
    model, easy = make_model(folder / "model"), make_model(folder / "easy", 8)
    rows = make_rows(BATCH * max(ACCUMULATION))
    by_trainer = {k: trainer_step(model, rows[: BATCH * k], k) for k in ACCUMULATION}
    by_luthier = {k: luthier_step(model, rows, k) for k in ACCUMULATION}
    uniform = math.log(NUM_CLASSES)
    head = AutoModelForSequenceClassification.from_pretrained(model)
    return {
        "num_classes": NUM_CLASSES,
        "uniform_loss": uniform,
        "head_std": float(getattr(head, HEAD).weight.detach().std()),
        "transformers": {str(k): step for k, step in by_trainer.items()},
        "transformers_told_not_to": trainer_step(model, rows[: BATCH * 12], 12, accepts=False),
        "two_processes_two_micro_batches": two_processes(model),
        "luthier": {str(k): step for k, step in by_luthier.items()},
        "suspects": suspects(model, easy),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="where the figures go")
    parser.add_argument("--as-process", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if arguments.as_process:
        step = trainer_step(arguments.as_process, make_rows(BATCH * 4), 2)
        if os.environ["RANK"] == "0":
            print(json.dumps(step))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = study(Path(folder))
    uniform = found["uniform_loss"]
    results.write(
        arguments.out,
        {
            "ratio_by_accumulation": {
                tool: {k: step["loss"] / uniform for k, step in found[tool].items()}
                for tool in ("transformers", "luthier")
            },
            "ratio_two_processes_two_micro_batches": found["two_processes_two_micro_batches"]["loss"]
            / uniform,
            "ratio_at_12_told_not_to": found["transformers_told_not_to"]["loss"] / uniform,
            "seconds": found["seconds"],
        },
        command="python studies/loss-69/run.py",
        packages=("transformers", "torch"),
        notes="Loss of the first step over ln C, for C classes, by the number of accumulated micro-batches.",
        **found,
    )


if __name__ == "__main__":
    main()
