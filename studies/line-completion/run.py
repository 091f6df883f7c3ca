"""BiGS, Mamba-2 and a Transformer of the same size, pretrained and tuned on the same code: line completion compared.

    python studies/line-completion/run.py                    # all of it; two hours on two cores
    python studies/line-completion/run.py --part choose    # one part; none takes more than 45 minutes

Parts: data, truncation, pretrain-MODEL, choose (a learning rate for each), tune (the other seeds), reference (the embedded model),
naive (rows cut off at the right), compare. What is finished is not done again, and a run that was cut off goes on from its
last checkpoint. Every figure of results.json is of a run folder below build/line-completion.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import table
import truncation

from luthier.evaluate.significance import Ratio, compare, with_intervals
from luthier.report.compare import paired_scores
from luthier.report.sweep import over_seeds
from luthier.rows import Rows
from luthier.run_folder import RunFolder, hash_file, read_json, read_jsonl, write_json

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

import results  # noqa: E402 # what all benchmarks and studies write

WORK = HERE.parents[1] / "build" / "line-completion"
# Layers of 11 D^2 weights in BiGS, of 13 D^2 in the Transformer and of 6 D^2 in Mamba-2, around the same embedding: 6.1 to 6.2 million.
MODELS: dict[str, dict[str, Any]] = {
    "bigs": {"model_type": "bigs", "hidden_size": 256, "num_hidden_layers": 7, "form": "causal-convolution"},
    "mamba2": {
        "model_type": "mamba2", "hidden_size": 256, "num_hidden_layers": 12, "num_heads": 8, "head_dim": 64,
        "state_size": 64, "n_groups": 1, "chunk_size": 64, "initializer_range": 0.02, "tie_word_embeddings": True,
    },
    "transformer": {
        "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 4, "intermediate_size": 768, "max_position_embeddings": 512, "tie_word_embeddings": True,
    },
}  # fmt: skip
RATES = ("3e-5", "1e-4", "3e-4")
SEEDS = (0, 1, 2)
METRICS = (
    "codexglue_exact_match",
    "codexglue_edit_similarity",
    "bits_per_byte",
    "loss",
    "perplexity",
    "token_accuracy",
)
PARTS = (
    "data",
    "truncation",
    *(f"pretrain-{name}" for name in MODELS),
    "choose",
    "tune",
    "reference",
    "naive",
    "compare",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, help="only this; those before it must be done")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the runs")
    parser.add_argument(
        "settings", nargs="*", help="key=value for every run, to try the study out; --work then too"
    )
    options = parser.parse_args()
    if options.settings and options.work == WORK:
        parser.error("key=value changes the study: name another --work for it")
    study = Study(options.work, options.settings)
    for part in [options.part] if options.part else PARTS:
        action, _, model = part.partition("-")
        getattr(study, action)(*[model] * bool(model))


class Study:
    """The parts in order; each leaves what it made below the folder."""

    def __init__(self, work: Path, settings: Sequence[str]) -> None:
        self.work, self.settings = work, list(settings)
        self.data_folder = work / "py150"

    def data(self) -> None:
        """CodeXGLUE's token-level format from releases on PyPI."""
        if not (self.data_folder / "test_files.json").is_file():
            command = [sys.executable, HERE / "codexglue_data.py", self.data_folder]
            subprocess.run(command, check=True)

    def truncation(self) -> None:
        """Shares of rows without a target, naive and ours."""
        if not (self.work / "truncation.json").is_file():
            write_json(self.work / "truncation.json", truncation.shares(self.data_folder / "train.txt"))

    def pretrain(self, name: str) -> None:
        """One of the models from random weights."""
        text = json.dumps(MODELS[name]).replace('"', "")
        self.run("pretrain", f"pretrain-{name}", f"model.scratch.config={text}")

    def choose(self) -> None:
        """Each model's learning rate: the lower validation loss of seed 0."""
        for name in MODELS:
            for rate in RATES:
                self.tuned(name, rate, 0)

    def tune(self) -> None:
        """The other seeds at the chosen learning rate."""
        for name in MODELS:
            for seed in SEEDS[1:]:
                self.tuned(name, self.rate(name), seed)

    def reference(self) -> None:
        """The embedded model by LoRA, at the library's rate for adapters."""
        own = (
            "model.name=embedded:smollm2-135m",
            "model.adapter={rank: 16, alpha: 32}",
            "train.learning_rate=2e-4",
        )
        self.run("tune", "tune-embedded", *own)

    def naive(self) -> None:
        """BiGS on the very same rows, cut off at the right; of those that keep nothing of their target nothing can be learned."""
        # Rows without an end are what is to be seen here.
        own = (f"task.type={HERE / 'naive.py'}@naive-line", "check.waive=[split-overlap, stop-token]")
        start = (*self.start("bigs", self.rate("bigs"), 0), *own)
        chosen = self.ids(f"tune-bigs-{self.rate('bigs')}-seed0")
        self.run("tune", "naive-rows", *start, verb="prepare")
        left = len(chosen - self.lost())
        self.run("tune", "tune-bigs-naive", *start, f"data.max_rows={{train: {left}, eval: 150, test: 400}}")
        if others := self.ids("tune-bigs-naive") - chosen:
            raise SystemExit(
                f"{len(others)} naive rows are not among those of the other runs: {sorted(others)[:3]}"
            )

    def ids(self, name: str) -> set[str]:
        """Training rows of a run."""
        return set(Rows(self.folder(name).rows("train")).column("id").to_pylist())

    def lost(self) -> set[str]:
        """Rows that keep nothing of their target when they are cut off at the right."""
        dropped = read_jsonl(self.folder("naive-rows").data / "dropped.jsonl")
        return {entry["id"] for entry in dropped if entry["reason"] == "no-target-left"}

    def start(self, name: str, rate: str, seed: int) -> tuple[str, ...]:
        """Overrides by which a pretrained model is tuned."""
        folder = self.work / f"pretrain-{name}" / "model"
        return (f"model.name={folder}", f"train.learning_rate={rate}", f"seed={seed}")

    def tuned(self, name: str, rate: str, seed: int) -> None:
        """One fine-tuning of a pretrained model."""
        self.run("tune", f"tune-{name}-{rate}-seed{seed}", *self.start(name, rate, seed))

    def rate(self, name: str) -> str:
        """The learning rate with the lower validation loss."""
        return min(RATES, key=lambda rate: _best_loss(self.folder(f"tune-{name}-{rate}-seed0")))

    def folder(self, name: str) -> RunFolder:
        """A run by its name."""
        return RunFolder(self.work / name)

    def run(self, recipe: str, name: str, *overrides: str, verb: str = "run") -> None:
        """``luthier run``, or another verb, of one of the study's recipes, unless the run is finished."""
        stages = self.folder(name).stages
        if stages.is_file() and "evaluate" in read_json(stages):  # the page alone can be made anew
            return
        print(f"{datetime.datetime.now():%H:%M:%S} {name}", flush=True)
        data = [
            f"data.{key}.path={self.data_folder / file}.txt"
            for key, file in (("source", "train"), ("eval_source", "dev"), ("test_source", "test"))
            if recipe == "tune" or key == "source"
        ]
        command = [
            sys.executable,
            "-m",
            "luthier",
            verb,
            HERE / f"{recipe}.yaml",
            *data,
            *overrides,
            *self.settings,
        ]
        done = subprocess.run([*command, "--run", self.work / name], check=False)
        if done.returncode:  # luthier has said why
            raise SystemExit(done.returncode)

    def compare(self) -> None:
        """results.json, the page of the documentation's table, the comparison page and its curves."""
        by_model = {
            name: [self.folder(f"tune-{name}-{self.rate(name)}-seed{seed}") for seed in SEEDS]
            for name in MODELS
        }
        by_model["embedded"] = [self.folder("tune-embedded")]
        by_model["bigs-naive"] = [self.folder("tune-bigs-naive")]
        figures: dict[str, Any] = dict(read_json(self.work / "truncation.json"))
        for name, runs in by_model.items():
            figures |= scores_of(name, runs, SEEDS)
        for one, other in (
            ("bigs", "mamba2"),
            ("bigs", "transformer"),
            ("mamba2", "transformer"),
            ("bigs", "bigs-naive"),
        ):
            figures |= differences(one, other, by_model)
        for name in MODELS:
            pretrained = self.folder(f"pretrain-{name}")
            history = read_jsonl(pretrained.history)
            figures[f"{name}/parameters"] = read_json(pretrained.environment)["parameters"]
            figures[f"{name}/pretraining_tokens"] = history[-1]["tokens"]
            figures[f"{name}/pretraining_bits_per_byte"] = round(
                min(row["eval"]["bits_per_byte"] for row in history if row.get("eval")), 4
            )
            figures[f"{name}/learning_rate"] = float(self.rate(name))
        chosen = self.ids(f"tune-bigs-{self.rate('bigs')}-seed0")
        figures["naive_untrained_rows_of_study"] = round(len(chosen & self.lost()) / len(chosen), 4)
        official = self.work == WORK
        results.write(
            table.RESULTS if official else self.work / "results.json",
            figures,
            command="python studies/line-completion/run.py",
            packages=("torch", "transformers", "tokenizers", "luthier"),
            notes=f"Training file {hash_file(self.data_folder / 'train.txt')[:12]} (SHA-256). MODEL/seedN/METRIC: [score, low, high], "
            "95% bootstrap over files of the test project. MODEL/METRIC: [mean, lowest, highest] over seeds. "
            "ONE_minus_OTHER/METRIC: [mean, low, high] of the differences, Student's interval over seeds; of a single pair its "
            "bootstrap interval.",
        )
        first = [str(runs[0].path) for runs in by_model.values()]
        out = self.work / "comparison"
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "luthier", "compare", *first, "--out", out], check=True)
        if official:
            shutil.copy(out / "curves.png", table.CURVES)
        print(f"page: {out / 'report.html'}")


def _best_loss(run: RunFolder) -> float:
    """Of the evaluations after training began."""
    return min(row["eval"]["loss"] for row in read_jsonl(run.history) if row.get("eval") and row["step"])


def scores_of(name: str, runs: Sequence[RunFolder], seeds: Sequence[int]) -> dict[str, list[float]]:
    """Each seed's scores with intervals, and their mean, lowest and highest."""
    found: dict[str, list[float]] = {}
    for run, seed in zip(runs, seeds, strict=False):
        for metric, interval in intervals(read_jsonl(run.predictions)).items():
            found[f"{name}/seed{seed}/{metric}"] = interval
    for metric in METRICS:
        values = [found[f"{name}/seed{seed}/{metric}"][0] for _, seed in zip(runs, seeds, strict=False)]
        found[f"{name}/{metric}"] = [round(value, 4) for value in (fmean(values), min(values), max(values))]
    return found


def intervals(predictions: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Each metric of the tuned model with its bootstrap interval over files."""
    tuned = [{**row["tuned"], **row["tuned"]["scores"], "bits": row["tuned"]["loss_nats"] / math.log(2),
              "bytes": row["target_bytes"], "one": 1} for row in predictions]  # fmt: skip
    columns = {
        "codexglue_exact_match": ("codexglue_exact_match", "one"),
        "codexglue_edit_similarity": ("codexglue_edit_similarity", "one"),
        "bits_per_byte": ("bits", "bytes"),
        "loss": ("weighted_nats", "weight"),
        "token_accuracy": ("num_correct", "num_tokens"),
    }
    ratios = {
        metric: Ratio([row[above] for row in tuned], [row[below] for row in tuned])
        for metric, (above, below) in columns.items()
    }
    found = {
        metric: [one["value"] or 0.0, *(one["interval"] or (math.nan, math.nan))]
        for metric, one in with_intervals(ratios, [row["group"] for row in predictions]).items()
    }
    found["perplexity"] = [
        math.exp(value) for value in found["loss"]
    ]  # exp keeps order, so quantiles stay quantiles
    return {metric: [round(value, 4) for value in values] for metric, values in found.items()}


def differences(one: str, other: str, runs: Mapping[str, Sequence[RunFolder]]) -> dict[str, list[float]]:
    """Seed by seed on the same rows."""
    tests = []
    for run, against in zip(runs[one], runs[other], strict=False):
        scores, problem = paired_scores(against, run, compare)
        if problem:
            raise SystemExit(f"{run.path} against {against.path}: {problem}")
        tests.append(scores["metrics"])
    found = {}
    for metric in METRICS:
        entry = over_seeds([test[metric] for test in tests])
        low, high = entry["interval"]
        found[f"{one}_minus_{other}/{metric}"] = [
            round(value, 4) for value in (entry["difference"], low, high)
        ]
    return found


if __name__ == "__main__":
    main()
