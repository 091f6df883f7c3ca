"""From which of 240 modules does a function come? The embedded model, by a head and by words, against hashed n-grams.

    python studies/code-to-module/run.py --work build/code-to-module     # two runs of the recipe, and the cost of label words

Writes results.json beside this file: macro F1 of model and baseline with the interval of the difference, for each way, and
what it costs to score all labels as words, as a multiple of one forward pass over the text.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from luthier import pipeline, recipe_file
from luthier.encoding.batches import collate, micro_batches
from luthier.evaluate import significance
from luthier.models.forward import base_model, forward_inputs
from luthier.models.generate import prompt_row
from luthier.models.label_words import LabelTree, label_scores
from luthier.models.load import load_tokenizer, load_trained
from luthier.records import Row
from luthier.rows import Rows
from luthier.run_folder import RunFolder, read_json, read_jsonl

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

import results  # noqa: E402 # what all benchmarks and studies write

WAYS = ("head", "words")
TIMED_ROWS, TIMES = 64, 3
LONGER = 211  # tokens of the texts that the task was made for: three million snippets of 280 classes
CHECKED_ROWS = 4


def own_f1(place: RunFolder) -> dict[str, Any]:
    """Macro F1 of model and baseline, each with an interval of its own."""
    told = read_jsonl(place.predictions)
    labels, base, tuned = significance.hot(
        [[row["labels"], row["base"]["labels"], row["tuned"]["labels"]] for row in told]
    )
    groups, options = [row["group"] for row in told], recipe_file.load(place.recipe)
    found = {}
    for name, answers in (("model", tuned), ("baseline", base)):
        # The difference to one that answers nothing, whose F1 is 0, is its own F1.
        own = significance.paired_macro_f1(
            labels,
            answers * 0,
            answers,
            groups,
            num_resamples=options.evaluate.num_bootstrap,
            seed=options.seed,
        )
        found[f"macro_f1_{name}"] = results.with_interval(own.tuned, own.interval)
    return found


def figures(place: RunFolder) -> dict[str, Any]:
    """What a finished run says of model and baseline."""
    scores = read_json(place.scores)
    found, entry = scores["classification"], scores["metrics"]["macro_f1"]
    history, environment = list(read_jsonl(place.history)), read_json(place.environment)
    return {
        "num_classes": len(found["classes"]),
        "num_train_rows": sum(c["train_rows"] for c in found["classes"]),
        "num_test_rows": scores["num_rows"],
        "num_groups": scores["num_groups"],
        "num_steps": history[-1]["step"],
        "tokens": history[-1]["tokens"],
        "num_parameters": environment["parameters"],
        "num_trained_parameters": environment["trained_parameters"],
        **own_f1(place),
        "macro_f1_difference": results.with_interval(entry["difference"], entry["interval"]),
        "accuracy_model": scores["metrics"]["accuracy"]["tuned"],
        "accuracy_baseline": scores["metrics"]["accuracy"]["base"],
        "loss_at_step_0": history[0]["eval"]["loss"],
        "uniform_loss": found["uniform_loss"],
        "train_seconds": history[-1]["seconds"],
    }


def cost_of_words(place: RunFolder, settings: Any) -> dict[str, Any]:
    """Seconds of scoring all labels over those of one forward pass over the same texts, and the difference to exhaustive scoring."""
    tokenizer = load_tokenizer(settings.model)
    names = read_json(place.labels)["names"]
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    tree = LabelTree.of([[*tokenizer.encode(f" {name}"), *end] for name in names])
    rows = Rows(place.rows("test"))
    chosen = [rows.row(i) for i in range(0, len(rows), max(1, len(rows) // TIMED_ROWS))][:TIMED_ROWS]
    texts = [row.input_ids[: row.num_prompt_tokens].tolist() for row in chosen]
    joined = list(chain.from_iterable(texts))
    longer = [joined[i : i + LONGER] for i in range(0, len(joined) - LONGER, LONGER)]
    model = load_trained(settings.model, place, len(tokenizer)).eval()
    found: dict[str, Any] = {"num_labels": len(names), "tokens_in_tree": len(tree.nodes)}
    for name, asked in (("", texts), ("longer_", longer)):
        plain, scored = seconds_of(model, tree, [prompt_row([*text, 0]) for text in asked])
        found[f"mean_{name}text_tokens"] = sum(map(len, asked)) / len(asked)
        found |= {f"{name}seconds_one_pass": min(plain), f"{name}seconds_all_labels": min(scored)}
        found[f"{name}cost"] = min(scored) / min(plain)
    # In bf16 the two ways round differently; that they are the same is seen in fp32.
    exact = settings.model.model_copy(update={"precision": "fp32"})
    model = load_trained(exact, place, len(tokenizer)).eval()
    few = chosen[:CHECKED_ROWS]
    difference = label_scores(model, tree, few) - label_scores(model, tree, few, exhaustive=True)
    return found | {"most_difference_to_exhaustive_nats": float(difference.abs().max())}


def seconds_of(model: Any, tree: LabelTree, rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Seconds of one forward pass without a head, and of scoring all labels, in turns."""
    groups = micro_batches([len(row.input_ids) + len(tree.nodes) for row in rows], 4096)
    base = base_model(model).base_model

    def one_pass(part: Sequence[Row]) -> None:
        with torch.no_grad():
            base(**forward_inputs(base, collate(part, 0), None))

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(TIMES):
        for way, taken in zip((one_pass, lambda part: label_scores(model, tree, part)), times, strict=True):
            began = time.perf_counter()
            for group in groups:
                way([rows[i] for i in group])
            taken.append(time.perf_counter() - began)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="where the figures go")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe, for a try on something small"
    )
    arguments = parser.parse_args()
    ways: dict[str, Any] = {}
    for way in arguments.ways:
        # Words have no eval F1 while training; their loss chooses the checkpoint.
        own = ["train.best_metric=loss"] if way == "words" else []
        overrides = [f"task.way={way}", *own, *arguments.overrides]
        place = pipeline.run(
            recipe_file.shipped_recipes()["classification"], *overrides, folder=arguments.work / way
        )
        ways[way] = figures(place)
        if way == "words":
            settings = pipeline.settled(recipe_file.load(place.recipe), place)
            ways[way]["cost_of_words"] = cost_of_words(place, settings)
    best = ways.get("head") or ways["words"]
    results.write(
        arguments.out,
        {key: best[key] for key in ("macro_f1_model", "macro_f1_baseline", "macro_f1_difference")} | ways,
        command="python studies/code-to-module/run.py --work build/code-to-module",
        packages=("luthier", "torch", "transformers", "scikit-learn"),
        notes="Macro F1 of the test split, of functions and classes that training never saw; near copies and the methods of a class are "
        "in one split, but a file's functions may be in several. 95% intervals by a bootstrap over functions and classes, of "
        "the difference with the same draws for both. cost: seconds of scoring all labels over those of one forward pass over the same texts.",
    )


if __name__ == "__main__":
    main()
