"""Set-ups as people have them, with nothing wrong: recipes of each task and family of models, and tokenised files."""

import json
from pathlib import Path
from typing import Any

import torch
from tests.faults.suite import Said, cli, healthy
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_model import TEXTS
from tests.fixtures.tiny_run import write_recipe
from transformers import AutoModelForCausalLM

import luthier
from luthier.encoding.batches import collate
from luthier.models.forward import token_scores
from luthier.rows import Rows

PLAIN = {"type": "instruction", "format": "plain"}
CHAT = {"type": "instruction", "format": "chat"}


def checked(folder: Path, family: str, **changes: Any) -> Said:
    """``luthier check`` of the tiny recipe, with a model that has learned a little from its rows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_trainer.config(family))
    tiny_trainer.save_folder(folder / "model", model)
    recipe = write_recipe(folder, check={"waive": []}, **changes)
    run = luthier.prepare(recipe, folder=folder / "run")
    teach(model, Rows(run.rows("train"))).save_pretrained(folder / "model")
    return cli("check", recipe, "--run", folder / "run")


def teach(model: Any, rows: Rows) -> Any:
    """The model after fifty steps on the rows."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    for step in range(50):
        scores = token_scores(model, collate([rows.row((8 * step + i) % len(rows)) for i in range(8)], 2))
        (scores.weighted_sum() / scores.weights_N.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def questions(folder: Path, *, turns: int = 0) -> dict[str, Any]:
    """A ``data`` section over sums as prompts and responses, or as conversations of so many turns."""
    with open(folder / "sums.jsonl", "w") as file:
        for index in range(120):
            a, b = (index * 37) % 101, (index * 61) % 97
            asked = f"{TEXTS[index % len(TEXTS)][:14]} Sum {index}: {a} plus {b} is?"
            row: dict[str, Any] = {"prompt": asked, "response": f"It is {a + b}, of course."}
            if turns:
                answers = [f"It is {a + b + turn}, of course." for turn in range(turns)]
                row = {"messages": []}
                for turn, answer in enumerate(answers):
                    row["messages"] += [
                        {
                            "role": "user",
                            "content": asked if not turn else f"And {turn} more than sum {index}?",
                        },
                        {"role": "assistant", "content": answer},
                    ]
            file.write(json.dumps(row) + "\n")
    source = {"type": "files", "path": str(folder / "sums.jsonl")}
    return {"source": source, "max_length": 256, "near_duplicates": "off"}


@healthy
def line_completion_of_llama(folder: Path) -> Said:
    """The line-completion recipe with a tiny Llama and LoRA."""
    return checked(folder, "llama")


@healthy
def line_completion_of_gpt2_in_full(folder: Path) -> Said:
    """The line-completion recipe with a tiny GPT-2, all of its weights trained."""
    return checked(folder, "gpt2", model={"adapter": None}, train={"learning_rate": 1e-3})


@healthy
def line_completion_of_mamba(folder: Path) -> Said:
    """The line-completion recipe with a tiny Mamba and LoRA."""
    return checked(folder, "mamba")


@healthy
def instructions_of_mistral(folder: Path) -> Said:
    """Prompts and responses in plain text with a tiny Mistral and LoRA."""
    return checked(folder, "mistral", task=PLAIN, data=questions(folder))


@healthy
def chat_of_qwen3(folder: Path) -> Said:
    """Conversations of one turn through ChatML with a tiny Qwen3 and LoRA."""
    return checked(folder, "qwen3", task=CHAT, data=questions(folder, turns=1))


@healthy
def long_chat_of_qwen3_in_full(folder: Path) -> Said:
    """Conversations of three turns through ChatML with a tiny Qwen3, all of its weights trained."""
    return checked(
        folder,
        "qwen3",
        task=CHAT,
        data=questions(folder, turns=3),
        model={"adapter": None},
        train={"learning_rate": 1e-3},
    )


@healthy
def tokenised_json_lines(folder: Path) -> Said:
    """A JSON lines file of ids, masks and labels, and the model folder that they are for."""
    tiny_trainer.save_folder(folder / "model")
    lines = (json.dumps(item) + "\n" for item in tiny_trainer.items(60))
    (folder / "rows.jsonl").write_text("".join(lines))
    return luthier.audit(model=folder / "model", rows=folder / "rows.jsonl")


@healthy
def trainer_of_gpt2_that_accumulates(folder: Path) -> Said:
    """A Trainer with a tiny GPT-2, all weights trained, eight micro-batches a step."""
    return luthier.audit(tiny_trainer.trainer(tiny_trainer.model("gpt2"), gradient_accumulation_steps=8))


@healthy
def trainer_of_mamba(folder: Path) -> Said:
    """A Trainer with a tiny Mamba."""
    return luthier.audit(tiny_trainer.trainer(tiny_trainer.model("mamba")))


@healthy
def trainer_of_qwen3_without_a_tokenizer(folder: Path) -> Said:
    """A Trainer with a tiny Qwen3 that is given a collator, but no tokenizer."""
    made = tiny_trainer.trainer(tiny_trainer.model("qwen3"))
    made.processing_class = None
    return luthier.audit(made)


@healthy
def classifier_of_280_classes(folder: Path) -> Said:
    """A Trainer with a fresh Qwen3 classifier of 280 classes that does not take loss arguments, accumulating twelve times."""
    made = tiny_trainer.classifier(num_labels=280)
    made.accepts_loss_kwargs = False
    return luthier.audit(
        tiny_trainer.class_trainer(
            made, num_labels=280, train=tiny_trainer.class_items(560, 280), gradient_accumulation_steps=12
        )
    )
