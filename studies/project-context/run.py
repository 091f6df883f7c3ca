"""Whether files of the same project help to complete a line, before and after training on such contexts.

    python studies/project-context/run.py rows            # the rows alone, and whether they are those of results.json
    python studies/project-context/run.py train           # about 40 minutes on two cores
    python studies/project-context/run.py own             # about 20 minutes: the model and its base on the own project's context
    python studies/project-context/run.py none other      # 20 minutes each: without context; with another project's
    python studies/project-context/run.py categories memory table

Each part goes on where it was interrupted; ``table`` writes results.json beside this file from whatever arms are done.
The recipe is recipes/project-completion.yaml: files that releases added, of two projects that were trained on (earlier
releases of them) and of three that were not; the same lines and the same number of tokens in every arm. Further arms are composers
(``path-distance``, ``imports-first``, ``skeletons``, ``half-memory``, ``shuffled`` ...). ``--set KEY=VALUE`` changes the recipe.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from table import CURVE

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

import results  # noqa: E402 # what all benchmarks and studies write

RECIPE = HERE.parents[1] / "recipes" / "project-completion.yaml"
# What makes two hours out of the recipe: rows for training, and which files and lines are asked for.
SIZE = (
    "data.max_rows={train: 640, eval: 32}",
    "task.stretches_per_file=1",
    "task.max_lines_per_file=6",
    "data.test_source.min_lines=200",
    "train.num_samples=0",
)
# Arms other than the first are only evaluated: a few rows for training are prepared, and never used.
ONLY_TEST = (
    "data.source.complete=['**/color*.py', '**/apps.py']",
    "data.splits={train: 1, eval: 0, test: 0}",
)
TRAINED_ON = ("django", "scikit-learn")
NUM_JEDI = 150


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="+", help="rows, train, own, none, other, a composer, categories, memory, table"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "luthier-study-project-context"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="changes of the recipe"
    )
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)  # of one process of the part memory
    options = parser.parse_args()
    if options.length:
        print(json.dumps(step_memory(recipe_of(options, "own"), options.length)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        print(f"== {part}", flush=True)
        if part == "rows":
            rows(options)
        elif part == "train":
            train(options)
        elif part == "categories":
            categories(options)
        elif part == "memory":
            memory(options)
        elif part == "table":
            table(options)
        else:
            evaluate(options, part)


def recipe_of(options: argparse.Namespace, arm: str) -> Any:
    from luthier import pipeline

    task = {"own": (), "other": ("task.from_project=other",)}.get(arm, (f"task.composer={arm}",))
    only_test = () if arm == "own" else ONLY_TEST
    return pipeline.read(RECIPE, *SIZE, *task, *only_test, *options.set)


def rows(options: argparse.Namespace) -> None:
    """Prepares the rows from the pinned releases, prints the hash of the test rows, and compares it with the one of results.json."""
    from luthier import pipeline
    from luthier.run_folder import read_json

    run = pipeline.prepare(recipe_of(options, "own"), folder=options.work / "own", progress=say)
    made = read_json(run.manifest)["files"]["test.arrow"]
    print(f"{made}  test rows (SHA-256)")
    published = HERE / "results.json"
    if not published.is_file():
        print("there is no results.json to compare it with")
    elif (known := json.loads(published.read_text())["test_rows_sha256"]) == made:
        print("the same rows as in results.json")
    else:
        raise SystemExit(f"results.json is of other rows: {known}")


def train(options: argparse.Namespace) -> None:
    from luthier import pipeline

    pipeline.train(recipe_of(options, "own"), folder=options.work / "own", progress=say)
    pipeline.report(recipe_of(options, "own"), folder=options.work / "own")


def evaluate(options: argparse.Namespace, arm: str) -> None:
    """Base and tuned model on the test rows of an arm."""
    from luthier import pipeline
    from luthier.evaluate import runner
    from luthier.models.load import load_tokenizer, load_trained
    from luthier.recipe import build
    from luthier.run_folder import RunFolder, hash_file, hash_folder, hash_value

    recipe = recipe_of(options, arm)
    place = pipeline.prepare(recipe, folder=options.work / arm, progress=say)
    if place.scores.is_file():
        return
    tokenizer = load_tokenizer(recipe.model)
    tuned = load_trained(recipe.model, RunFolder(options.work / "own"), len(tokenizer))
    models: runner.Models = {
        "base": lambda: runner.without_adapter(tuned),
        "tuned": lambda: nullcontext(tuned),
    }
    task = build("task", recipe.task)
    key = hash_value([hash_folder(RunFolder(options.work / "own").adapter), hash_file(place.rows("test"))])
    runner.evaluate(runner.Judging(recipe, place, task, tokenizer, models, key, progress=say))


def categories(options: argparse.Namespace) -> None:
    """How categories by name and by import agree with jedi, on a sample of the test rows."""
    from luthier.projects.categories import by_jedi
    from luthier.recipe import build
    from luthier.records import Record
    from luthier.run_folder import read_jsonl
    from luthier.sources.project_files import top_of
    from luthier.sources.sdists import fetch

    recipe = recipe_of(options, "own")
    rows = read_jsonl(options.work / "own" / "predictions.jsonl")
    sample = random.Random(0).sample(rows, min(NUM_JEDI, len(rows)))
    texts = {
        (record.fields["project"], record.fields["path"]): record.fields["text"]
        for record in build("source", recipe.data.test_source).records()
        if isinstance(record, Record) and record.fields["role"] == "added"
    }
    pinned = {pair["old"]: pair["old_sha256"] for pair in recipe.data.test_source["pairs"]}
    counts: Counter[str] = Counter()
    for row in sample:
        strata, line = row["meta"]["strata"], row["meta"]["line"] - 1
        old = strata["project"].partition(" -> ")[0]
        folder = top_of(fetch(old, pinned[old]))
        path = row["meta"]["path"]
        true = by_jedi(folder, path, texts[strata["project"], path], [line])[line] == "inproject"
        for tier, said in (
            ("name", strata["category"] in ("committed", "inproject")),
            ("import", strata["category by import"] == "inproject"),
        ):
            counts[f"{tier}: {'in' if said else 'out'}, jedi: {'in' if true else 'out'}"] += 1
    (options.work / "categories.json").write_text(json.dumps({"lines": len(sample), **sorted_dict(counts)}))


def memory(options: argparse.Namespace) -> None:
    """Peak memory of training for one step on one row of 2k, 4k and 8k tokens, each in a process of its own."""
    found = {}
    for length in (2048, 4096, 8192):
        changes = [argument for change in options.set for argument in ("--set", change)]
        command = [sys.executable, __file__, "memory", "--length", str(length), *changes]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[str(length)] = json.loads(done.stdout.splitlines()[-1])
    (options.work / "memory.json").write_text(json.dumps(found))


def step_memory(recipe: Any, length: int) -> dict[str, float]:
    """Resident memory in GiB with the model loaded, and at most over one optimizer step as a run makes it.

    A batch is one row, of which the last quarter is trained, as the stretch is in rows of the recipe; activations are
    kept, not computed again (gradient checkpointing).
    """
    import torch

    from luthier.models.engine import probe_rows, start
    from luthier.models.load import load_model, load_tokenizer
    from luthier.models.memory import in_use
    from luthier.records import Row
    from luthier.rows import Rows, RowWriter, to_batch
    from luthier.run_folder import RunFolder, read_jsonl
    from luthier.train import loop

    settings = recipe.train.model_copy(update={"batch_size": 1, "max_steps": 1, "keep": "last"})
    recipe = recipe.model_copy(update={"train": settings})
    tokenizer = load_tokenizer(recipe.model)
    model = load_model(recipe.model, len(tokenizer), training=True, seed=0)
    loaded = in_use(torch.device("cpu"))
    ids = np.arange(length, dtype=np.int32) % len(tokenizer)
    weights = (np.arange(length) > length * 3 // 4).astype(np.float32)
    row = Row("row", "row", ids, weights, np.zeros(length, np.int16), [""], length * 3 // 4 + 1, "", 0)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.data.mkdir()
        for split, made in (("train", [row]), ("eval", [])):
            with RowWriter(run.rows(split)) as writer:
                if made:
                    writer.write(to_batch(made))
        train_rows, eval_rows = Rows(run.rows("train")), Rows(run.rows("eval"))
        engine = start(model, probe_rows(train_rows))
        loop.train(
            loop.Loop(recipe, run, model, tokenizer, train_rows, eval_rows, None, engine=engine), "memory"
        )
        [step] = read_jsonl(run.history)
    return {"loaded_gib": round(loaded / 2**30, 3), "peak_memory_gib": step["peak_memory_gib"]}


def table(options: argparse.Namespace) -> None:
    from luthier.run_folder import RunFolder, read_json, read_jsonl

    arms: dict[str, dict[str, Any]] = {}
    for folder in sorted(options.work.iterdir(), key=lambda folder: (folder.name != "own", folder.name)):
        if (folder / "scores.json").is_file():
            arms[folder.name] = {row["id"]: row for row in read_jsonl(RunFolder(folder).predictions)}
    ids = sorted(set.intersection(*(set(rows) for rows in arms.values())))
    groups = [arms["own"][i]["group"] for i in ids]
    exact = {
        (model, arm): np.array([rows[i][model]["scores"]["exact_match"] for i in ids])
        for arm, rows in arms.items()
        for model in ("base", "tuned", "baseline")
    }
    own = arms["own"]
    seen_lines = lines_of_training(options)
    subsets = {
        "all": np.ones(len(ids), bool),
        "own projects in training": np.array(
            [own[i]["group"].split("==")[0].removeprefix("test:") in TRAINED_ON for i in ids]
        ),
        "line not verbatim in the context": np.array(
            [own[i]["meta"]["strata"]["verbatim in context"] == "no" for i in ids]
        ),
        "line not verbatim in training": np.array([own[i]["target"].strip() not in seen_lines for i in ids]),
        "in project by import": np.array(
            [own[i]["meta"]["strata"]["category by import"] == "inproject" for i in ids]
        ),
    }
    subsets["projects not in training"] = ~subsets["own projects in training"]
    for category in sorted({own[i]["meta"]["strata"]["category"] for i in ids}):
        subsets[f"category {category}"] = np.array(
            [own[i]["meta"]["strata"]["category"] == category for i in ids]
        )
    figures: dict[str, Any] = {"num_rows": len(ids), "num_files": len(set(groups)), "exact_match": {}}
    for (model, arm), scores in exact.items():
        figures["exact_match"].setdefault(model, {})[arm] = {
            "micro": with_interval(scores, groups), "macro": with_interval(scores, groups, macro=True),
        }  # fmt: skip
        similar = np.array([arms[arm][i][model]["scores"]["edit_similarity"] for i in ids])
        figures.setdefault("edit_similarity", {}).setdefault(model, {})[arm] = with_interval(similar, groups)
    figures["by_subset"] = {
        name: {
            "rows": int(mask.sum()),
            **comparisons(exact, [g for g, m in zip(groups, mask, strict=True) if m], mask),
        }
        for name, mask in subsets.items()
        if mask.any()
    }
    main_one = figures["by_subset"]["all"]["tuned"].get("own against none", {})
    figures["relative_gain_own"] = main_one.get("relative_gain")
    figures["relative_gain_own_macro"] = main_one.get("macro/relative_gain")
    for metric in ("bits_per_byte", "perplexity"):
        figures[metric] = {}
        for arm in arms:
            found = read_json(options.work / arm / "scores.json")["metrics"][metric]
            figures[metric][arm] = {model: found[model] for model in ("base", "tuned")}
    ledger = read_json(RunFolder(options.work / "own").ledger)
    figures["leaks"] = {
        "files_dropped": {
            r: e["count"] for r, e in ledger["records"]["dropped"].items() if "duplicate" in r or "group" in r
        },
        "share_of_lines_verbatim_in_training": round(
            1 - float(subsets["line not verbatim in training"].mean()), 4
        ),
    }
    manifest = read_json(RunFolder(options.work / "own").manifest)
    for name in ("categories", "memory"):
        if (options.work / f"{name}.json").is_file():
            figures[name] = json.loads((options.work / f"{name}.json").read_text())
    results.write(
        HERE / "results.json",
        figures,
        command=f"python studies/project-context/run.py train {' '.join(arms)} categories memory table",
        packages=("luthier", "torch", "transformers"),
        notes="Greedy decoding; exact match of the words of the first line; intervals of 95% by a bootstrap over files. Micro counts lines "
        "alike, macro files. baseline copies the line that followed where the last lines stood before. own, none and other are the same "
        "lines with the same number of tokens; relative_gain_own is of the tuned model, own project's context against none.",
        test_rows_sha256=manifest["files"]["test.arrow"],
    )
    shutil.copyfile(options.work / "own" / "figures" / "learning_curve.png", CURVE)


def lines_of_training(options: argparse.Namespace) -> set[str]:
    """Every line that stands in a training row, context included."""
    from luthier.models.load import load_tokenizer
    from luthier.rows import Rows
    from luthier.run_folder import RunFolder

    tokenizer = load_tokenizer(recipe_of(options, "own").model)
    found: set[str] = set()
    for row in Rows(RunFolder(options.work / "own").rows("train")):
        found |= {line.strip() for line in tokenizer.decode(row.input_ids, first=True).split("\n")}
    return found


def comparisons(exact: dict[tuple[str, str], Any], groups: list[str], mask: Any) -> dict[str, Any]:
    """Own project's context against each other arm, for each model: difference and relative gain, with intervals.

    Over lines, and below ``macro`` over files, whose lines together count as much as another file's.
    """
    from luthier.evaluate.significance import Pair, Ratio, paired_bootstrap

    kinds = {"": np.ones(len(groups)), "macro/": shares(groups)}
    found: dict[str, Any] = {}
    for model in ("base", "tuned"):
        entry: dict[str, Any] = {
            arm: round(float(s[mask].mean()), 4) for (m, arm), s in exact.items() if m == model
        }
        for arm in [arm for m, arm in exact if m == model and arm != "own"]:
            both: dict[str, Any] = {}
            for kind, weights in kinds.items():
                sides = (exact[model, side][mask] * weights for side in (arm, "own"))
                pair = [Ratio(side, weights) for side in sides]
                plain, ratio = paired_bootstrap([Pair(*pair), Pair(*pair, np.log)], groups)
                both[f"{kind}difference"] = results.with_interval(plain.difference, plain.interval)
                both[f"{kind}relative_gain"] = (
                    None
                    if ratio.difference is None
                    else results.with_interval(
                        float(np.expm1(ratio.difference)), [float(np.expm1(x)) for x in ratio.interval or ()]
                    )
                )
            entry[f"own against {arm}"] = both
        found[model] = entry
    return found


def shares(groups: list[str]) -> Any:
    """The weight of each line where files count alike, shape (line,)."""
    sizes = Counter(groups)
    return np.array([1 / sizes[group] for group in groups])


def with_interval(scores: Any, groups: list[str], *, macro: bool = False) -> Any:
    """The mean of a score and its interval; macro is the mean over files of their means."""
    from luthier.evaluate.significance import Ratio, with_intervals

    weights = shares(groups) if macro else np.ones(len(groups))
    found = with_intervals({"score": Ratio(scores * weights, weights)}, groups)["score"]
    return results.with_interval(found["value"], found["interval"])


def sorted_dict(counts: Counter[str]) -> dict[str, int]:
    return {key: counts[key] for key in sorted(counts)}


def say(label: str, done: int, total: int | None) -> None:
    if total and done == total:
        print(f"   {label}: {done}", flush=True)


if __name__ == "__main__":
    main()
