"""Two stages on vulnerable code, without and with its class, and what the second forgets: parts of the study, which ``run.py`` calls.

    python studies/repair-rounds/stages.py --sven sven-train.jsonl.gz           # two trainings; goes on where it was stopped
    python studies/repair-rounds/stages.py --sven sven-train.jsonl.gz --try     # six steps of each

The recipe is the shipped ``repair-stages``; its run folder keeps predictions, curves and the page of both stages. The run is
killed once in each stage, behind a checkpoint, and begun again by the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from luthier import recipe_file
from luthier.run_folder import RunFolder, read_json, read_jsonl, write_json

OFTEN = ["train.checkpoint_every_steps=5"]
TRIED = [
    "train.max_steps=6", "stages.with-class.train.max_steps=6", "data.max_rows={eval: 4, test: 6}",
    "check.waive=[empty-target, initial-loss]", "train.checkpoint_every_steps=1",
]  # fmt: skip


def figures(
    sven: Path,
    work: Path,
    model: str = "embedded:smollm2-135m",
    overrides: tuple[str, ...] = (),
    *,
    tried: bool = False,
) -> dict[str, Any]:
    """Scores of each stage (``stages``), of the second stage's model on the first one's test rows (``forgetting``), and by stage the step at which it was killed (``killed``) and the one from which it went on (``went_on_from``).

    Args:
        sven: Rows with both sides and their CWE (JSONL).
        work: Where the run folder lies.
        model: Name of the model.
        overrides: Further keys of the recipe.
        tried: Six steps only.
    """
    keys = [
        f"data.source.path={sven.resolve()}",
        f"model.name={model}",
        *OFTEN,
        *overrides,
        *(TRIED if tried else []),
    ]
    place = RunFolder(work / "stages")
    command = [sys.executable, "-m", "luthier", "run", "repair-stages", *keys, "--run", str(place.path)]
    kills = work / "kills.json"
    for name in recipe_file.load("repair-stages", keys).stages:
        killed = read_json(kills) if kills.is_file() else {}
        if name not in killed:
            write_json(kills, killed | {name: killed_in(place.training(name), command)})
    print("to the end", flush=True)
    subprocess.run(command, check=True)
    found: dict[str, Any] = {"stages": {}, "forgetting": {}, "killed": read_json(kills), "went_on_from": {}}
    log = place.log.read_text(encoding="utf-8")
    for name, run in place.trainings().items():
        # Of several the first: a run that was stopped by hand went on again later.
        found["went_on_from"][name] = int(
            re.findall(rf"resuming from .*{name}/checkpoints/step-(\d+)", log)[0]
        )
        scores = read_json(run.scores)["metrics"]
        found["stages"][name] = {
            metric: {
                "before": one["base"],
                "after": one["tuned"],
                "difference": [one["difference"], *one["interval"]] if one["interval"] else one["difference"],
            }
            for metric, one in scores.items()
        }
    for entry in read_json(place.forgetting, list):
        found["forgetting"][f"{entry['stage']}-after-{entry['after']}"] = {
            metric: [one["difference"], *one["interval"]] if one["interval"] else one["difference"]
            for metric, one in entry["metrics"].items()
        }
    return found


def killed_in(stage: RunFolder, command: list[str]) -> int:
    """Runs a command until a stage has a checkpoint, and kills it; returns the last step that its history has."""
    if stage.scores.is_file():
        raise SystemExit(f"{stage.path} was not killed and is at its end: begin with another --work")
    print(f"to be killed in {stage.path.name}", flush=True)
    process = subprocess.Popen(command, start_new_session=True)
    try:
        while not any(stage.path.glob("checkpoints/step-*/manifest.json")):
            if process.poll() is not None:
                raise SystemExit(f"luthier ended with {process.returncode} before it had a checkpoint")
            time.sleep(0.05)  # until the folder is looked at again
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != -signal.SIGKILL or stage.result() is not None:
        raise SystemExit(f"{stage.path} ended before it was killed: begin with another --work")
    return int(max(row["step"] for row in read_jsonl(stage.history)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sven", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs") / "study-repair-rounds")
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--try", dest="tried", action="store_true")
    options = parser.parse_args()
    print(json.dumps(figures(options.sven, options.work, options.model, tried=options.tried), indent=1))
