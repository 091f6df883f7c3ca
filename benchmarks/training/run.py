"""How fast Luthier trains beside TRL, transformers' Trainer and LLaMA-Factory, what it needs, and how that grows.

    python benchmarks/training/run.py                  # everything that is not measured yet; an hour on two cores
    python benchmarks/training/run.py --part growth    # only how cost grows; 15 minutes
    python benchmarks/training/run.py --only trl       # one measurement anew, in all rounds, and nothing else

Each measurement is a fresh process in the tool's own environment (benchmarks/environments.py), and the tools take turns in
every round. Finished measurements are kept below build/training, so an interrupted run goes on where it stopped. With the
settings that are the default, results.json beside this file and the picture in the documentation are written; with
others, the same two into the work folder.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import environments  # noqa: E402 # lies beside the benchmarks

WORK = HERE.parents[1] / "build" / "training"
PACKAGES = {"luthier": environments.LUTHIER, **environments.TRAINERS}
DEFAULT_MODEL, DEFAULT_STEPS = "embedded:smollm2-135m", 30
PEER_STEPS = 12  # the others' first steps say what all would; ratios and gaps are of these
SETTINGS = {"seed": 0, "batch_size": 8, "rank": 16, "alpha": 32, "max_length": 1024, "num_rows": 500}
WARM_UP_STEPS = 2
LORA_LEARNING_RATE, FULL_LEARNING_RATE = 2e-4, 2e-5
# Name of a measurement -> tool, kind of training. A round takes all of the first, and then all of the second.
TURNS = (
    {
        "luthier": ("luthier", "lora"),
        "trl": ("trl", "lora"),
        "transformers": ("transformers", "lora"),
        "llamafactory": ("llamafactory", "lora"),
    },
    {"luthier-full": ("luthier", "full"), "transformers-full": ("transformers", "full")},
)
KINDS = {
    "lora": {"model": {"adapter": {"rank": 16, "alpha": 32}}, "train": {"learning_rate": LORA_LEARNING_RATE}},
    "fp32": {
        "model": {"adapter": {"rank": 16, "alpha": 32}, "precision": "fp32"},
        "train": {"learning_rate": LORA_LEARNING_RATE},
    },
    "full": {"model": {}, "train": {"learning_rate": FULL_LEARNING_RATE}},
}
LENGTHS, LENGTH_TOKENS = (256, 512, 1024, 2048, 4096), 4096
ROW_PARTS = (8, 4, 2, 1)
SIZE_TOKENS = 2048
GROWTH_STEPS = 5


def shape(hidden: int, layers: int, head: int = 64) -> dict[str, int]:
    """A Llama of 12 x hidden^2 weights a layer."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": round(hidden * 8 / 3 / 16) * 16,
        "num_attention_heads": hidden // head,
        "num_key_value_heads": hidden // head,
    }


# With a vocabulary of 49,152, whose embedding is the output head too.
SIZES = {
    "10M": shape(160, 7, head=32),
    "30M": shape(320, 12),
    "100M": shape(640, 14),
    "300M": shape(1024, 20),
    "1B": shape(2048, 18),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", choices=("speed", "growth"), help="only this; else both")
    parser.add_argument("--only", help="name of a measurement: do this one anew and nothing else")
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns that each tool gets; ratios are of one round"
    )
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="a model folder, or a name that a recipe takes"
    )
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help="of each training; at least 4")
    parser.add_argument(
        "--waive", nargs="*", default=[], help="Luthier's checks that a random model cannot pass"
    )
    options = parser.parse_args()
    if options.steps < WARM_UP_STEPS + 2:
        parser.error("--steps: at least 4, since the first two are not measured")
    chosen = [options.model, options.steps, PEER_STEPS, options.waive, SETTINGS, KINDS]
    key = hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:8]
    bench = Bench(WORK / key, options)
    bench.measure("peak", "luthier", "peak", {})
    if options.part != "growth":
        bench.speed()
    if options.part != "speed":
        bench.growth()
    if options.only and not bench.found:
        parser.error(f"--only: no measurement is called {options.only}; known: {', '.join(bench.known)}")
    results = bench.results()
    official = (options.model, options.steps) == (DEFAULT_MODEL, DEFAULT_STEPS)
    place = table.RESULTS if official else bench.folder / "results.json"
    picture = table.PICTURE if official else bench.folder / "picture.png"
    place.write_text(json.dumps(results, indent=1) + "\n")
    table.draw(results, picture)
    print(json.dumps(results["figures"], indent=1))
    print(f"written: {place}, {picture}")


class Bench:
    """Measurements by name: done, or read where they were done before.

    Args:
        folder: Where those of these settings are kept.
        options: Of the command line.
    """

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.known: dict[str, None] = {}
        self.found = False
        (folder / "measured").mkdir(parents=True, exist_ok=True)

    def kept(self, name: str) -> dict[str, Any] | None:
        """A measurement that is done."""
        path = self.folder / "measured" / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def measure(self, name: str, tool: str, module: str, settings: dict[str, Any]) -> None:
        """Runs a module of ``tools`` in a process of its own, unless it is done; its result, memory and first step are kept."""
        bare = name.partition(".")[0]
        self.known[bare] = None
        self.found |= bare == self.options.only
        if bare != self.options.only and (self.options.only or self.kept(name)):
            return
        print(f"{datetime.datetime.now():%H:%M:%S} {name}", flush=True)
        python = environments.environment(tool, PACKAGES[tool])
        work = self.folder / "work" / name
        work.mkdir(parents=True, exist_ok=True)
        given, result, log = work / "settings.json", work / "result.json", work / "log.txt"
        given.write_text(json.dumps(SETTINGS | settings))
        result.unlink(missing_ok=True)
        began = time.time()
        with open(log, "w") as file:
            process = subprocess.Popen(
                [python, "-m", f"tools.{module}", given, result],
                cwd=HERE,
                env=self.variables(),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            peak = peak_memory(process)
        if process.returncode or not result.is_file():
            print("".join(log.read_text(errors="replace").splitlines(keepends=True)[-30:]))
            raise SystemExit(f"{name} failed with exit code {process.returncode}: {log}")
        measured = json.loads(result.read_text())
        if not measured.get("same_rows", True):
            raise SystemExit(f"{name} had other tokens, labels or another order than Luthier: {log}")
        measured |= {"peak_memory_gib": peak, "process_s": time.time() - began}
        if "ends" in measured:
            measured["first_step_s"] = measured["ends"][0] - began
        (self.folder / "measured" / f"{name}.json").write_text(json.dumps(measured))

    def variables(self) -> dict[str, str]:
        """The environment of every process: all cores, nothing fetched, nothing shared with the user's caches."""
        own = {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.folder / "cache"),
            "TOKENIZERS_PARALLELISM": "false",
            "DO_NOT_TRACK": "1",
        }
        left_out = ("OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE")
        return {name: value for name, value in os.environ.items() if name not in left_out} | own

    def speed(self) -> None:
        """All trainings, turn by turn, and the looks inside Luthier's."""
        options = self.options
        common = {"name": options.model, "steps": options.steps, "waive": options.waive}
        kinds = {
            kind: {"model": change["model"], "train": change["train"] | {"compile": True}}
            for kind, change in KINDS.items()
        }
        if not self.kept("prepare"):
            for old in self.folder.glob("run-*"):
                shutil.rmtree(old)
        self.measure("prepare", "luthier", "prepare", common | {"folder": str(self.folder), "kinds": kinds})
        prepared = self.kept("prepare")
        if prepared is None:
            raise SystemExit("nothing is prepared yet; run without --only first")
        for number in range(options.rounds):
            for turn in TURNS:
                # Every other round backwards: what drifts over a round helps nobody.
                for name in list(turn)[:: -1 if number % 2 else 1]:
                    self.training(f"{name}.{number}", *turn[name], prepared)
        self.training("luthier-fp32.0", "luthier", "fp32", prepared)
        tuned = str(self.folder / "work" / "luthier.0" / "run")
        for kind in ("lora", "full"):
            own = {"recipe": prepared[kind]["recipe"], "folder": prepared[kind]["folder"]}
            self.measure(f"profile-{kind}", "luthier", "inside", own | {"look": "profile"})
        own = {"recipe": prepared["lora"]["recipe"], "folder": prepared["lora"]["folder"], "tuned": tuned}
        self.measure("gradients", "luthier", "inside", own | {"look": "gradients"})

    def training(self, name: str, tool: str, kind: str, prepared: dict[str, Any]) -> None:
        """One training by one tool."""
        bare = name.partition(".")[0]
        if self.kept(name) and bare != self.options.only:
            self.known[bare] = None
            return
        work = self.folder / "work" / name
        settings = {
            "steps": self.options.steps if tool == "luthier" else min(PEER_STEPS, self.options.steps),
            "full": kind == "full",
            "learning_rate": KINDS[kind]["train"]["learning_rate"],
            "model": prepared["model"],
            "eos_token": prepared["eos_token"],
            "rows": str(self.folder / "rows.json"),
            "folder": str(work / "run"),
            "recipe": prepared[kind]["recipe"],
        }
        if self.options.only in (None, bare):
            shutil.rmtree(work, ignore_errors=True)
            if tool == "luthier":  # rows and findings are there, as the others' rows are tokenised
                shutil.copytree(prepared[kind]["folder"], settings["folder"])
        self.measure(name, tool, tool, settings)
        if tool != "luthier" or kind != "lora":
            shutil.rmtree(work / "run", ignore_errors=True)  # a trained model takes half a gigabyte

    def growth(self) -> None:
        """Luthier alone: longer rows, more rows, larger models."""
        common = {"name": self.options.model, "steps": GROWTH_STEPS, "shape": None, "share_of_rows": None}
        points: dict[str, dict[str, Any]] = {}
        for length in LENGTHS:
            points[f"length-{length}"] = {"length": length, "batch_size": LENGTH_TOKENS // length}
        for part in ROW_PARTS:
            points[f"rows-{ROW_PARTS[0] // part}x"] = {
                "length": 1024,
                "batch_size": 8,
                "share_of_rows": 1 / part,
            }
        for size, given in SIZES.items():
            points[f"size-{size}"] = {"length": 512, "batch_size": SIZE_TOKENS // 512, "shape": given}
        for name, point in points.items():
            folder = self.folder / "work" / name / "run"
            if self.kept(name) is None or self.options.only == name:
                shutil.rmtree(folder, ignore_errors=True)
            self.measure(name, "luthier", "growth", common | point | {"folder": str(folder)})
            shutil.rmtree(folder, ignore_errors=True)

    def results(self) -> dict[str, Any]:
        """The content of ``results.json``, from all that was measured."""
        measured: dict[str, list[dict[str, Any]]] = {}
        for path in sorted((self.folder / "measured").glob("*.json")):
            measured.setdefault(path.stem.partition(".")[0], []).append(json.loads(path.read_text()))
        prepared = measured.get("prepare", [{}])[0]
        (peak,) = measured.get("peak", [None])
        shown = {
            name: value
            for name, value in prepared.items()
            if name in ("num_tokens", "trained_share", "longest", "median")
        }
        return {
            "figures": figures(measured),
            "command": "python benchmarks/training/run.py",
            "versions": environments.versions(PACKAGES),
            "date": datetime.date.today().isoformat(),
            "notes": (
                f"{os.cpu_count()} cores, {processor()}, {psutil.virtual_memory().total / 2**30:.0f} GiB. "
                f"Model {self.options.model}, {self.options.steps} steps of {SETTINGS['batch_size']} rows (the first {PEER_STEPS} "
                "where another tool takes part), "
                f"{len(measured.get('luthier', []))} rounds. A list is [median, lowest, highest] over the rounds; a ratio is of "
                "two trainings of the same round. Luthier runs with train.compile=true; `auto` compiles where a run is long "
                "enough and a measurement shows that it helps. Its checks were made before (check_s in settings)."
            ),
            "settings": shown | {f"check_s/{kind}": prepared[kind]["check_s"] for kind in KINDS if prepared},
            "losses": {name: runs[0]["losses"] for name, runs in measured.items() if "losses" in runs[0]},
            "engine": {name: runs[0]["engine"] for name, runs in measured.items() if name in luthiers()},
            "step_parts": {
                kind: {
                    part: share
                    for part, share in measured[f"profile-{kind}"][0].items()
                    if part not in ("peak_memory_gib", "process_s")
                }
                for kind in ("lora", "full")
                if f"profile-{kind}" in measured
            },
            "growth": growth_points(measured, peak),
        }


def luthiers() -> list[str]:
    """Names of Luthier's own trainings."""
    return [
        "luthier-fp32",
        *(name for turn in TURNS for name, (tool, _) in turn.items() if tool == "luthier"),
    ]


def figures(measured: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """All that follows from the trainings that were measured."""
    found: dict[str, Any] = {}
    speeds = {name: [speed(run) for run in runs] for name, runs in measured.items() if "losses" in runs[0]}
    for key, ours, theirs in (
        ("speed_vs_trl", "luthier", "trl"),
        ("speed_vs_hf_trainer", "luthier", "transformers"),
        ("speed_vs_third_peer", "luthier", "llamafactory"),
        ("full_speed_vs_hf_trainer", "luthier-full", "transformers-full"),
    ):
        if ours in speeds and theirs in speeds:
            found[key] = spread(ratios(measured[ours], measured[theirs]), 2)
    if "luthier" in measured:
        found["peak_memory_gib"] = max(run["peak_memory_gib"] for run in measured["luthier"])
    if "luthier" in measured and "luthier-fp32" in measured:
        found["bf16_loss_gap"] = loss_gap(measured["luthier"][0], measured["luthier-fp32"][0])
    if "gradients" in measured:
        found["gradient_cosine"] = round(measured["gradients"][0]["gradient_cosine"], 6)
    if "peak" in measured:
        peak = measured["peak"][0]["flops_per_s"]
        found["matrix_peak_gflops"] = round(peak / 1e9)
        for key, name in (("matrix_peak_share", "luthier"), ("full_matrix_peak_share", "luthier-full")):
            if name in speeds:
                flops = flops_per_token(measured["prepare"][0], full=name.endswith("full"))
                found[key] = round(spread(speeds[name])[0] * flops / peak, 4)
    for kind in ("lora", "full"):
        if f"profile-{kind}" in measured:
            found[f"matrix_product_time_share/{kind}"] = measured[f"profile-{kind}"][0]["matrix products"]
    for name, runs in measured.items():
        if name not in speeds:
            continue
        found[f"{name}/tokens_per_s"] = spread(speeds[name], 1)
        found[f"{name}/first_step_s"] = spread([run["first_step_s"] for run in runs], 1)
        found[f"{name}/peak_memory_gib"] = spread([run["peak_memory_gib"] for run in runs])
        ours = "luthier-full" if name.endswith("full") else "luthier"
        if name not in luthiers() and ours in measured:
            found[f"{name}/loss_gap"] = loss_gap(measured[ours][0], runs[0])
    return found


def growth_points(
    measured: dict[str, list[dict[str, Any]]], peak: dict[str, Any] | None
) -> dict[str, list[dict[str, Any]]]:
    """For rows' length, number of rows and size of the model: what was measured at each point, smallest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for axis in ("length", "rows", "size"):
        points = []
        for name, (run, *_) in measured.items():
            if not name.startswith(f"{axis}-"):
                continue
            tokens_per_s = speed(run)
            point = {
                "name": name.partition("-")[2],
                "parameters": run["parameters"],
                "rows": run["rows"],
                "tokens_per_step": round(sum(run["tokens"]) / len(run["tokens"])),
                "tokens_per_s": round(tokens_per_s, 1),
                "peak_memory_gib": run["peak_memory_gib"],
                "prepare_s": run["prepare_s"],
            }
            if peak:
                share = tokens_per_s * flops_per_token(run, full=False) / peak["flops_per_s"]
                point["matrix_peak_share"] = round(share, 4)
            points.append(point)
        # Each list has one thing that grows; the others are the same in it.
        points.sort(key=lambda point: (point["parameters"], point["rows"] if axis == "rows" else 0))
        if axis == "length":
            points.sort(key=lambda point: int(point["name"]))
        found[axis] = points
    return found


def speed(run: dict[str, Any], steps: int | None = None) -> float:
    """Real tokens per second over all steps, or the first few, after the first two; pauses between steps included."""
    seconds = run["seconds"][:steps]
    return float(sum(run["tokens"][WARM_UP_STEPS:steps]) / (seconds[-1] - seconds[WARM_UP_STEPS - 1]))


def ratios(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[float]:
    """Speeds over the steps that both did, in each round; a round that only one of both has had is left out."""
    both = [(a, b, min(len(a["seconds"]), len(b["seconds"]))) for a, b in zip(ours, theirs, strict=False)]
    return [speed(a, steps) / speed(b, steps) for a, b, steps in both]


def spread(values: list[float], digits: int = 3) -> list[float]:
    """Median, lowest and highest."""
    ordered = sorted(values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return [round(value, digits) for value in (middle, ordered[0], ordered[-1])]


def loss_gap(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Mean over the steps that both did of the distance of two losses, in nats."""
    pairs = list(zip(one["losses"], other["losses"], strict=False))
    return round(sum(abs(a - b) for a, b in pairs) / len(pairs), 5)


def flops_per_token(model: dict[str, Any], *, full: bool) -> float:
    """Floating-point operations that the mathematics of a training step needs for each token, attention left out.

    A product takes 2 operations a weight forward and 2 for each gradient: of its input and, where the weight is trained, of
    the weight. A LoRA's frozen weights therefore take 4 and its adapters 6; the head is needed only at trained tokens.
    """
    head = model["head_weights"] * model["trained_share"]
    if full:
        return float(6 * (model["layer_weights"] + head))
    return float(4 * (model["layer_weights"] + head) + 6 * model["adapter_weights"])


def processor() -> str:
    """The processor's name, and whether it has the unit that multiplies matrices in bf16."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {'AMX' if 'amx_bf16' in text else 'no AMX'}"


def peak_memory(process: subprocess.Popen[bytes]) -> float:
    """Waits for a process; the most memory that it and its children held, in GiB.

    The larger of two: what all of them held at one time, sampled four times a second, and what any of them ever held.
    """
    together = alone = 0
    while process.poll() is None:
        time.sleep(0.25)  # between two samples
        total = 0
        try:
            for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                status = Path(f"/proc/{one.pid}/status").read_text()
                sizes = {
                    line.partition(":")[0]: line.split()[1] for line in status.splitlines() if " kB" in line
                }
                total += int(sizes.get("VmRSS", 0))
                alone = max(alone, int(sizes.get("VmHWM", 0)))
        except (psutil.Error, OSError):  # one of them has just ended
            continue
        together = max(together, total)
    return round(max(together, alone) / 2**20, 3)


if __name__ == "__main__":
    main()
