"""Where a run stands, from the files of its folder alone, also while it runs."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import yaml
from pydantic import ValidationError

from luthier.display.text import counted, duration
from luthier.errors import UserError
from luthier.launch import slurm
from luthier.recipe import Train
from luthier.report import sweep
from luthier.run_folder import RunFolder, read_json, read_jsonl
from luthier.schedule import total_steps

_RECENT_STEPS = 20  # over which speed is measured
_LOG_LINES = 5
_END_OF_LOG = 4096  # bytes in which those lines are looked for


def lines(run: RunFolder) -> list[tuple[str, str]]:
    """Label and text of each thing to say.

    Raises:
        UserError: The folder holds no run.
    """
    jobs = slurm.jobs(run)
    if jobs and not run.recipe.is_file():  # it waits for its turn
        return [("run", str(run.path)), *_jobs(jobs), *_log(run, jobs)]
    recipe = _recipe(run)
    said = [("run", f"{recipe.get('name', '?')} in {run.path}"), *_jobs(jobs)]
    if run.stopped.is_file():
        stopped = read_json(run.stopped)
        said.append(("stopped", f"{stopped['kind']}: {stopped['what']}"))
    if trainings := run.trainings():
        for name, one in trainings.items():
            waits = ("stage", f"{name}: waits for its turn")
            said += [("stage", name), *lines(one)[1:]] if one.recipe.is_file() else [waits]
        return said + [("report", str(run.report))] * run.report.is_file()
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
    return said if run.scores.is_file() and not run.stopped.is_file() else said + _log(run, jobs)


def sweep_lines(top: RunFolder) -> list[tuple[str, str]]:
    """The same for a sweep: its jobs, and a line for each of its runs."""
    jobs = slurm.jobs(top)
    said = [("sweep", str(top.path)), *_jobs(jobs)]
    for member in sweep.members(top.path):
        text = member.reason or member.state
        history = read_jsonl(member.run.history) if member.state == "running" else []
        if history:
            text += ", " + ", ".join(
                f"{label} {value}" for label, value in _course(member.run, _recipe(member.run), history)
            )
        elif member.eval_loss is not None:
            text += f", validation loss {member.eval_loss:.4f}"
        said.append(("run", f"{member.run.path.name}: {text}"))
    if (top.path / "report.html").is_file():
        said.append(("report", str(top.path / "report.html")))
    return said


def _jobs(jobs: list[slurm.Job]) -> list[tuple[str, str]]:
    return [("job", f"{job.number} {job.state}" + (f" ({job.reason})" if job.reason else "")) for job in jobs]


def _log(run: RunFolder, jobs: list[slurm.Job]) -> list[tuple[str, str]]:
    """The last lines of what the newest job wrote, or of ``run.log``."""
    for path in [*([slurm.log(run, jobs[-1])] if jobs else []), run.log]:
        if path.is_file():
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - _END_OF_LOG))
                text = file.read().decode("utf-8", "replace")
            return [("log", line) for line in text.splitlines()[-_LOG_LINES:]]
    return []


def _course(run: RunFolder, recipe: dict[str, Any], history: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """How far training has come, how fast it goes, and how long it will take."""
    last, steps = history[-1], [row for row in history if "loss" in row]
    total = _total_steps(run, recipe)
    said = [("step", f"{last['step']}" + (f" of {total} ({last['step'] / total:.0%})" if total else ""))]
    recent = steps[-_RECENT_STEPS:]
    if recent:
        said.append(("speed", f"{median(row['tokens_per_s'] for row in recent):,.0f} tokens/s"))
    if total and len(recent) > 1 and not run.result():
        pace = (recent[-1]["seconds"] - recent[0]["seconds"]) / (len(recent) - 1)
        said.append(("time left", f"about {duration(pace * (total - last['step']))} of training"))
    return said


def _training(run: RunFolder, recipe: dict[str, Any], history: list[dict[str, Any]]) -> list[tuple[str, str]]:
    steps = [row for row in history if "loss" in row]
    evals = [row for row in history if "eval" in row]
    said = _course(run, recipe, history)
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
    if not run.ledger.is_file():
        return None
    train = read_json(run.ledger)["splits"].get("train", {})
    rows = train.get("rows", 0)
    if not rows:
        return None
    try:
        settings = Train.model_validate(recipe.get("train") or {})
    except ValidationError as error:
        what = f"recipe.yaml holds settings that this version does not take: {error.errors()[0]['msg']}"
        raise UserError(what, str(run.recipe), f"see all of them: luthier check {run.path}") from error
    return total_steps(settings, rows, train["tokens"])
