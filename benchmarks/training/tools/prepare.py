"""What is done before any measurement: the rows, the recipe, Luthier's ``prepare`` and ``check``, the order of the rows."""

import ast
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from luthier import pipeline
from luthier.encoding.batches import shuffled
from luthier.models.load import load_tokenizer, resolve
from luthier.recipe import Model
from luthier.rows import Rows
from luthier.run_folder import read_json
from luthier.sources.stdlib import Stdlib

LEAST_LINES, MOST_TOKENS = 4, 796


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(settings["folder"])
    tokenizer = load_tokenizer(Model(name=settings["name"]))
    rows = []
    for text, head in functions():
        row = {"prompt": head, "completion": text[len(head) :]}
        if len(tokenizer.encode(text)) < MOST_TOKENS - 1:  # the parts may take one more, and the end is one
            rows.append(row)
        if len(rows) == settings["num_rows"]:
            break
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"model": resolve(Model(name=settings["name"])), "eos_token": tokenizer.hf.eos_token}
    result |= weights(result["model"], settings["rank"])
    for kind, changes in settings["kinds"].items():
        recipe = {
            "name": f"benchmark-{kind}",
            "seed": settings["seed"],
            "task": {"type": "instruction", "format": "plain", "response_template": "{{ completion }}"},
            "model": {"name": settings["name"], "adapter": None, **changes["model"]},
            "data": {
                "source": {"type": "files", "path": str(source)},
                "splits": {"train": 1.0, "eval": 0.0, "test": 0.0},
                "max_length": settings["max_length"],
                "near_duplicates": "off",
            },
            # The peers train without an evaluation, so Luthier does, and has no loss to choose a checkpoint by.
            "check": {"waive": ["schedule", *settings["waive"]]},
            "train": {
                "epochs": settings["steps"],  # more than enough: max_steps ends it
                "max_steps": settings["steps"],
                "batch_size": settings["batch_size"],
                "schedule": "constant",
                "warmup_steps": 0,
                "weight_decay": 0.0,
                "num_samples": 0,
                "checkpoint_every_steps": settings["steps"],  # the last: the peers save nothing
                "keep": "last",
                **changes["train"],
            },
        }
        began = time.time()
        run = pipeline.check(recipe, folder=folder / f"run-{kind}")
        seconds = round(time.time() - began, 1)
        findings = read_json(run.findings)
        for found in findings["findings"]:
            print(f"{kind}: {found['severity']}: {found['check']}: {found['what']}")
        result[kind] = {"recipe": recipe, "check_s": seconds, "folder": str(run.path)}
        encoded = Rows(run.rows("train"))
    order = shuffled(0, settings["steps"] * settings["batch_size"], len(encoded), settings["seed"])
    given = []
    for index in order:
        row = encoded.row(index)
        labels = [
            int(token) if weight else -100
            for token, weight in zip(row.input_ids, row.loss_weights, strict=True)
        ]
        line = int(row.id.rpartition(":")[2])
        given.append({"input_ids": row.input_ids.tolist(), "labels": labels, **rows[line - 1]})
    (folder / "rows.json").write_text(json.dumps(given))
    tokens = [len(row["input_ids"]) for row in given]
    result |= {
        "num_tokens": sum(tokens),
        "trained_share": sum(label >= 0 for row in given for label in row["labels"]) / sum(tokens),
        "longest": max(tokens),
        "median": sorted(tokens)[len(tokens) // 2],
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


def functions() -> Iterator[tuple[str, str]]:
    """Every function of the standard library once, in an order that their hashes draw; and its first part.

    The first part is signature and docstring, or half of the lines where there is none, without white space at its end: a
    prompt that ends in a line break splits the token of line break and indent.
    """
    found: dict[str, str] = {}
    for record in Stdlib().records():
        fields = getattr(record, "fields", None)
        if fields is None or not fields["path"].endswith(".py"):
            continue
        try:
            tree = ast.parse(fields["text"])
        except SyntaxError:
            continue
        lines = fields["text"].splitlines(keepends=True)
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            own = lines[node.lineno - 1 : node.end_lineno]
            if len(own) < LEAST_LINES:
                continue
            first = len(own) // 2
            if ast.get_docstring(node) is not None and len(node.body) > 1:
                first = (node.body[0].end_lineno or node.lineno) - node.lineno + 1
            text, head = "".join(own).rstrip(), "".join(own[:first]).rstrip()
            if head != text:
                found[text] = head
    yield from sorted(found.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())


def weights(folder: str, rank: int) -> dict[str, int]:
    """How many weights of a model are multiplied with in its layers, in an adapter of that rank, and in the head."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return {
        "layer_weights": sum(m.weight.numel() for m in linear),
        "adapter_weights": sum(rank * (m.in_features + m.out_features) for m in linear),
        "head_weights": head.weight.numel(),
    }


if __name__ == "__main__":
    main()
