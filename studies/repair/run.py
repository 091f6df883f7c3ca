"""Which representation repairs most, how many epochs, and what another comment format costs: judged by execution.

    python studies/repair/run.py                          # an hour and a half on two cores; writes results.json
    python studies/repair/run.py --minutes 40             # as far as that; the next call goes on
    python studies/repair/run.py --try                    # two steps and two bugs of each; writes nothing

The embedded model learns fixes (CodRep's pairs with ``--codrep FILE``, else bugs planted into the standard library) as
IR1 x OR1, IR3 x OR2 and IR4 x OR2, for one, two and five epochs; ten candidates of each planted bug of
``benchmarks/planted/python.json`` (and, with ``--humaneval FILE``, of HumanEvalPack's Python) are judged by their tests; and
IR4 x OR2 once more with its buggy lines commented in another way than it was trained with. With CodRep, exact matches on
held-out pairs as well.

Every part is a run folder in ``--work`` that goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from luthier.evaluate.patches import compare_repairs
from luthier.run_folder import read_json, write_json

HERE = Path(__file__).parent
PLANTED = HERE.parents[1] / "benchmarks" / "planted" / "python.json"
FORMS = (("IR1", "OR1"), ("IR3", "OR2"), ("IR4", "OR2"))
EPOCHS = (1, 2, 5)
MISMATCH = "task.comments=indented"
TOKENS = {"OR1": 320, "OR2": 96}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codrep", type=Path)
    parser.add_argument("--humaneval", type=Path)
    parser.add_argument("--planted", type=Path, default=PLANTED)
    parser.add_argument("--rows", type=int, default=1500, help="fixes to train on")
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
    for form in FORMS:
        for epochs in EPOCHS if not options.tried else EPOCHS[:1]:
            for bench, bugs in benches.items():
                parts = [[]] + (
                    [[MISMATCH, "repair.other_format=warn"]] if form[0] == "IR4" and epochs == 2 else []
                )
                for changes in parts:
                    if time.monotonic() > until:
                        print("out of time: call it again to go on")
                        return
                    judge(form, epochs, bench, bugs, changes, options)
    results = table(benches, options)
    json.dump(results, sys.stdout, indent=1)
    print()
    if not options.tried:
        write_json(HERE / "results.json", results)


def name_of(form: tuple[str, str], epochs: int) -> str:
    return f"{form[0]}x{form[1]}-{epochs}".lower()


def recipe(form: tuple[str, str], epochs: int, options: argparse.Namespace) -> list[str]:
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
    return [
        f"data.source={json.dumps(source)}", f"data.max_rows={json.dumps({'train': rows, 'eval': 40, 'test': 200})}",
        f"task.input={form[0]}", f"task.output={form[1]}", f"train.epochs={epochs}", f"model.name={options.model}",
        f"evaluate.max_new_tokens={TOKENS[form[1]]}", f"repair.max_new_tokens={TOKENS[form[1]]}", "repair.refill=false",
        "repair.num_beams=10", "data.max_length=768", *(["train.max_steps=2", "check.waive=[initial-loss]"] if options.tried else []),
    ]  # fmt: skip


def judge(
    form: tuple[str, str],
    epochs: int,
    bench: str,
    bugs: dict[str, Any],
    changes: list[str],
    options: argparse.Namespace,
) -> None:
    """Trains if that is not done, generates and judges; keeps the table beside the run."""
    run = options.work / name_of(form, epochs)
    kept = run / f"study-{bench}{'-mismatch' if changes else ''}"
    if (kept / "repair.json").is_file():
        return
    settings = recipe(form, epochs, options)
    if not (run / "adapter").is_dir():
        verb = "train" if form[1] == "OR1" or not options.codrep else "evaluate"
        luthier(verb, "repair", *settings, "--run", str(run))
    luthier("repair", str(run), f"repair.bugs={json.dumps(limited(bugs, options))}", *changes)
    kept.mkdir(exist_ok=True)
    for name in ("verdicts.jsonl", "repair.json"):
        (kept / name).write_bytes((run / "repair" / "tuned" / name).read_bytes())


def limited(bugs: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """All bugs, or two of the planted ones in a list of their own."""
    if not options.tried or bugs["type"] != "planted-bugs":
        return bugs
    content = read_json(Path(bugs["path"]))
    path = options.work.resolve() / "two-bugs.json"
    write_json(path, {"programs": content["programs"], "bugs": content["bugs"][:2]})
    return {**bugs, "path": str(path)}


def luthier(*arguments: str) -> None:
    print("luthier", *arguments[:2], flush=True)
    subprocess.run([sys.executable, "-m", "luthier", *arguments], check=True)


def table(benches: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """All figures, and the comparisons that the study is about."""
    rows: list[dict[str, Any]] = []
    for form in FORMS:
        for epochs in EPOCHS:
            run = options.work / name_of(form, epochs)
            for bench in benches:
                for folder in sorted(run.glob(f"study-{bench}*")):
                    found = read_json(folder / "repair.json")
                    rows.append({
                        "bench": bench, "input": form[0], "output": form[1], "epochs": epochs,
                        "other_comments": folder.name.endswith("-mismatch"), "num_bugs": found["num_judged"],
                        **{name: found["metrics"][name] for name in ("plausible@1", "plausible@5", "plausible@10", "compile_rate", "exact@10")},
                        "held_out": held_out(run),
                    })  # fmt: skip
    comparisons: dict[str, Any] = {}
    for bench in benches:
        best = options.work / name_of(("IR4", "OR2"), 2) / f"study-{bench}"
        others = {
            "IR4xOR2 against IR1xOR1": options.work / name_of(("IR1", "OR1"), 2) / f"study-{bench}",
            "IR4xOR2 against IR3xOR2": options.work / name_of(("IR3", "OR2"), 2) / f"study-{bench}",
            "two epochs against five": options.work / name_of(("IR4", "OR2"), 5) / f"study-{bench}",
            "two epochs against one": options.work / name_of(("IR4", "OR2"), 1) / f"study-{bench}",
            "same comments against others": Path(f"{best}-mismatch"),
        }
        for name, other in others.items():
            if (best / "repair.json").is_file() and (other / "repair.json").is_file():
                comparisons[f"{bench}: {name}"] = compare_repairs(best, other)["mcnemar"]
    return {
        "figures": {"rows": rows, "mcnemar": comparisons},
        "command": "python studies/repair/run.py"
        + (" --codrep FILE" if options.codrep else "")
        + (" --humaneval FILE" if options.humaneval else ""),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "notes": "Ten beams a bug, duplicates left in; a bug counts at k if any of its first k candidates passes all tests. "
        "only_first: bugs that only the first of both repaired.",
    }


def held_out(run: Path) -> Any:
    """Exact match of base and tuned model on held-out fixes, where they were asked."""
    path = run / "scores.json"
    scores = read_json(path) if path.is_file() else {}
    return scores.get("metrics", {}).get("exact_match")


if __name__ == "__main__":
    main()
