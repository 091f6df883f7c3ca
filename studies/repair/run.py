"""Which representation repairs most, how many epochs, and what another comment format costs: judged by execution.

    python studies/repair/run.py                          # two hours on two cores; writes results.json
    python studies/repair/run.py --minutes 40             # as far as that; the next call goes on
    python studies/repair/run.py --try                    # two steps and two bugs of each; writes nothing

The embedded model learns fixes (CodRep's pairs with ``--codrep FILE``, else bugs planted into the standard library) as
IR1 x OR1, IR3 x OR2 and IR4 x OR2 for two epochs, and as IR4 x OR2 for one and for five; ten candidates of each planted bug of
``benchmarks/planted/python.json`` (``--bugs`` of them, and, with ``--humaneval FILE``, as many of HumanEvalPack's Python) are
judged by their tests; and IR4 x OR2 once more with its buggy lines commented in another way than it was trained with. With
CodRep, exact matches on held-out pairs as well.

Every part is a run folder in ``--work`` that goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from luthier.evaluate.patches import compare_repairs
from luthier.run_folder import read_json, write_json

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

import results  # noqa: E402 # what all benchmarks and studies write

PLANTED = HERE.parents[1] / "benchmarks" / "planted" / "python.json"
BEST = ("IR4", "OR2", 2)
TRAININGS = (("IR1", "OR1", 2), ("IR3", "OR2", 2), BEST, ("IR4", "OR2", 1), ("IR4", "OR2", 5))
MISMATCH = "task.comments=indented"
TOKENS = {"OR1": 320, "OR2": 96}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codrep", type=Path)
    parser.add_argument("--humaneval", type=Path)
    parser.add_argument("--planted", type=Path, default=PLANTED)
    parser.add_argument("--rows", type=int, default=600, help="fixes to train on")
    parser.add_argument("--bugs", type=int, default=100, help="so many of each list, spread over it")
    parser.add_argument("--work", type=Path, default=Path("runs") / "study-repair")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--try", dest="tried", action="store_true")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    benches = {"planted": {"type": "planted-bugs", "path": str(options.planted.resolve())}}
    if options.humaneval:
        benches["humaneval-pack"] = {
            "type": "humaneval-pack",
            "path": str(options.humaneval.resolve()),
            "language": "python",
        }
    for training in TRAININGS:
        for bench, bugs in benches.items():
            for changes in [[], [MISMATCH, "repair.other_format=warn"]] if training == BEST else [[]]:
                if time.monotonic() > until:
                    print("out of time: call it again to go on")
                    return
                judge(training, bench, bugs, changes, options)
    write(benches, options)


def name_of(training: tuple[str, str, int]) -> str:
    return "{}x{}-{}".format(*training).lower()


def recipe(training: tuple[str, str, int], options: argparse.Namespace) -> list[str]:
    """Settings of one training, over the shipped recipe."""
    source: dict[str, Any] = {
        "type": "mutations",
        "code": {"type": "stdlib"},
        "max_lines": 30,
        "functions_per_file": 4,
    }
    if options.codrep:
        source = {"type": "repair-pairs", "path": str(options.codrep.resolve()), "before": "buggy_function", "after": "fixed_function",
                  "language": "java", "id_column": "id"}  # fmt: skip
    rows = 64 if options.tried else options.rows
    asked, answer, epochs = training
    return [
        f"data.source={json.dumps(source)}", f"data.max_rows={json.dumps({'train': rows, 'eval': 40, 'test': 200})}",
        f"task.input={asked}", f"task.output={answer}", f"train.epochs={epochs}", f"model.name={options.model}",
        f"evaluate.max_new_tokens={TOKENS[answer]}", f"repair.max_new_tokens={TOKENS[answer]}", "repair.refill=false",
        "repair.num_beams=10", "data.max_length=768", *(["train.max_steps=2", "check.waive=[initial-loss]"] if options.tried else []),
    ]  # fmt: skip


def judge(
    training: tuple[str, str, int],
    bench: str,
    bugs: dict[str, Any],
    changes: list[str],
    options: argparse.Namespace,
) -> None:
    """Trains if that is not done, generates and judges; keeps the table beside the run."""
    run = options.work / name_of(training)
    kept = run / f"study-{bench}{'-mismatch' if changes else ''}"
    if (kept / "repair.json").is_file():
        return
    settings = recipe(training, options)
    if not (run / "adapter").is_dir():
        verb = "train" if training[1] == "OR1" or not options.codrep else "evaluate"
        luthier(verb, "repair", *settings, "--run", str(run))
    luthier("repair", str(run), f"repair.bugs={json.dumps(limited(bugs, options))}", *changes)
    kept.mkdir(exist_ok=True)
    for name in ("verdicts.jsonl", "repair.json"):
        (kept / name).write_bytes((run / "repair" / "tuned" / name).read_bytes())


def limited(bugs: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """A list of as many bugs as are wanted, spread over all, in a file of its own."""
    path = Path(bugs["path"])
    few = options.work.resolve() / f"few-{bugs['type']}.json"
    options.work.mkdir(parents=True, exist_ok=True)
    wanted = 2 if options.tried else options.bugs

    def spread(entries: list[Any]) -> list[Any]:
        return (
            [entries[i * len(entries) // wanted] for i in range(wanted)] if wanted < len(entries) else entries
        )

    if bugs["type"] == "planted-bugs":
        content = read_json(path)
        write_json(few, {**content, "bugs": spread(content["bugs"])})
    else:
        few = few.with_suffix(".jsonl")
        few.write_text("".join(json.dumps(row) + "\n" for row in spread(read_rows(path))))
    return {**bugs, "path": str(few)}


def read_rows(path: Path) -> list[Any]:
    """Rows of a JSONL file, packed or not."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        return [json.loads(line) for line in file]


def luthier(*arguments: str) -> None:
    print("luthier", *arguments[:2], flush=True)
    subprocess.run([sys.executable, "-m", "luthier", *arguments], check=True)


def write(benches: dict[str, Any], options: argparse.Namespace) -> None:
    """results.json: all figures, and the comparisons that the study is about."""
    figures: dict[str, Any] = {}
    of = {name_of(training): options.work / name_of(training) for training in TRAININGS}
    for bench in benches:
        folders = {name: run / f"study-{bench}" for name, run in of.items()}
        best = name_of(BEST)
        folders[f"{best}-other-comments"] = of[best] / f"study-{bench}-mismatch"
        figures[bench] = {name: scores(read_json(folder / "repair.json")) for name, folder in folders.items()}
        for name, folder in folders.items():
            if name != best:
                test = compare_repairs(folders[best], folder)["mcnemar"]
                figures[bench][f"{best} against {name}"] = {
                    "only_first": test["only_first"],
                    "only_second": test["only_second"],
                    "p_value": test["p_value"],
                }
    figures["held_out_exact_match"] = {name: held_out(run) for name, run in of.items()}
    results.write(
        options.work / "results.json" if options.tried else HERE / "results.json",
        figures,
        command="python studies/repair/run.py"
        + (" --codrep FILE" if options.codrep else "")
        + (" --humaneval FILE" if options.humaneval else ""),
        packages=("luthier", "torch", "transformers"),
        notes=f"{options.rows} fixes to train on. Ten beams a bug, duplicates left in; a bug counts at k if any of its first k "
        "candidates passes all tests; intervals of 95% by a bootstrap over bugs. only_first: bugs that only the first of both repaired; "
        "p_value: McNemar's.",
    )


def scores(found: dict[str, Any]) -> dict[str, Any]:
    """Figures of one list of judged bugs."""
    names = ("plausible@1", "plausible@5", "plausible@10", "compile_rate", "exact@10")
    metrics = {name: results.with_interval(**found["metrics"][name]) for name in names}
    return {"bugs": found["num_judged"], **metrics}


def held_out(run: Path) -> Any:
    """Exact match of the tuned model on held-out fixes, where it was asked."""
    path = run / "scores.json"
    found = read_json(path) if path.is_file() else {}
    return found.get("metrics", {}).get("exact_match", {}).get("tuned")


if __name__ == "__main__":
    main()
