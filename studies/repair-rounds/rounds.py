"""Bugs of HumanEvalPack repaired in rounds, by a model and by a script: parts of the study, which ``run.py`` calls.

The script answers each bug with a patch that raises a text of its own, and with the right function once the prompt shows that
very text: what passes in the second round is what got its own feedback.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.encoding.replies import fenced
from luthier.records import Record
from luthier.run_folder import read_json
from luthier.sources.bugs import HumanEvalPack
from luthier.tasks.repair import Repair

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fixtures.scripted import served  # the server that the tests ask

# Of the script's server: conversations that were begun are those of one address.
PORT = 18427
CHAT = ["task.type=repair", "task.format=chat", "task.input=IR1", "task.output=OR1"]
ENCODING = ["data.max_length=1536", "repair.max_new_tokens=128"]
TRIED = [
    "train.max_steps=2",
    "check.waive=[initial-loss]",
    "repair.num_candidates=2",
    "repair.num_beams=2",
    "repair.max_new_tokens=8",
]


def by_model(
    files: Mapping[str, Path],
    work: Path,
    model: str,
    rows: int,
    num_rounds: int,
    num_candidates: int,
    num_bugs: int | None,
    *,
    tried: bool = False,
) -> dict[str, Any]:
    """``plausible_by_round`` and what became of each round, by language, for the model before and after training.

    Args:
        files: HumanEvalPack's rows by language.
        work: Folder of the run.
        model: Its name.
        rows: Planted fixes of the standard library to train on; one epoch.
        num_rounds: Prompts for each bug.
        num_candidates: Beams of each prompt, all judged.
        num_bugs: So many of each language, spread over all; None is all.
        tried: Two steps, two candidates and two bugs.
    """
    run = work / "repair"
    keys = [
        f"model.name={model}", f"data.max_rows={{train: {rows}, eval: 40, test: 40}}", *ENCODING,
        f"repair.num_candidates={num_candidates}", f"repair.num_beams={2 * num_candidates}", *(TRIED if tried else []),
    ]  # fmt: skip
    if not (run / "adapter").is_dir():
        luthier("train", "repair", *keys, "--run", str(run))
    found: dict[str, Any] = {"plausible_by_round": {}, "rounds": {}}
    for language, path in files.items():
        bugs = bugs_of(path, language, work, 2 if tried else num_bugs)
        for which in ("base", "tuned"):
            # One folder of results a language: conversations of others would be in the way.
            place = work / f"{language}-{which}"
            if not (place / "rounds.json").is_file():
                more = ["--base"] if which == "base" else []
                luthier(
                    "repair", str(run), f"repair.bugs={json.dumps(bugs)}", "--rounds", str(num_rounds), *more
                )
                place.mkdir(parents=True, exist_ok=True)
                (place / "rounds.json").write_bytes(
                    (run / "repair" / f"{which}-rounds" / "rounds.json").read_bytes()
                )
            add(found, f"{language}/{which}", place)
    return found


def by_script(files: Mapping[str, Path], work: Path, *, tried: bool = False) -> dict[str, Any]:
    """The same of the script, through a server that speaks OpenAI's protocol."""
    found: dict[str, Any] = {"plausible_by_round": {}, "rounds": {}}
    for language, path in files.items():
        run = work / f"{language}-script"
        if not (run / "repair" / "server-rounds" / "rounds.json").is_file():
            with served(Script(path, language), port=PORT) as (url, _):
                server = json.dumps({"url": url, "model": "script"})
                keys = [
                    f"repair.bugs={json.dumps(bugs_of(path, language, work, 2 if tried else None))}",
                    f"repair.rounds.server={server}",
                ]
                keys += ["repair.num_candidates=1", "repair.num_beams=1", *CHAT]
                luthier("repair", "repair", *keys, "--rounds", "2", "--run", str(run))
        add(found, f"{language}/script", run / "repair" / "server-rounds")
    return found


def add(found: dict[str, Any], name: str, place: Path) -> None:
    """Adds the figures of a folder of results, all of them numbers, or numbers with their intervals."""
    results = read_json(place / "rounds.json")
    found["plausible_by_round"][name] = {
        metric.rpartition(" ")[2]: [round(n, 4) for n in (one["value"], *one["interval"])]
        if one["interval"]
        else one["value"]
        for metric, one in results["metrics"].items()
    }
    found["rounds"][name] = {
        "num_bugs": results["num_bugs"],
        "num_judged": results["num_judged"],
        "left_out": {reason: len(names) for reason, names in results["left_out"].items()},
        "ends": {reason: len(names) for reason, names in results["ends"].items()},
        **{str(one["round"]): {key: one[key] for key in one if key != "round"} for one in results["rounds"]},
    }


def bugs_of(path: Path, language: str, work: Path, few: int | None) -> dict[str, str]:
    """The source of the bugs; of so few of them, spread over all, in a file of its own."""
    if few:
        read = gzip.open if path.suffix == ".gz" else open
        with read(path, "rt", encoding="utf-8") as file:
            lines = list(file)
        path = work / f"{few}-{language}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        some = [lines[i * len(lines) // few] for i in range(few)] if few < len(lines) else lines
        path.write_text("".join(some), encoding="utf-8")
    return {"type": "humaneval-pack", "path": str(path.resolve()), "language": language}


class Script:
    """A chat model that knows every fix, and gives it only to who shows what its wrong patch raised."""

    def __init__(self, path: Path, language: Any) -> None:
        self.language = language
        self.fixes: dict[str, tuple[str, str, str]] = {}
        task = Repair(input="IR1", output="OR1", format="chat")
        for record in HumanEvalPack(path=str(path), language=language).records():
            sides = task.sides(record) if isinstance(record, Record) else None
            if isinstance(sides, tuple):
                buggy, fixed, _ = sides
                mark = f"marked {hashlib.sha256(fixed.encode()).hexdigest()[:12]}"
                self.fixes[fenced(buggy, language)] = (mark, self.wrong(fixed, mark), fixed)

    def wrong(self, function: str, mark: str) -> str:
        """The function with an exception at its beginning."""
        if self.language == "java":
            return re.sub(r"\{", f'{{ if (true) throw new RuntimeException("{mark}"); ', function, count=1)
        header = re.match(r"\s*def .*?:[ \t]*\n", function, re.DOTALL)
        assert header is not None, function
        body = function[header.end() :]
        indent = body[: len(body) - len(body.lstrip())]
        return f'{header[0]}{indent}raise ValueError("{mark}")\n{body}'

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        mark, wrong, fixed = next(
            fix for shown, fix in self.fixes.items() if messages[0]["content"].endswith(shown)
        )
        told = messages[-1]["content"] if len(messages) > 1 else ""
        return f"Here it is:\n\n{fenced(fixed if mark in told else wrong, self.language)}\n"


def luthier(*arguments: str) -> None:
    print("luthier", *arguments[:2], flush=True)
    # The script's server is on this machine, whatever stands between it and others.
    apart = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
    subprocess.run(
        [sys.executable, "-m", "luthier", *arguments], check=True, env={**os.environ, "NO_PROXY": apart}
    )
