"""What the checks of a million prepared rows cost, and whether memory stays flat from 100,000 to 1,000,000 rows.

    python benchmarks/checks/run.py             # about ten minutes on two cores; writes results.json beside this file

Rows of about 200 tokens are made once for each size; all checks that need no model then run over them in a fresh
process. Rows and finished measurements are kept in the work folder, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import results  # noqa: E402 # what all benchmarks and studies write

SIZES = (100_000, 1_000_000)
BATCH = 1000
SHARES = {"train": 0.96, "eval": 0.02, "test": 0.02}
# So many rows of each split have their raw record in a file, for the check that makes rows again from it.
NUM_RECORDS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "luthier-benchmark-checks")
    parser.add_argument(
        "--rows", type=int, nargs="+", help="other sizes; then nothing is written beside this file"
    )
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.measure:
        measure(options.work / str(options.measure))
        return
    figures: dict[str, float] = {}
    sizes = options.rows or SIZES
    for size in sizes:
        folder = options.work / str(size)
        generate(folder, size)
        done = folder / "measured.json"
        if not done.is_file() or options.rows:
            command = [sys.executable, __file__, "--work", str(options.work), "--measure", str(size)]
            process = subprocess.Popen(command)
            private = peak_private_memory(process)
            if process.returncode:
                raise SystemExit(f"the measurement failed: {' '.join(command)}")
            measured = json.loads((folder / "measured.part").read_text()) | {"peak_private_mib": private}
            done.write_text(json.dumps(measured))
        measured = json.loads(done.read_text())
        print(f"{size:,} rows: {json.dumps(measured, indent=1)}", flush=True)
        figures |= {f"{name}_{size}_rows": value for name, value in measured.items()}
    if options.rows:
        return
    ends = [figures[f"peak_private_mib_{size}_rows"] for size in (SIZES[0], SIZES[-1])]
    figures["peak_private_growth_mib"] = round(ends[1] - ends[0], 1)
    results.write(
        HERE / "results.json",
        figures,
        command="python benchmarks/checks/run.py",
        packages=("pyarrow", "numpy", "tokenizers", "transformers", "rensa"),
        notes="Synthetic instruction rows of about 200 tokens, one process. "
        "Seconds of each check that needs no model, wall clock; those of the others are what it takes to say that they are "
        "left out. Private memory: without the pages of memory-mapped files, which the system takes back as it likes, "
        "sampled twenty times a second; resident size with them; both with all imports.",
    )


class Words:
    """Made-up words drawn by Zipf's law, and their token ids: words that follow a space are encoded one by one."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        draw = np.random.default_rng(0)
        letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
        common = 1 / np.arange(1, len(letters) + 1)
        lengths = draw.integers(2, 10, 20_000)
        words = ["".join(draw.choice(letters, n, p=common / common.sum())) for n in lengths]
        self.words = np.array([" " + word for word in dict.fromkeys(words)], dtype=object)
        shares = 1 / (np.arange(len(self.words)) + 3.0)
        self.cumulated = np.cumsum(shares / shares.sum())
        if not (folder / "tokenizer.json").is_file():
            make_model(folder, self.words.tolist())
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        encoded = self.tokenizer(self.words.tolist(), add_special_tokens=False)["input_ids"]
        self.lengths = np.array([len(ids) for ids in encoded])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])[:-1]
        self.ids = np.concatenate([np.array(ids, np.int32) for ids in encoded])

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Indices of so many words."""
        return np.searchsorted(self.cumulated, generator.random(count)).clip(max=len(self.words) - 1)

    def encode(self, words: np.ndarray) -> np.ndarray:
        """The ids of words one after the other."""
        lengths = self.lengths[words]
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
        return self.ids[np.repeat(self.starts[words], lengths) + within]


def make_model(folder: Path, words: list[str]) -> None:
    """A byte-level BPE of these words and a tiny Llama, since a recipe names a model folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(words, trainer)
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(hf), eos_token_id=0, pad_token_id=0, **sizes)
    ).save_pretrained(folder)
    hf.save_pretrained(folder)


def generate(folder: Path, num_rows: int) -> None:
    """A run folder as ``prepare`` leaves it: Arrow files, ledger, manifest; a recipe's tree and its model beside it."""
    from luthier.prepare.ledger import describe
    from luthier.rows import RowWriter
    from luthier.run_folder import RunFolder, write_json

    run = RunFolder(folder / "run")
    if run.manifest.is_file():
        return
    run.data.mkdir(parents=True, exist_ok=True)
    words = Words(folder / "model")
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as records:
        for number, (split, share) in enumerate(SHARES.items()):
            draw = np.random.default_rng(number)
            with RowWriter(run.rows(split)) as writer:
                for start in range(0, round(num_rows * share), BATCH):
                    count = min(BATCH, round(num_rows * share) - start)
                    batch, texts = rows(words, draw, split, start, count)
                    writer.write(batch)
                    for name, prompt, response in texts if start == 0 else ():
                        records.write(json.dumps({"id": name, "prompt": prompt, "response": response}) + "\n")
    splits = {split: describe(run.rows(split)) for split in SHARES}
    counts = {"in": num_rows, "kept": sum(facts["rows"] for facts in splits.values()), "dropped": {}}
    write_json(
        run.ledger,
        {"records": counts, "rows": counts, "drop_share": 0.0, "drop_budget": 0.05, "splits": splits},
    )
    write_json(run.manifest, {"key": "", "inputs": {}, "files": {}})


def rows(
    words: Words, draw: np.random.Generator, split: str, start: int, count: int
) -> tuple[pa.RecordBatch, list[tuple[str, str, str]]]:
    """Some prepared rows, and name, prompt and response of the first of them.

    Three in ten begin with one of ten system prompts; one in a hundred is a near copy of the one before it.
    """
    from luthier.rows import SCHEMA

    systems = [words.draw(np.random.default_rng(1000 + i), 30) for i in range(10)]
    drawn = words.draw(draw, count * 400)
    sizes = np.clip(draw.lognormal(4.35, 0.5, count), 10, 300).astype(int)
    prompts, responses, last = [], [], drawn[:0]
    for i in range(count):
        own = drawn[i * 400 : i * 400 + int(sizes[i])]
        if i and draw.random() < 0.01:
            own = last.copy()
            own[len(own) // 2] = drawn[i * 400 + 399]
        last = own
        third = len(own) // 3
        system = [systems[int(draw.integers(10))]] if draw.random() < 0.3 else []
        prompts.append(np.concatenate([*system, own[:third]]))
        responses.append(own[third:])
    parts = [words.encode(part) for pair in zip(prompts, responses, strict=True) for part in pair]
    num_prompt = np.array([len(part) for part in parts[::2]])
    num_response = np.array([len(part) for part in parts[1::2]])
    offsets = np.concatenate([[0], np.cumsum(num_prompt + num_response + 1)]).astype(np.int32)
    end = np.zeros(1, np.int32)  # the id of <|end|>
    ids = np.concatenate([x for i in range(count) for x in (parts[2 * i], parts[2 * i + 1], end)])
    spans = np.concatenate(
        [
            np.repeat(np.array([0, 1, 2], np.int16), [p, r, 1])
            for p, r in zip(num_prompt, num_response, strict=True)
        ]
    )
    names = [f"{split}-{start + i}" for i in range(count)]
    targets = ["".join(words.words[r]) for r in responses]

    def lists(values: np.ndarray) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))

    columns: dict[str, Any] = {
        "id": names,
        "group": names,
        "input_ids": lists(ids),
        "loss_weights": lists((spans > 0).astype(np.float32)),
        "span_ids": lists(spans),
        "span_names": [["prompt", "response", "stop"]] * count,
        "num_prompt_tokens": num_prompt,
        "target": targets,
        "target_bytes": [len(target) for target in targets],
        "lossy": [False] * count,
        "trimmed": ["{}"] * count,
        "meta": ['{"format": "plain"}'] * count,
    }
    arrays = [
        columns[f.name] if isinstance(columns[f.name], pa.Array) else pa.array(columns[f.name], f.type)
        for f in SCHEMA
    ]
    texts = [(names[i], "".join(words.words[prompts[i]]), targets[i]) for i in range(min(NUM_RECORDS, count))]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA), texts


def measure(folder: Path) -> None:
    """Runs all checks that need no model in this process and writes what they took."""
    from luthier import registry
    from luthier.check.context import RunContext
    from luthier.check.runner import check
    from luthier.recipe import Recipe
    from luthier.run_folder import RunFolder
    from luthier.train.rehearsal import Rehearsal

    recipe = Recipe.model_validate(
        {
            "task": {"type": "instruction", "format": "plain"},
            "model": {"name": str(folder / "model"), "precision": "fp32"},
            "data": {
                "source": {"type": "files", "path": str(folder / "rows.jsonl"), "id_column": "id"},
                "max_length": 1024,
            },
        }
    )
    registry.registered("check")
    context = RunContext(
        recipe,
        RunFolder(folder / "run"),
        lambda c: Rehearsal(c.recipe, c.run, lambda: c.model, lambda: c.tokenizer),
        quick=True,
    )
    start_memory, load = psutil.Process().memory_info().rss, os.getloadavg()[0]
    start, start_cpu = time.perf_counter(), time.process_time()
    report = check(context)
    result = {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - start_cpu, 2),
        "load_average_at_start": round(load, 1),
        "start_resident_mib": round(start_memory / 2**20, 1),
        "peak_resident_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "tokens_per_row": round(float(context.rows["train"].lengths().mean()), 1),
        "findings": len(report.findings),
        **{f"seconds_{name}": seconds for name, seconds in ran(report)},
    }
    for finding in report.findings:
        print(f"{finding.severity} {finding.check}: {finding.what}")
    (folder / "measured.part").write_text(json.dumps(result))


def ran(report: Any) -> Iterator[tuple[str, float]]:
    """The checks that were not skipped, the slowest first."""
    skipped = {skip["check"] for skip in report.skipped}
    yield from sorted(
        ((n, s) for n, s in report.seconds.items() if n not in skipped), key=lambda item: -item[1]
    )


def peak_private_memory(process: subprocess.Popen[bytes]) -> float:
    """Samples a process until it ends: most memory that is its own, in MiB."""
    most = 0
    while process.poll() is None:
        time.sleep(0.05)
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:  # it has just ended
            continue
        values = dict(line.split(":", 1) for line in status.splitlines())
        most = max(most, int(values.get("RssAnon", "0").split()[0]))
    return round(most / 1024, 1)


if __name__ == "__main__":
    main()
