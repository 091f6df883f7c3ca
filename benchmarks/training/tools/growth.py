"""One point of how cost grows: rows of a length, a number of rows, a size of model; Luthier's own loop, without its checks.

A model of random weights does not pass them, and they are not what is measured here.
"""

import json
import sys
import time
from itertools import islice, pairwise
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from luthier import pipeline
from luthier.models.load import resolve
from luthier.recipe import Model
from luthier.run_folder import read_json, read_jsonl
from luthier.sources.stdlib import Stdlib
from luthier.train.loop import train
from tools.inside import opened
from tools.prepare import functions, weights


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(settings["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    name = settings["name"]
    if settings["shape"]:
        name = random_model(name, settings["shape"], folder / "model")
    source = folder / "rows.jsonl"
    rows = long_rows(settings) if settings["share_of_rows"] is None else function_rows(settings)
    source.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in rows))
    recipe = {
        "task": {"type": "instruction", "format": "plain", "response_template": "{{ completion }}"},
        "model": {"name": name},
        "data": {
            "source": {"type": "files", "path": str(source)},
            "splits": {"train": 1.0, "eval": 0.0, "test": 0.0},
            "max_length": settings["length"],
            "near_duplicates": "off",
            "drop_budget": 1.0,
        },
        "train": {
            "epochs": settings["steps"],
            "max_steps": settings["steps"],
            "batch_size": settings["batch_size"],
            "schedule": "constant",
            "warmup_steps": 0,
            "num_samples": 0,
            "checkpoint_every_steps": settings["steps"],
            "keep": "last",
            "compile": True,
        },
    }
    began = time.time()
    run = pipeline.prepare(recipe, folder=folder / "run")
    prepare_s = time.time() - began
    loop = opened(recipe, str(run.path))
    train(loop, "growth")
    history = [row for row in read_jsonl(run.history) if row["step"]]
    ledger = read_json(run.ledger)
    result = {
        "seconds": [row["seconds"] for row in history],
        "tokens": [after - before for before, after in pairwise([0, *(row["tokens"] for row in history)])],
        "trained_share": history[-1]["trained_tokens"] / history[-1]["tokens"],
        "rows": ledger["rows"]["kept"],
        "prepare_s": round(prepare_s, 2),
        "parameters": sum(p.numel() for p in loop.model.get_base_model().parameters() if not p.requires_grad),
        "engine": loop.engine.to_dict(),
        **weights(resolve(Model(name=name)), loop.recipe.model.adapter.rank),
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


def random_model(like: str, shape: dict[str, int], folder: Path) -> str:
    """A Llama of random weights in bf16, with the tokenizer of another model."""
    if not (folder / "model.safetensors").is_file():
        given = resolve(Model(name=like))
        known = AutoConfig.from_pretrained(given)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=known.vocab_size,
            bos_token_id=known.bos_token_id,
            eos_token_id=known.eos_token_id,
            pad_token_id=known.pad_token_id,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            **shape,
        )
        AutoTokenizer.from_pretrained(given).save_pretrained(folder)
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder, max_shard_size="100GB")
    return str(folder)


def long_rows(settings: dict) -> list[tuple[str, str]]:
    """Parts of the library's files that fill a row of the length: a long prompt, which is trimmed, and a completion."""
    wanted, length = settings["steps"] * settings["batch_size"], settings["length"]
    found = []
    for record in Stdlib(min_bytes=12 * length).records():
        text = getattr(record, "fields", {"text": ""})["text"]
        # At most one token a letter, so that a completion of that many always fits.
        start, end = 8 * length, 8 * length + length
        if text[:end].isascii() and text[start:end].strip():
            found.append((text[:start].rstrip(), text[len(text[:start].rstrip()) : end]))
        if len(found) == wanted:
            return found
    raise SystemExit(f"only {len(found)} of {wanted} files are long enough for rows of {length} tokens")


def function_rows(settings: dict) -> list[tuple[str, str]]:
    """A share of all functions."""
    every = list(functions())
    return [
        (head, text[len(head) :])
        for text, head in islice(every, round(settings["share_of_rows"] * len(every)))
    ]


if __name__ == "__main__":
    main()
