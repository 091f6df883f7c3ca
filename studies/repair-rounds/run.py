"""Repair in rounds, two stages on vulnerable code, and what names give away: all figures of the study.

    python studies/repair-rounds/run.py --humaneval-python FILE --humaneval-java FILE --sven FILE     # all bugs: hours; writes results.json
    python studies/repair-rounds/run.py ... --only script                                             # one part; keeps the others' figures
    python studies/repair-rounds/run.py ... --try                                                     # two bugs, two steps; writes nothing

Parts: ``script`` (each bug's feedback reaches its prompt), ``model`` (plausible by round, before and after training),
``leak-probe`` and ``stages``. Each goes on where it was stopped; a part whose file is not given is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rounds

from luthier.run_folder import read_json, write_json

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

import results  # noqa: E402 # what all benchmarks and studies write

FILES = ("humaneval_python", "humaneval_java", "sven")
NOTES = (
    "plausible_by_round: share of judged bugs with a patch that passes all tests in that round or before, with its 95% bootstrap interval over problems. "
    "base and tuned: beams of the model before and after training, each prompt with the earlier wrong patches and what their tests said. script: "
    "repairs a bug exactly when its prompt shows what that bug's own wrong patch raised."
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--humaneval-python", type=Path)
    parser.add_argument("--humaneval-java", type=Path)
    parser.add_argument("--sven", type=Path)
    parser.add_argument("--rows", type=int, default=1500, help="planted fixes to train on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bugs", type=int, help="for the model so many of each language, spread over all")
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs") / "study-repair-rounds")
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--only", action="append", choices=list(PARTS))
    parser.add_argument("--try", dest="tried", action="store_true")
    options = parser.parse_args()
    if options.tried:
        options.work = options.work.with_name(f"{options.work.name}-tried")
    for name, part in PARTS.items():
        if options.only and name not in options.only:
            continue
        found = part(options)
        if found is None:
            print(f"{name}: left out, its file is not given", flush=True)
        else:
            write_json(options.work / "figures" / f"{name}.json", found)
    path = HERE / "results.json"
    figures: dict[str, Any] = read_json(path)["figures"] if path.is_file() and not options.tried else {}
    for name in PARTS:
        done = options.work / "figures" / f"{name}.json"
        figures |= results.flat(read_json(done)) if done.is_file() else {}
    if options.tried:
        print(json.dumps(figures, indent=1))
        return
    results.write(
        path,
        figures,
        command=" ".join(
            [
                "python studies/repair-rounds/run.py",
                *(f"--{name.replace('_', '-')} FILE" for name in FILES),
                *([f"--bugs {options.bugs}"] if options.bugs else []),
            ]
        ),
        packages=["luthier", "torch", "transformers"],
        notes=NOTES,
    )


def humaneval(options: argparse.Namespace) -> dict[str, Path]:
    files = {"python": options.humaneval_python, "java": options.humaneval_java}
    return {language: path for language, path in files.items() if path is not None}


def script(options: argparse.Namespace) -> dict[str, Any] | None:
    files = humaneval(options)
    return rounds.by_script(files, options.work, tried=options.tried) if files else None


def model(options: argparse.Namespace) -> dict[str, Any] | None:
    files = humaneval(options)
    if not files:
        return None
    return rounds.by_model(
        files,
        options.work,
        options.model,
        options.rows,
        options.rounds,
        options.candidates,
        options.bugs,
        tried=options.tried,
    )


def leak_probe(options: argparse.Namespace) -> dict[str, Any] | None:
    import leak_probe as part

    return part.figures(options.sven)


def stages(options: argparse.Namespace) -> dict[str, Any] | None:
    import stages as part

    return (
        part.figures(options.sven, options.work, options.model, tried=options.tried) if options.sven else None
    )


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any] | None]] = {
    "script": script,
    "model": model,
    "leak-probe": leak_probe,
    "stages": stages,
}


if __name__ == "__main__":
    main()
