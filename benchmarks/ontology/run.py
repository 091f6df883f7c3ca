"""From 20,000 documents to a scored ontology, killed once on the way; and how long the scores of 10,000 edges take.

    python benchmarks/ontology/run.py --work build/ontology      # an hour or so on two cores; writes results.json

Documents are made up: each stands under a few nodes of a tree, whose words its title and abstract hold. A small model from
random weights learns and writes all of them; the embedded model, which is what one waits for in earnest, some hundreds.
The process that writes is killed when half of the documents are there, and started again. Each part runs in a process of its
own whose memory the system counts; finished parts are kept in the work folder, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import results  # noqa: E402 # what all benchmarks and studies write

ROOT = "Everything"
WIDTH = (12, 8, 6)  # nodes below the root, and below each node of a level
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u")]
PARTS = ("small", "embedded", "matching")
VECTOR_WIDTH = 384  # of the sentence encoder that the metrics are published with


def tree() -> Iterator[list[str]]:
    """All paths from the root to a leaf."""
    draw = random.Random(0)
    known = {ROOT}

    def name() -> str:
        found = ROOT
        while found in known:
            found = " ".join(
                "".join(draw.choices(SYLLABLES, k=draw.randint(2, 3))) for _ in range(draw.randint(1, 2))
            )
        known.add(found)
        return found

    def below(path: list[str]) -> Iterator[list[str]]:
        if len(path) > len(WIDTH):
            yield path
            return
        for _ in range(WIDTH[len(path) - 1]):
            yield from below([*path, name()])

    yield from below([ROOT])


def write_documents(path: Path, count: int, seed: int) -> None:
    """Documents under one to three leaves each; leaves of lower numbers are more frequent."""
    draw, leaves = random.Random(seed), list(tree())
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            paths = [leaves[int(len(leaves) * draw.random() ** 2)] for _ in range(draw.randint(1, 3))]
            words = [word for path in paths for title in path[1:] for word in title.split()]
            row = {
                "id": f"{seed}-{number}",
                "title": " ".join(draw.sample(words, min(3, len(words)))),
                "abstract": " ".join(draw.choice(words) for _ in range(20)),
                "paths": paths,
            }
            file.write(json.dumps(row) + "\n")


def recipe(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """A training on some thousand documents, and so many to write afterwards."""
    small = part == "small"
    sizes = {
        "train": options.train_documents,
        "eval": 200,
        "test": options.documents if small else options.embedded,
    }
    sources = {}
    for seed, (split, count) in enumerate(sizes.items()):
        path = options.work / f"{part}-{split}.jsonl"
        if not path.is_file():
            write_documents(path, count, seed)
        sources[split] = {"type": "paths", "path": str(path)}
    scratch = {
        "vocab_size": 1024,
        "config": {
            "model_type": "llama", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512, "tie_word_embeddings": True,
        },
    }  # fmt: skip
    return {
        "name": f"ontology-{part}",
        "task": {"type": "ontology", "root": ROOT, "format": "plain", "loss": "plain"},
        "model": {"adapter": None, "scratch": scratch} if small else {"name": options.model},
        "data": {
            "source": sources["train"],
            "eval_source": sources["eval"],
            "test_source": sources["test"],
            "splits": {"train": 1.0, "eval": 0.0, "test": 0.0},
            "max_length": 320,
            "near_duplicates": "off",
        },
        "check": {"waive": options.waive},
        "train": {
            "max_steps": options.steps if small else options.embedded_steps,
            "batch_size": 16,
            "learning_rate": 1e-3 if small else 3e-4,
            "num_samples": 0,
            "eval_every_steps": options.steps,
            "keep": "last",
        },
        "evaluate": {
            "generate": False,
            "max_new_tokens": 96,
            "batch_size": 64,
            "ontology": {"baselines": [], "embedding_model": options.embedding_model},
        },
    }


def writing(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trains, writes and scores in this process; goes on where one before it ended."""
    from luthier import pipeline
    from luthier.run_folder import read_json

    began = time.perf_counter()
    place = pipeline.evaluate(recipe(part, options), folder=options.work / f"run-{part}")
    scores = read_json(place.ontology / "scores.json")
    tuned = scores["systems"]["tuned"]
    written = tuned["written"]["test"]
    return {
        "documents": written["num_documents"],
        "documents_per_s": written["documents_per_s"],
        "valid_lines": written["num_valid_lines"],
        "invalid_lines": sum(written["invalid_lines"].values()),
        "seconds_of_last_process": round(time.perf_counter() - began, 1),
        "edges": tuned["pruned"]["num_edges"],
        "true_edges": scores["truth"]["test"]["num_edges"],
        "continuous_f1": tuned["scores"]["continuous"]["f1"],
    }


def matching(_: str, options: argparse.Namespace) -> dict[str, Any]:
    """All five figures of two graphs of so many edges, one of which is the other with noise."""
    import numpy as np

    from luthier.metrics import ontology as metrics

    draw, size = np.random.default_rng(0), options.edges
    parents = (np.arange(1, size) * draw.random(size - 1)).astype(
        np.int64
    )  # each node hangs under an earlier one
    own = np.stack([parents, np.arange(1, size)], axis=1)
    edges = np.vstack([own, [[0, size - 1]]])
    vectors = draw.normal(size=(size, VECTOR_WIDTH)).astype(np.float32)
    true = metrics.TitledGraph([f"node {i}" for i in range(size)], edges, vectors)
    order = draw.permutation(size)
    noisy = vectors + draw.normal(size=vectors.shape).astype(np.float32)
    found = np.empty_like(noisy)
    found[order] = noisy
    titles = [""] * size
    for old, new in enumerate(order.tolist()):
        titles[new] = true.titles[old] if draw.random() < 0.7 else f"other {old}"
    predicted = metrics.TitledGraph(titles, draw.permutation(order[edges]), found)
    seconds: dict[str, float] = {}
    for name in ("literal", "fuzzy", "continuous", "graph", "motif_distance"):
        began = time.perf_counter()
        score = getattr(metrics, name)(predicted, true)
        seconds[name] = round(time.perf_counter() - began, 2)
        print(f"{name}: {score}, {seconds[name]} s", flush=True)
    return {"edges": len(edges), "seconds": seconds, "seconds_of_all": round(sum(seconds.values()), 1)}


def command(part: str) -> list[str]:
    """What runs a part in a process of its own: this one's options, and the part."""
    return [sys.executable, __file__, *sys.argv[1:], "--measure", part]


def lines_of(path: Path) -> list[str]:
    """The whole lines of a file; none if it is not there."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return text.splitlines()[: text.count("\n")]


def killed_once(part: str, options: argparse.Namespace) -> None:
    """Starts a part and kills it when half of its documents are written; what was written is put aside.

    Raises:
        SystemExit: It ended by itself.
    """
    aside = options.work / f"{part}-before-the-kill.json"
    if aside.is_file():
        return
    file = options.work / f"run-{part}" / "ontology" / "tuned-test.jsonl"
    process = subprocess.Popen(command(part))
    while len(lines_of(file)) < options.documents // 2:
        if process.poll() is not None:
            raise SystemExit(f"{part} ended with {process.returncode} before it could be killed")
        time.sleep(0.2)  # until the file is looked at again
    process.kill()
    process.wait()
    aside.write_text(json.dumps(lines_of(file)))


def measure(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """A part from first to last process, with what is said of the kill.

    Raises:
        SystemExit: It failed, or documents were written twice.
    """
    if part == "small":
        killed_once(part, options)
    done = subprocess.run(command(part), check=False)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command(part))}")
    found: dict[str, Any] = json.loads((options.work / f"{part}.part").read_text())
    if part == "small":
        before = json.loads((options.work / f"{part}-before-the-kill.json").read_text())
        after = lines_of(options.work / f"run-{part}" / "ontology" / "tuned-test.jsonl")
        ids = {json.loads(line)["id"] for line in after}
        if after[: len(before)] != before or not len(after) == len(ids) == options.documents:
            raise SystemExit(
                f"{len(before)} documents before the kill, {len(after)} lines and {len(ids)} ids in the end"
            )
        found["documents_before_the_kill"] = len(before)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and measurements")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--documents", type=int, default=20_000, help="that the small model writes")
    parser.add_argument("--embedded", type=int, default=300, help="documents that the embedded model writes")
    parser.add_argument("--train-documents", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=1000, help="of the small model's training")
    parser.add_argument("--embedded-steps", type=int, default=60)
    parser.add_argument("--edges", type=int, default=10_000, help="on either side of the matching")
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--embedding-model", default="embedded:all-minilm-l6-v2")
    parser.add_argument("--waive", nargs="*", default=[], help="checks whose errors do not stop a run")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="where the figures go")
    parser.add_argument("--measure", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.measure:
        part = (matching if options.measure == "matching" else writing)(options.measure, options)
        # Kilobytes; of this process alone, imports and all.
        part["peak_memory_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        (options.work / f"{options.measure}.part").write_text(json.dumps(part))
        return
    measured: dict[str, Any] = {}
    for part in options.parts:
        done = options.work / f"{part}.json"
        if not done.is_file():
            done.write_text(json.dumps(measure(part, options)))
        measured[part] = json.loads(done.read_text())
        print(f"{part}: {measured[part]}", flush=True)
    results.write(
        options.out,
        measured,
        command="python benchmarks/ontology/run.py --work build/ontology",
        packages=("luthier", "torch", "transformers", "scipy", "networkx"),
        notes="small: a model of some million parameters from random weights, killed when half of the documents were written and "
        "started again, after which no document was there twice and those before were as they had been; documents/s of the test "
        "split, of both processes together. embedded: the embedded model with an adapter. matching: the five figures of two graphs, "
        "with the best assignments. Memory is the highest resident size of the process.",
    )


if __name__ == "__main__":
    main()
