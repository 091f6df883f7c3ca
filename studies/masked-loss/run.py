"""Does the masked loss generalise better than the plain one? WordNet's artifacts, on parts of the graph that training never saw.

    python studies/masked-loss/run.py --folder runs/masked-loss

Nine runs (plain, masked and weighted loss, three seeds each) of the embedded model, one after the other, each of which takes
some minutes on two cores. A part ends before a run that would not fit into ``--minutes``; the same command goes on where
the last one ended, leaves finished runs as they are, and writes results.json once all are there. Documents are nouns below
``artifact`` with their glosses, split by top-level concepts as published; needs the files of the Debian package
wordnet-base. First, in a few minutes, the whole way with two steps a run and figures that mean nothing:

    python studies/masked-loss/run.py --try --folder runs/masked-loss-try
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier import pipeline
from luthier.run_folder import RunFolder, read_json, write_json

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

import results  # noqa: E402 # what all benchmarks and studies write

RESULTS = HERE / "results.json"
LOSSES = ("plain", "masked", "weighted")
SEEDS = (0, 1, 2)
SHOTS = ("0-shot", "1-shot", "3-shot")
METRICS = {"literal": "f1", "fuzzy": "f1", "continuous": "f1", "graph": "f1", "motif": "distance"}


def recipe(loss: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The recipe of a run; runs of one seed differ in the loss alone."""
    source = {"type": "wordnet", "path": options.wordnet, "top": "artifact", "part_seed": options.part_seed}
    # What does not depend on training is measured once a seed.
    baselines = ["memorisation", "hearst", *SHOTS] if loss == "plain" else []
    return {
        "name": f"{loss}-{seed}",
        "description": f"WordNet's artifacts, {loss} loss, seed {seed}",
        "seed": seed,
        "task": {"type": "ontology", "root": "artifact", "format": "plain", "loss": loss},
        "model": {"name": options.model, "adapter": {"rank": 16, "alpha": 32, "targets": "all-linear"}},
        "data": {
            "source": {**source, "part": "train"},
            "eval_source": {**source, "part": "eval"},
            "test_source": {**source, "part": "test"},
            "splits": {"train": 1.0, "eval": 0.0, "test": 0.0},
            "max_length": 128,
            "max_rows": {"train": options.train_rows, "eval": options.eval_rows, "test": options.test_rows},
            "near_duplicates": "off",  # glosses are short and formulaic
        },
        "check": {"waive": options.waive},
        "train": {
            "epochs": options.epochs,
            "max_steps": options.max_steps,
            "batch_size": 16,
            "learning_rate": options.learning_rate,
            "schedule": "constant",
            "warmup_steps": 10,
            "eval_every_steps": options.eval_every_steps,
            "num_samples": 2,
            "keep": "last",
        },
        "evaluate": {
            "generate": False,
            "max_new_tokens": options.max_new_tokens,
            "batch_size": 64,
            "ontology": {
                "temperature": 0.1,
                "top_p": 0.9,
                "baselines": baselines,
                "embedding_model": options.embedding_model,
            },
        },
    }  # fmt: skip


def summary(values: list[float]) -> dict[str, Any]:
    """Mean and spread over the seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "standard_deviation": spread, "values": values}


def wordnet(path: str) -> str:
    """The folder with WordNet's files.

    Raises:
        SystemExit: It has none.
    """
    if (Path(path) / "data.noun").is_file():
        return path
    raise SystemExit(
        f"{path} has no data.noun. WordNet's files are in the Debian package wordnet-base:\n"
        "  apt-get install wordnet-base\n"
        "or, without being root,\n"
        "  apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb build/wordnet\n"
        "  python studies/masked-loss/run.py --wordnet build/wordnet/usr/share/wordnet"
    )


def measured(folder: Path, seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """All metrics by system, losses of frequent, rare and unseen edges, and what was measured on."""
    scores = {
        (loss, seed): read_json(RunFolder(folder / f"{loss}-{seed}").ontology / "scores.json")
        for loss in LOSSES
        for seed in seeds
    }
    systems: dict[str, list[dict[str, Any]]] = {
        loss: [scores[loss, seed]["systems"]["tuned"] for seed in seeds] for loss in LOSSES
    }
    for name in ("memorisation", "hearst", *SHOTS):
        systems[name] = [scores["plain", seed]["systems"][name] for seed in seeds]
    by_count: dict[str, Any] = {}
    for loss in LOSSES:
        for kind in ("head", "tail", "unseen"):
            split = "test" if kind == "unseen" else "train"  # the test split has next to no seen edges
            entries = [scores[loss, seed]["edge_losses"][split]["tuned"].get(kind) for seed in seeds]
            if all(entries):
                by_count.setdefault(loss, {})[kind] = {
                    name: summary([entry[name] for entry in entries]) for name in ("nats", "accuracy")
                }
    first = scores["plain", seeds[0]]
    return {
        "systems": {
            name: {
                metric: summary([entry["scores"][metric][part] for entry in judged])
                for metric, part in METRICS.items()
            }
            for name, judged in systems.items()
        },
        "edge_losses": by_count,
        "mask_share": summary([scores["masked", seed]["masks"]["share"] for seed in seeds]),
        "overlap": first["overlap"],
        "truth": {
            split: {part: facts[part] for part in ("num_nodes", "num_edges", "depth")}
            for split, facts in first["truth"].items()
        },
        "documents_per_s": summary(
            [scores[loss, seed]["systems"]["tuned"]["written"]["test"]["documents_per_s"] for loss in LOSSES for seed in seeds]
        ),
    }  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/masked-loss"))
    parser.add_argument(
        "--minutes", type=float, default=45, help="of a part; no run is begun that might not end in it"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--wordnet", default="/usr/share/wordnet")
    parser.add_argument("--part-seed", type=int, default=0)
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--embedding-model", default="embedded:all-minilm-l6-v2")
    parser.add_argument("--waive", nargs="*", default=[], help="checks whose errors do not stop a run")
    parser.add_argument("--train-rows", type=int, default=800)
    parser.add_argument("--eval-rows", type=int, default=100)
    parser.add_argument("--test-rows", type=int, default=240)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--eval-every-steps", type=int, default=50)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--try",
        dest="tries",
        action="store_true",
        help="two steps on a few rows, two seeds; results.json goes into the folder",
    )
    options = parser.parse_args()
    if options.tries:
        vars(options).update(
            train_rows=64, eval_rows=16, test_rows=16, max_steps=2, max_new_tokens=24, eval_every_steps=2,
            results=options.folder / "results.json",
        )  # fmt: skip
    return options


def main() -> None:
    options = parse()
    seeds = SEEDS[:2] if options.tries else SEEDS
    began, longest = time.monotonic(), 0.0
    options.folder.mkdir(parents=True, exist_ok=True)
    settings = {
        key: value
        for key, value in vars(options).items()
        if key not in ("folder", "results", "minutes", "wordnet", "waive", "tries")
    }
    made_with = options.folder / "settings.json"
    if made_with.is_file() and read_json(made_with) != settings:
        raise SystemExit(
            f"the runs in {options.folder} were made with other settings, see {made_with.name}; give another --folder"
        )
    write_json(made_with, settings)
    timing = options.folder / "seconds.json"
    seconds: dict[str, float] = json.loads(timing.read_text()) if timing.is_file() else {}
    for seed in seeds:
        for loss in LOSSES:
            name = f"{loss}-{seed}"
            if (RunFolder(options.folder / name).ontology / "scores.json").is_file():
                continue  # whatever has changed since, it is not run again
            options.wordnet = wordnet(options.wordnet)
            longest = max([longest, *seconds.values()])
            spent = time.monotonic() - began
            if spent and spent + longest > 60 * options.minutes:
                print(
                    f"{len(seconds)} of {len(LOSSES) * len(seeds)} runs are done; the same command goes on with {name}"
                )
                return
            start = time.monotonic()
            pipeline.run(recipe(loss, seed, options), folder=options.folder / name)
            seconds[name] = round(time.monotonic() - start, 1)
            write_json(timing, seconds)
            print(f"{name}: {seconds[name]:.0f} s", flush=True)
    found = measured(options.folder, seeds)
    results.write(
        options.results,
        {
            system: {
                metric: [entry["mean"], min(entry["values"]), max(entry["values"])]
                for metric, entry in scores.items()
            }
            for system, scores in found["systems"].items()
        },
        command="python studies/masked-loss/run.py",
        packages=("luthier", "torch", "transformers"),
        notes="[mean, lowest, highest] over seeds. Test split: concepts below top-level nodes that training never saw. Each seed draws "
        "its own rows, first weights, order, masks and samples; pruning is chosen on the eval split of the same run.",
        **found,
        settings=settings,
        seconds=seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
