"""Which representation repairs most, how many epochs, and what another comment format costs: judged by execution.

    python studies/repair/run.py                          # 40 minutes; call it again until it says that it is done
    python studies/repair/run.py --codrep FILE --humaneval-java FILE
    python studies/repair/run.py --try                    # two steps and two bugs of each; writes no results

The embedded model learns fixes (in Java, CodRep's pairs, with ``--codrep FILE``; else in Python, bugs planted into the standard
library) as IR1 x OR1, IR3 x OR2 and IR4 x OR2 for two epochs, and as IR4 x OR2 for one and for five, of which the weights of
the best eval loss are judged, and the last ones. Bugs are of the language that it learned: ten candidates of each planted bug of
``benchmarks/planted/LANGUAGE.json`` and of HumanEvalPack (``--humaneval-python FILE``, ``--humaneval-java FILE``), ``--bugs`` of
each list, are judged by their tests; besides, exact matches on held-out fixes; and IR4 x OR2 once more with its buggy lines
commented in another way than it was trained with. Fixes that are among the bugs are kept out of training. The longest fix of a
bug decides how many tokens a candidate may have, so that none is out of reach.

Every part is a run folder in ``--work`` that goes on where it was stopped; with ``--only``, several calls share the trainings
between processors, and the one that finds all of them done writes the results. A part that would not end within ``--minutes``, by
the time that such parts took, is left to the next call; the first one of a call always runs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from luthier.encoding.encode import encode_prompt
from luthier.encoding.repair import output_text, place_of
from luthier.evaluate.patches import compare_repairs
from luthier.models.load import load_tokenizer
from luthier.recipe import Model, build
from luthier.records import Example, Record
from luthier.run_folder import read_json, write_json
from luthier.tasks.repair import Repair

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

import results  # noqa: E402 # what all benchmarks and studies write

PLANTED = HERE.parents[1] / "benchmarks" / "planted"
# Input, output, epochs, and which weights are kept: those of the best eval loss or the last ones.
Training = tuple[str, str, int, str]
BEST: Training = ("IR4", "OR2", 2, "best")
TRAININGS: tuple[Training, ...] = (
    ("IR1", "OR1", 2, "best"), ("IR3", "OR2", 2, "best"), BEST, ("IR4", "OR2", 1, "best"), ("IR4", "OR2", 5, "best"),
    ("IR4", "OR2", 5, "last"),
)  # fmt: skip
MISMATCH = "task.comments=indented"
# Fixes to learn have an input and an output of so many tokens at most, whatever the representation: the same for all.
LONGEST_FIX = 400
MOST = 2048  # positions of the model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codrep", type=Path, help="learn these fixes, in Java")
    for language in ("python", "java"):
        parser.add_argument(f"--planted-{language}", type=Path, default=PLANTED / f"{language}.json")
    for name in ("--humaneval-python", "--humaneval-java"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rows", type=int, default=600, help="fixes to train on")
    parser.add_argument("--held-out", type=int, default=48, help="fixes to be met exactly")
    parser.add_argument("--bugs", type=int, default=60, help="so many of each list, spread over it")
    parser.add_argument("--work", type=Path, default=Path("runs") / "study-repair")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument(
        "--only", action="append", choices=[name_of(one) for one in TRAININGS], help="of these trainings"
    )
    parser.add_argument("--try", dest="tried", action="store_true")
    options = parser.parse_args()
    if options.tried:
        options.work = options.work.with_name(f"{options.work.name}-tried")
    options.work.mkdir(parents=True, exist_ok=True)
    benches = lists(options)
    options.benchmarks = list(benches.values())
    benches = {name: limited(name, bugs, options) for name, bugs in benches.items()}
    options.limits = limits(benches, options)
    print(f"tokens: {options.limits}", flush=True)
    clock = Clock(options.work / "seconds.json", 60 * options.minutes)
    for training in TRAININGS:
        run = options.work / name_of(training)
        if options.only and run.name not in options.only:
            continue
        settings = recipe(training, options)
        trained = (run / "scores.json").is_file()
        if not trained and not clock.runs(
            "train", training[2], "evaluate", "repair", *settings, "--run", str(run)
        ):
            return
        for bench, bugs in benches.items():
            for kept in judged_of(training, bench, options):
                if (kept / "repair.json").is_file():
                    continue
                changes = [MISMATCH, "repair.other_format=warn"] if kept.name.endswith("-mismatch") else []
                source = f"repair.bugs={json.dumps(bugs)}"
                judged, shared = run / "repair" / "judged.jsonl", options.work / "judged.jsonl"
                if shared.is_file() and not judged.is_file():  # the same bugs need no second proof
                    judged.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(shared, judged)
                if not clock.runs(f"judge {training[1]}", 1, "repair", str(run), source, *changes):
                    return
                shutil.copy(judged, shared)
                kept.mkdir(exist_ok=True)
                for name in ("verdicts.jsonl", "repair.json"):
                    (kept / name).write_bytes((run / "repair" / "tuned" / name).read_bytes())
    kept = [one for training in TRAININGS for bench in benches for one in judged_of(training, bench, options)]
    if all((one / "repair.json").is_file() for one in kept):
        write(benches, options)
        print("done")


class Clock:
    """Runs commands as long as there is time, by how long others of their kind took.

    Args:
        path: File with the longest seconds of each kind, per unit of its size.
        budget: Seconds from now.
    """

    def __init__(self, path: Path, budget: float) -> None:
        self.path, self.end, self.ran = path, time.monotonic() + budget, False
        self.longest: dict[str, float] = read_json(path) if path.is_file() else {}

    def runs(self, kind: str, size: float, *command: str) -> bool:
        """Whether there was time, and the command was run."""
        known = self.longest.get(kind, max(self.longest.values(), default=0.0))
        if self.ran and time.monotonic() + known * size > self.end:
            print(f"no time left for {' '.join(command[:2])}: call it again to go on")
            return False
        began = time.monotonic()
        luthier(*command)
        self.ran = True
        self.longest[kind] = max(self.longest.get(kind, 0.0), (time.monotonic() - began) / size)
        write_json(self.path, self.longest)
        return True


def language_of(options: argparse.Namespace) -> str:
    """What is learned and judged: CodRep's fixes are Java."""
    return "java" if options.codrep else "python"


def lists(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The sources of bugs in the language that is learned."""
    language = language_of(options)
    planted, humaneval = (getattr(options, f"{name}_{language}") for name in ("planted", "humaneval"))
    found: dict[str, dict[str, Any]] = {}
    if planted.is_file():
        found[f"planted-{language}"] = {"type": "planted-bugs", "path": str(planted.resolve())}
    if humaneval:
        found[f"humaneval-{language}"] = {"type": "humaneval-pack", "path": str(humaneval.resolve()), "language": language}  # fmt: skip
    if not found:
        raise SystemExit(f"no bugs: {planted} is not there (make it with benchmarks/planted/make.py {language}), and --humaneval-{language} is not given")  # fmt: skip
    return found


def limits(benches: dict[str, dict[str, Any]], options: argparse.Namespace) -> dict[str, int]:
    """Tokens that outputs and rows have to have room for, and how many bugs have none in the model's positions."""
    tokenizer = load_tokenizer(Model(name=options.model))
    needs: list[tuple[str, int, int, str]] = []
    for asked, answer, *_ in TRAININGS:
        task = Repair(input=asked, output=answer)
        for bugs in benches.values():
            for record in build("source", bugs, "the bugs").records():
                sides = task.sides(record) if isinstance(record, Record) else None
                if not isinstance(sides, tuple):
                    continue
                place, lines = place_of(sides[0], sides[1])
                spans = task.prompt_spans(place, sides[2], "", tokenizer, 1 << 20)
                prompt = encode_prompt(Example(record.id, spans, record.group), tokenizer, 1 << 20)
                output = len(tokenizer.encode(output_text(place, lines, answer))) + 1
                needs.append((answer, len(prompt), output, record.id))
    fitting = [need for need in needs if need[1] + need[2] <= MOST]
    found = {
        answer: 8 * -(-max(o for a, _, o, _ in fitting if a == answer) // 8) for answer in ("OR1", "OR2")
    }
    room = max(2 * LONGEST_FIX, *(prompt + found[answer] for answer, prompt, *_ in fitting))
    without = {name for answer, prompt, _, name in needs if prompt + found[answer] > MOST}
    return {**found, "row": min(MOST, room), "bugs_without_room": len(without)}


def name_of(training: Training) -> str:
    asked, answer, epochs, kept = training
    return f"{asked}x{answer}-{epochs}{'-last' * (kept == 'last')}".lower()


def judged_of(training: Training, bench: str, options: argparse.Namespace) -> list[Path]:
    """Where the verdicts of a training on a list of bugs are kept; of the best one also with other comments."""
    place = options.work / name_of(training) / f"study-{bench}"
    return [place, place.with_name(f"{place.name}-mismatch")] if training == BEST else [place]


def recipe(training: Training, options: argparse.Namespace) -> list[str]:
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
    source["benchmarks"] = options.benchmarks
    rows, held_out = (64, 4) if options.tried else (options.rows, options.held_out)
    asked, answer, epochs, kept = training
    tokens = options.limits[answer]
    return [
        f"data.source={json.dumps(source)}", f"data.max_rows={json.dumps({'train': rows, 'eval': 40, 'test': held_out})}",
        f"task.input={asked}", f"task.output={answer}", f"train.epochs={epochs}", f"train.keep={kept}", f"model.name={options.model}",
        f"task.max_input_tokens={LONGEST_FIX}", f"task.max_output_tokens={LONGEST_FIX}",
        f"evaluate.max_new_tokens={LONGEST_FIX + 1 if answer == 'OR1' else tokens}", f"repair.max_new_tokens={tokens}",
        "repair.refill=false", "repair.num_beams=10", f"data.max_length={options.limits['row']}",
        # A deletion has no lines to write as OR2.
        f"check.waive={json.dumps(['empty-target', *(['initial-loss'] if options.tried else [])])}",
        *(["train.max_steps=2"] if options.tried else []),
    ]  # fmt: skip


def limited(name: str, bugs: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """A list of as many bugs as are wanted, spread over all, in a file of its own."""
    path = Path(bugs["path"])
    few = options.work.resolve() / f"few-{name}.json"
    wanted = 2 if options.tried else options.bugs

    def spread(entries: list[Any]) -> list[Any]:
        return (
            [entries[i * len(entries) // wanted] for i in range(wanted)] if wanted < len(entries) else entries
        )

    if bugs["type"] == "planted-bugs":
        content = read_json(path)
        # Programs that lie beside the list are named by where they are.
        places = {
            program: program if "sha256" in about else str((path.parent / program).resolve())
            for program, about in content["programs"].items()
        }
        write_json(
            few,
            {
                "programs": {places[program]: about for program, about in content["programs"].items()},
                "bugs": [{**bug, "program": places[bug["program"]]} for bug in spread(content["bugs"])],
            },
        )
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
    """results.json: all figures of this language, and the comparisons that the study is about; those of the other one are kept."""
    best, language = name_of(BEST), language_of(options)
    names = [name_of(training) for training in TRAININGS]
    figures: dict[str, Any] = {
        "held_out_exact_match": {language: {name: held_out(options.work / name) for name in names}},
        "tokens": {language: options.limits},
    }
    for bench in benches:
        folders = {name_of(one): judged_of(one, bench, options)[0] for one in TRAININGS}
        folders[f"{best}-other-comments"] = judged_of(BEST, bench, options)[1]
        figures[bench] = {name: scores(read_json(folder / "repair.json")) for name, folder in folders.items()}
        for name, folder in folders.items():
            if name != best:
                test = compare_repairs(folders[best], folder)["mcnemar"]
                figures[bench][f"{best} against {name}"] = {
                    "only_first": test["only_first"],
                    "only_second": test["only_second"],
                    "p_value": test["p_value"],
                }
    path = options.work / "results.json" if options.tried else HERE / "results.json"
    earlier = read_json(path) if path.is_file() else {"figures": {}, "commands": {}}
    ours = re.compile(rf"[a-z_]+[-/]{language}/")
    files = [name for name in (f"humaneval_{language}", "codrep") if getattr(options, name)]
    command = " ".join(
        ["python studies/repair/run.py", *(f"--{name.replace('_', '-')} FILE" for name in files)]
    )
    commands = {**earlier["commands"], language: command}
    results.write(
        path,
        {name: value for name, value in earlier["figures"].items() if not ours.match(name)} | figures,
        command="; ".join(commands.values()),
        packages=("luthier", "torch", "transformers"),
        notes=f"{options.rows} fixes to train on, {options.held_out} held out. Ten beams a bug, duplicates left in; a bug counts at k if any of its "
        "first k candidates passes all tests; intervals of 95% by a bootstrap over functions (planted bugs) and problems (HumanEvalPack). "
        "only_first: bugs that only the first of both repaired; p_value: McNemar's. tokens: the room of an output in either form, and of a row; "
        "bugs_without_room are more than the model's positions, and none is left out otherwise.",
        commands=commands,
    )


def scores(found: dict[str, Any]) -> dict[str, Any]:
    """Figures of one list of judged bugs."""
    names = ("plausible@1", "plausible@5", "plausible@10", "compile_rate", "exact@10")
    metrics = {name: results.with_interval(**found["metrics"][name]) for name in names}
    return {"bugs": found["num_judged"], **metrics}


def held_out(run: Path) -> Any:
    """Exact match of the tuned model on held-out fixes."""
    return read_json(run / "scores.json")["metrics"]["exact_match"]["tuned"]


if __name__ == "__main__":
    main()
