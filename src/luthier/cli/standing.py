"""Where a run stands, from the files of its folder alone, also while it runs."""

from __future__ import annotations

import time
from typing import Any

import yaml

from luthier.display.text import counted, duration
from luthier.errors import UserError
from luthier.run_folder import RunFolder, read_json, read_jsonl
from luthier.schedule import total_steps

_RECENT_STEPS = 20  # over which speed is measured


def lines(run: RunFolder) -> list[tuple[str, str]]:
    """Label and text of each thing to say.

    Raises:
        UserError: The folder holds no run.
    """
    recipe = _recipe(run)
    said = [("run", f"{recipe.get('name', '?')} in {run.path}")]
    history = read_jsonl(run.history)
    if history:
        said += _training(run, recipe, history)
    elif run.result():
        said.append(("training", f"no history, but a result in {run.result()}"))
    else:
        said.append(("training", "no step yet: the run has no history"))
    if run.findings.is_file():
        found = read_json(run.findings)
        counts = {s: sum(f["severity"] == s for f in found["findings"]) for s in ("error", "warning", "note")}
        text = ", ".join(counted(count, name) for name, count in counts.items())
        said.append(("findings", f"{'ok' if found['ok'] else 'not ok'}: {text}"))
    stages = {
        "prepare": run.manifest,
        "check": run.findings,
        "train": run.result(),
        "evaluate": run.scores,
        "report": run.report,
    }
    finished = [name for name, path in stages.items() if path is not None and path.exists()]
    said.append(("finished", ", ".join(finished) or "nothing yet"))
    if run.report.is_file():
        said.append(("report", str(run.report)))
    return said


def _training(run: RunFolder, recipe: dict[str, Any], history: list[dict[str, Any]]) -> list[tuple[str, str]]:
    last = history[-1]
    steps = [row for row in history if "loss" in row]
    evals = [row for row in history if "eval" in row]
    total = _total_steps(run, recipe)
    said = [("step", f"{last['step']}" + (f" of {total} ({last['step'] / total:.0%})" if total else ""))]
    if steps:
        said.append(("loss", f"{steps[-1]['loss']:.4f} (first {steps[0]['loss']:.4f})"))
    if evals:
        said.append(("last eval", f"{evals[-1]['eval']['loss']:.4f} at step {evals[-1]['step']}"))
        best = [row for row in evals if row["eval"].get("best")]
        if best:
            said.append(("best eval", f"{best[-1]['eval']['loss']:.4f} at step {best[-1]['step']}"))
    said += [
        ("noticed", f"{found['check']} at step {row['step']}: {found['what']}")
        for row in steps
        for found in row.get("findings", ())
    ]
    if run.result():
        said.append(("time", f"trained in {duration(steps[-1]['seconds'])}" if steps else "trained"))
        return said
    recent = steps[-_RECENT_STEPS:]
    if total and len(recent) > 1:
        pace = (recent[-1]["seconds"] - recent[0]["seconds"]) / (len(recent) - 1)
        said.append(("time left", f"about {duration(pace * (total - last['step']))} of training"))
    ago = max(0.0, time.time() - run.history.stat().st_mtime)
    said.append(("last step", f"{duration(ago)} ago"))
    return said


def _recipe(run: RunFolder) -> dict[str, Any]:
    if not run.recipe.is_file():
        raise UserError(
            f"{run.path} holds no run: there is no recipe.yaml in it",
            str(run.path),
            "name a run folder, as --run did; without it that is runs/NAME",
        )
    try:
        tree = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"recipe.yaml is damaged: {error}", str(run.recipe), "run `luthier run` again"
        ) from error
    return tree if isinstance(tree, dict) else {}


def _total_steps(run: RunFolder, recipe: dict[str, Any]) -> int | None:
    from luthier.recipe import Train

    if not run.ledger.is_file():
        return None
    rows = read_json(run.ledger)["splits"].get("train", {}).get("rows", 0)
    return total_steps(Train(**recipe.get("train", {})), rows) if rows else None
