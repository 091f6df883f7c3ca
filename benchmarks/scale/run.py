"""Classification of millions of rows: how fast they are prepared and read, with how much memory, at 0.3 and 3 million.

    python benchmarks/scale/run.py --work build/scale      # an hour or so on two cores; 20 GB of disk; writes results.json

Preparing and reading run in processes of their own, whose memory is watched. Reading is what training does with the rows,
without the model: each step's rows in shuffled order, in packs, from several places of an epoch; and the rows of an
evaluation, sorted by length. Finished measurements are kept in the work folder, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import results  # noqa: E402 # what all benchmarks and studies write

SIZES = (300_000, 3_000_000)
BATCH_ROWS = 16
STEPS = 2000
EVAL_ROWS = 100_000
TRAIN_STEPS = 12


def recipe(num_rows: int, work: Path) -> dict[str, Any]:
    """The shipped recipe's task and model over so many rows."""
    return {
        "name": f"scale-{num_rows}",
        "task": {"type": "classification"},
        "data": {
            "source": {"type": f"{HERE / 'rows.py'}@scale-rows", "num_rows": num_rows},
            # Few rows for losses, which are not measured.
            "splits": {"train": 0.9598, "eval": 0.0002, "test": 0.04},
            "max_length": 287,
        },
        "train": {
            "batch_size": BATCH_ROWS,
            "max_steps": TRAIN_STEPS,
            "num_samples": 0,
            "eval_every_steps": TRAIN_STEPS,
        },
    }


def prepare(num_rows: int, work: Path) -> dict[str, Any]:
    """Prepares the rows in this process and its workers."""
    from luthier import pipeline
    from luthier.run_folder import read_json

    folder = work / f"run-{num_rows}"
    shutil.rmtree(folder, ignore_errors=True)
    phases: dict[str, float] = {}
    began = time.perf_counter()
    place = pipeline.prepare(
        recipe(num_rows, work),
        folder=folder,
        progress=lambda phase, done, total: phases.update({phase: time.perf_counter()}),
    )
    seconds = time.perf_counter() - began
    splits = read_json(place.ledger)["splits"]
    ends = [began, *phases.values(), began + seconds]
    return {
        "seconds": round(seconds, 1),
        "rows_per_s": round(num_rows / seconds),
        "kept_rows": sum(split["rows"] for split in splits.values()),
        "tokens": sum(split["tokens"] for split in splits.values()),
        "disk_gib": round(sum(f.stat().st_size for f in place.data.iterdir()) / 2**30, 2),
        **{
            f"{name}_s": round(b - a, 1)
            for name, a, b in zip([*phases, "writing"], ends[:-1], ends[1:], strict=True)
        },
    }


def read(num_rows: int, work: Path) -> dict[str, Any]:
    """Reads rows as training and evaluation do, from the beginning, the middle and the end of an epoch."""
    from luthier.encoding.batches import Classes, collate, micro_batches, pack, shuffled
    from luthier.rows import Rows
    from luthier.run_folder import RunFolder

    place = RunFolder(work / f"run-{num_rows}")
    rows = Rows(place.rows("train"))
    began = time.perf_counter()
    lengths = rows.lengths()
    labels = rows.labels()
    assert labels is not None
    scan = time.perf_counter() - began
    figures: dict[str, Any] = {"scan_s": round(scan, 2)}
    for name, classes in (("", None), ("_by_class", Classes(labels, 0.5))):
        shuffled(0, 1, len(rows), 0, classes)  # the order of an epoch, once
        tokens, began = 0, time.perf_counter()
        for part in (0.0, 0.5, 0.99):  # a run that was interrupted goes on anywhere
            start = int(part * len(rows))
            for step in range(STEPS // 3):
                indices = shuffled(start + step * BATCH_ROWS, BATCH_ROWS, len(rows), 0, classes)
                batch = pack([rows.row(i) for i in indices])
                tokens += batch.input_ids_BT.numel()
        figures[f"loaded_tokens_per_s{name}"] = round(tokens / (time.perf_counter() - began))
    whole = shuffled(0, len(rows), len(rows), 0)
    places = [0, len(rows) // 3, len(rows) - BATCH_ROWS]
    same = all(shuffled(p, BATCH_ROWS, len(rows), 0) == whole[p : p + BATCH_ROWS] for p in places)
    figures["order_is_global"] = len(set(whole)) == len(rows) and same
    held = Rows(place.rows("test"))
    count = min(len(held), EVAL_ROWS)
    began, padded, real = time.perf_counter(), 0, 0
    for group in micro_batches(held.lengths()[:count].tolist(), 4096):
        batch = collate([held.row(i) for i in group], 0)
        padded += batch.input_ids_BT.numel()
        real += int(batch.attention_mask_BT.sum())
    figures |= {
        "eval_rows": count,
        "eval_rows_per_s": round(count / (time.perf_counter() - began)),
        "eval_padding_share": round(1 - real / padded, 4),
        "mean_tokens": round(float(lengths.mean()), 1),
    }
    return figures


def train(num_rows: int, work: Path) -> dict[str, Any]:
    """A few real steps, to know what training consumes."""
    from luthier import pipeline

    place = pipeline.train(recipe(num_rows, work), folder=work / f"run-{num_rows}")
    speeds = [json.loads(line).get("tokens_per_s") for line in place.history.read_text().splitlines()]
    known = sorted(speed for speed in speeds[2:] if speed)
    return {"trained_tokens_per_s": known[len(known) // 2]}


def watched(command: list[str]) -> float:
    """Runs a command; most memory of it and its children together in GiB, where a page that several share counts once."""
    process = subprocess.Popen(command)
    most = 0
    while process.poll() is None:
        time.sleep(0.5)  # between two samples
        total = 0
        try:
            for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                # Pages of files that are mapped belong to the system, which takes them back when it needs room.
                text = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
                total += int(text.split("Pss_Anon:")[1].split()[0]) + int(
                    text.split("Pss_Shmem:")[1].split()[0]
                )
        except (psutil.Error, OSError, IndexError):  # one of them has just ended
            continue
        most = max(most, total)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return round(most / 2**20, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for rows and measurements")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--no-train", action="store_true", help="leave out the steps with the model")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="where the figures go")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.measure:
        what, num_rows = options.measure[0], int(options.measure[1])
        found = {"prepare": prepare, "read": read, "train": train}[what](num_rows, options.work)
        (options.work / f"{what}-{num_rows}.part").write_text(json.dumps(found))
        return
    sizes: dict[str, Any] = {}
    for num_rows in options.sizes:
        measured: dict[str, Any] = {}
        parts = ["prepare", "read"]
        if not options.no_train and num_rows == options.sizes[0]:
            parts.append("train")
        for what in parts:
            done = options.work / f"{what}-{num_rows}.json"
            if not done.is_file():
                command = [
                    sys.executable,
                    __file__,
                    "--work",
                    str(options.work),
                    "--measure",
                    what,
                    str(num_rows),
                ]
                memory = watched(command)
                part = json.loads(done.with_suffix(".part").read_text())
                done.write_text(json.dumps({**part, "peak_memory_gib": memory}))
            measured[what] = json.loads(done.read_text())
            print(f"{num_rows:,} rows, {what}: {measured[what]}", flush=True)
        sizes[str(num_rows)] = measured
    prepared = {size: part["prepare"] for size, part in sizes.items()}
    speed = next((part["train"]["trained_tokens_per_s"] for part in sizes.values() if "train" in part), None)
    results.write(
        options.out,
        {
            "rows_per_s": {size: part["rows_per_s"] for size, part in prepared.items()},
            "peak_memory_gib": {size: part["peak_memory_gib"] for size, part in prepared.items()},
            "loaded_over_trained": {
                size: round(part["read"]["loaded_tokens_per_s"] / speed, 1) if speed else None
                for size, part in sizes.items()
            },
            **{
                size: {what: {n: float(v) for n, v in part.items()} for what, part in parts.items()}
                for size, parts in sizes.items()
            },
        },
        command="python benchmarks/scale/run.py --work build/scale",
        packages=("pyarrow", "numpy", "tokenizers", "transformers", "torch"),
        notes="Memory is what processes hold by themselves, without pages of the mapped files of rows. Rows/s from the first record to "
        "the manifest, imports included.",
    )


if __name__ == "__main__":
    main()
