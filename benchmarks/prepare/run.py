"""How fast rows are prepared, and whether memory stays flat from 10,000 to 100,000 rows of JSONL.

    python benchmarks/prepare/run.py            # about five minutes on two cores; writes results.json beside this file

Each size and number of workers is prepared in a fresh process by the shipped instruction task. Finished measurements
are kept in the work folder, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import results  # noqa: E402 # what all benchmarks and studies write

SIZES = (10_000, 100_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "luthier-benchmark-prepare"
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="folder with tokenizer.json; else the embedded model's"
    )
    parser.add_argument("--measure", nargs=2, metavar=("ROWS", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.measure:
        measure(options.work, int(options.measure[0]), int(options.measure[1]), options.tokenizer)
        return
    figures: dict[str, float] = {}
    for size in SIZES:
        generate(options.work / f"{size}.jsonl", size)
    for workers in (1, len(os.sched_getaffinity(0))):
        for size in SIZES:
            done = options.work / f"{size}-{workers}.json"
            if not done.is_file():
                command = [
                    sys.executable,
                    __file__,
                    "--work",
                    str(options.work),
                    "--measure",
                    str(size),
                    str(workers),
                ]
                if options.tokenizer:
                    command += ["--tokenizer", str(options.tokenizer)]
                process = subprocess.Popen(command)
                together, alone = peak_memory(process)
                if process.returncode:
                    raise SystemExit(f"the measurement failed: {' '.join(command)}")
                measured = json.loads(done.with_suffix(".part").read_text())
                measured |= {"peak_memory_mib": together, "peak_resident_mib": alone}
                done.write_text(json.dumps(measured))
            measured = json.loads(done.read_text())
            print(f"{size:,} rows, {workers} workers: {measured}", flush=True)
            figures |= {f"{name}_{size}_rows_{workers}_workers": value for name, value in measured.items()}
        ends = [figures[f"peak_memory_mib_{size}_rows_{workers}_workers"] for size in (SIZES[0], SIZES[-1])]
        figures[f"peak_memory_growth_mib_{workers}_workers"] = round(ends[1] - ends[0], 1)
    add_figures(figures)


def add_figures(figures: dict[str, Any]) -> None:
    """Puts what one of the two scripts measured into results.json, beside what the other did."""
    path = HERE / "results.json"
    known = json.loads(path.read_text())["figures"] if path.is_file() else {}
    results.write(
        path,
        known | figures,
        command="python benchmarks/prepare/run.py && python benchmarks/prepare/projects.py",
        packages=("pyarrow", "numpy", "tokenizers", "tokie", "transformers", "datasets", "rensa"),
        notes="By rows: synthetic instruction rows; rows/s and MB/s of JSONL from reading to the manifest, without start and imports; "
        "compare cpu_seconds where others used the machine (load average). Peak memory: proportional set size of the process and its "
        "workers together, sampled five times a second, imports included; and resident size of the largest process. By files: [median, "
        "lowest, highest] of the rounds; a ratio is of two measurements of one round. speed_vs_datasets_map, mb_per_s and files_per_s are of "
        "reading texts into ids and writing those, which is all that datasets.map does; stage_... of all of prepare: unpacking, copies, windows, "
        "rows, ledger.",
    )


def generate(path: Path, num_rows: int) -> None:
    """Varied instruction rows: words drawn by Zipf's law and code-like lines, about 200 tokens a row; 2% near copies."""
    if path.is_file():
        return
    draw = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [1 / (rank + 1) for rank in range(len(letters))]
    words = ["".join(draw.choices(letters, weights, k=draw.randint(2, 9))) for _ in range(20_000)]
    ranks = [1 / (rank + 3) for rank in range(len(words))]
    last: list[str] = []
    temporary = path.with_suffix(".part")
    with open(temporary, "w", encoding="utf-8") as file:
        for number in range(num_rows):
            length = max(10, int(draw.lognormvariate(3.9, 0.6)))
            text = draw.choices(words, ranks, k=length)
            if last and draw.random() < 0.02:
                text = [*last[:-1], words[number % len(words)]]
            last = text
            third = len(text) // 3
            names = text[third:]
            code = "".join(
                f"    {names[i]} = {names[i - 1]}.{names[i - 2]}({i})\n" for i in range(2, len(names), 4)
            )
            row = {
                "prompt": " ".join(text[:third]),
                "response": f"def f{number}({names[0]}):\n{code}    return {' '.join(names[-3:])}\n",
            }
            file.write(json.dumps(row) + "\n")
    temporary.rename(path)


def measure(work: Path, num_rows: int, workers: int, tokenizer_folder: Path | None) -> None:
    """Prepares one file in this process and writes what it took."""
    from luthier.encoding.text_tokenizer import TextTokenizer
    from luthier.prepare.build import prepare
    from luthier.recipe import Recipe
    from luthier.run_folder import RunFolder, read_json

    if tokenizer_folder is None:
        from luthier.models.load import load_tokenizer

        tokenizer = load_tokenizer(Recipe().model)
    else:
        tokenizer = TextTokenizer.load(tokenizer_folder)
    rows = work / f"{num_rows}.jsonl"
    recipe = Recipe.model_validate(
        {
            "task": {"type": "instruction", "format": "plain"},
            "data": {
                "source": {"type": "files", "path": str(rows)},
                "max_length": 1024,
                "num_workers": workers,
            },
        }
    )
    run = RunFolder(work / f"run-{num_rows}-{workers}")
    shutil.rmtree(run.path, ignore_errors=True)
    phases: dict[str, float] = {}
    start_memory = psutil.Process().memory_info().rss
    load, start_cpu = os.getloadavg()[0], sum(os.times()[:4])
    start = time.perf_counter()
    prepare(
        recipe,
        run,
        tokenizer,
        progress=lambda phase, done, total: phases.update({phase: time.perf_counter()}),
    )
    seconds = time.perf_counter() - start
    cpu_seconds = sum(os.times()[:4]) - start_cpu  # of this process and its workers, which have ended
    ledger = read_json(run.ledger)
    num_tokens = sum(split["tokens"] for split in ledger["splits"].values())
    ends = [start, *phases.values(), start + seconds]
    result = {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "load_average_at_start": round(load, 1),
        "rows_per_s": round(num_rows / seconds),
        "mb_per_s": round(rows.stat().st_size / 1e6 / seconds, 3),
        "start_resident_mib": round(start_memory / 2**20, 1),
        "input_mb": round(rows.stat().st_size / 1e6, 1),
        "kept_rows": ledger["rows"]["kept"],
        "tokens_per_row": round(num_tokens / ledger["rows"]["kept"], 1),
        **{
            f"{name}_s": round(end - begin, 2)
            for name, begin, end in zip([*phases, "writing"], ends[:-1], ends[1:], strict=True)
        },
    }
    shutil.rmtree(run.path)
    (work / f"{num_rows}-{workers}.part").write_text(json.dumps(result))


def peak_memory(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Samples a process and its workers until it ends: most of all together, and most resident of one, in MiB.

    Together by proportional set size, which counts a page that several share once.
    """
    together = alone = 0
    while process.poll() is None:
        time.sleep(0.2)
        total = 0
        try:
            for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                sizes = dict(
                    line.split(":", 1)
                    for line in Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()[1:]
                )
                total += int(sizes["Pss"].split()[0])
                alone = max(alone, int(sizes["Rss"].split()[0]))
        except (psutil.Error, OSError):  # one of them has just ended
            continue
        together = max(together, total)
    return round(together / 1024, 1), round(alone / 1024, 1)


if __name__ == "__main__":
    main()
