"""How fast the files of five projects become token ids, beside ``datasets.map`` with batched calls of the same tokenizer.

    python benchmarks/prepare/projects.py        # some five minutes on two cores; adds its figures to results.json beside this file

Both take the same texts (5,000 files and more, of pinned releases) and write the ids of each to Arrow, turn by turn, each in a
process of its own; the ids are compared file by file. The whole prepare stage (fetching from the cache of downloads, unpacking,
copies, splits, windows, ledger) of the same files is timed beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from run import add_figures, peak_memory  # beside this file

PACKAGES = {
    "django==5.2.19": "ad03d8abc51dbff95ebf34b27123cf0c26a3b62db7ba0cd520783686362533d1",
    "scikit-learn==1.9.1": "629cada3e33e2b9bf376cdc7614a47a4140b8aedc1d836579e359736fbd82977",
    "sympy==1.14.0": "d3d3fe8df1e5a0b42f0e7bdf50541697dbe7d23746e894990c030e2b05e72517",
    "networkx==3.6.1": "26b7c357accc0c8cde558ad486283728b65b6a95d85ee1cd66bafab4c8168509",
    "textual==8.2.8": "3f106a9fbc73e39dd266c9712432087de78a6d644084c7c241d6a25c3169115b",
}
WAYS = ("ours", "datasets-map", "prepare")
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "luthier-benchmark-projects"
    )
    parser.add_argument("--most-files", type=int, help="a part of them, to try the script out")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.measure:
        measure(options)
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(ROUNDS):
        for way in WAYS:
            done = options.work / f"{way}-{number}.json"
            if not done.is_file():
                command = [sys.executable, __file__, "--work", str(options.work), "--measure", way]
                command += ["--most-files", str(options.most_files)] if options.most_files else []
                process = subprocess.Popen(command)
                together, _ = peak_memory(process)
                if process.returncode:
                    raise SystemExit(f"the measurement failed: {' '.join(command)}")
                measured = json.loads((options.work / f"{way}.part").read_text())
                done.write_text(json.dumps(measured | {"peak_memory_gib": round(together / 1024, 3)}))
            found[way].append(json.loads(done.read_text()))
            print(way, found[way][-1], flush=True)
    if different := different_files(options.work):
        raise SystemExit(f"{different} files have other ids: the comparison is void")
    ours, theirs, stages = found["ours"], found["datasets-map"], found["prepare"]
    both = list(zip(theirs, ours, strict=True))
    add_figures(
        {
            "files": ours[0]["files"],
            "megabytes": ours[0]["megabytes"],
            "speed_vs_datasets_map": spread([b["seconds"] / a["seconds"] for b, a in both]),
            "mb_per_s": spread([run["megabytes"] / run["seconds"] for run in ours]),
            "files_per_s": spread([run["files"] / run["seconds"] for run in ours]),
            "datasets_map_mb_per_s": spread([run["megabytes"] / run["seconds"] for run in theirs]),
            "reading_peak_memory_gib": max(run["peak_memory_gib"] for run in ours),
            "stage_vs_datasets_map": spread(
                [b["seconds"] / a["seconds"] for b, a in zip(theirs, stages, strict=True)]
            ),
            "stage_mb_per_s": spread([ours[0]["megabytes"] / run["seconds"] for run in stages]),
            "stage_files_per_s": spread([run["files"] / run["seconds"] for run in stages]),
            "peak_memory_gib": max(run["peak_memory_gib"] for run in stages),
        }
    )


def spread(values: list[float]) -> list[float]:
    """Median, lowest and highest of an odd number."""
    ordered = sorted(values)
    return [round(value, 2) for value in (ordered[len(ordered) // 2], ordered[0], ordered[-1])]


def texts(most: int | None) -> list[str]:
    from luthier.records import Record
    from luthier.sources.sdists import Sdists

    source = Sdists(packages=PACKAGES, keep_vendored=True, keep_generated=True)
    found = [str(record.fields["text"]) for record in source.records() if isinstance(record, Record)]
    return found[:most]


def measure(options: argparse.Namespace) -> None:
    """One way over all files, without loading the tokenizer."""
    from luthier.models.load import load_tokenizer
    from luthier.recipe import Recipe

    tokenizer = load_tokenizer(Recipe().model)
    tokenizer.encode("x = 1\n" * 60_000, first=True)  # what is made once is no part of a rate
    files = [] if options.measure == "prepare" else texts(options.most_files)
    began = time.perf_counter()
    if options.measure == "prepare":
        result = {"files": whole_stage(options, tokenizer)}
    else:
        {"ours": ours, "datasets-map": datasets_map}[options.measure](files, tokenizer, options.work)
        result = {"files": len(files), "megabytes": round(sum(len(text.encode()) for text in files) / 1e6, 3)}
    result = {"seconds": round(time.perf_counter() - began, 2), **result}
    (options.work / f"{options.measure}.part").write_text(json.dumps(result))


def ours(files: list[str], tokenizer: Any, work: Path) -> None:
    import numpy as np
    import pyarrow as pa

    ids = tokenizer.encode_all(files, first=True)
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in ids])]).astype(np.int32)
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(ids)))
    table = pa.table({"input_ids": column})
    with pa.ipc.new_file(str(work / "ours.arrow"), table.schema) as writer:
        writer.write_table(table)


def datasets_map(files: list[str], tokenizer: Any, work: Path) -> None:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    shutil.rmtree(work / "datasets-map", ignore_errors=True)
    rows = Dataset.from_dict({"text": files})
    made = rows.map(
        lambda batch: {"input_ids": tokenizer.hf(batch["text"], add_special_tokens=False)["input_ids"]},
        batched=True,
        remove_columns=["text"],
    )
    made.save_to_disk(str(work / "datasets-map"))


def whole_stage(options: argparse.Namespace, tokenizer: Any) -> int:
    from luthier.prepare.build import prepare
    from luthier.recipe import Recipe
    from luthier.run_folder import RunFolder, read_json

    source = {"type": "sdists", "packages": PACKAGES, "keep_vendored": True, "keep_generated": True}
    if options.most_files:
        source["packages"] = {"networkx==3.6.1": PACKAGES["networkx==3.6.1"]}
    data = {"source": source, "max_length": 2048, "splits": {"train": 1, "eval": 0, "test": 0}}
    recipe = Recipe.model_validate({"task": {"type": "language-modelling"}, "data": data})
    run = RunFolder(options.work / "run")
    shutil.rmtree(run.path, ignore_errors=True)
    run.create()
    prepare(recipe, run, tokenizer)
    files: int = read_json(run.ledger)["records"]["kept"]
    shutil.rmtree(run.path)
    return files


def different_files(work: Path) -> int:
    import pyarrow as pa
    from datasets import load_from_disk

    mine = (
        pa.ipc.open_file(pa.memory_map(str(work / "ours.arrow"))).read_all().column("input_ids").to_pylist()
    )
    theirs = load_from_disk(str(work / "datasets-map"))["input_ids"]
    return sum(list(a) != list(b) for a, b in zip(mine, theirs, strict=True))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main()
