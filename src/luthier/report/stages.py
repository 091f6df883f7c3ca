"""The page of a recipe with training stages: each stage with its figures, what changed between them, and what was forgotten."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from luthier.display import pages
from luthier.recipe import Recipe
from luthier.report import curves, history, sections
from luthier.run_folder import RunFolder, read_json, write_text

_HERE = Path(__file__).parent


def write(place: RunFolder, recipe: Recipe) -> Path:
    """Path of the page, of whatever the stages have come to by now.

    Args:
        place: The run's folder, with those of the stages below it.
        recipe: With its stages.
    """
    folders = place.trainings()
    picture = place.figures / "stages.png"
    drawn = curves.overlay({name: history.read(run) for name, run in folders.items()}, picture)
    template = pages.environment(_HERE).get_template("stages.html.j2")
    told = {entry["stage"]: entry for entry in read_json(place.changes, list)}
    text = template.render(
        recipe=recipe,
        stages=[_stage(name, run, told[name]) for name, run in folders.items()],
        forgetting=forgetting(place),
        picture=pages.picture(picture) if drawn else None,
        recipe_text=place.recipe.read_text(encoding="utf-8"),
        look=pages.look(),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
    )
    write_text(place.report, text)
    return place.report


def forgetting(place: RunFolder) -> list[dict[str, Any]]:
    """``stage`` and the later stage it is looked at ``after``, with entries of ``sections.metrics``, or why there are none."""
    known = read_json(place.forgetting, list) if place.forgetting.is_file() else []
    order = list(place.trainings())
    known = [entry for entry in known if entry["stage"] in order and entry["after"] in order]
    known.sort(key=lambda entry: (order.index(entry["stage"]), order.index(entry["after"])))
    return [{**entry, "rows": sections.metrics(entry) if "metrics" in entry else []} for entry in known]


def _stage(name: str, run: RunFolder, told: Mapping[str, Any]) -> dict[str, Any]:
    past = history.read(run)
    key = history.key_figures(past)
    scores = read_json(run.scores) if run.scores.is_file() else None
    ledger = read_json(run.ledger) if run.ledger.is_file() else None
    return {
        "name": name,
        "goes_on_from": told["goes_on_from"],
        "changes": [(key, _plain(before), _plain(after)) for key, (before, after) in told["changes"].items()],
        "rows": f"{ledger['splits']['train']['rows']:,}" if ledger else "–",
        "steps": "–" if key.last_step is None else f"{key.last_step:,}",
        "seconds": sections.duration(key.seconds),
        "first_loss": sections.number(key.eval_first, "nats"),
        "best_loss": sections.number(key.eval_best, "nats"),
        "headline": sections.headline(scores)[0] if scores else None,
        "metrics": sections.metrics(scores) if scores else [],
        "state": "evaluated"
        if scores
        else "trained"
        if run.result()
        else "in training"
        if past.steps
        else "not trained yet",
        "page": f"stages/{name}/{run.report.name}" if run.report.is_file() else None,
        "findings": _findings(run),
    }


def _findings(run: RunFolder) -> list[dict[str, Any]]:
    """Errors and warnings of the checks, and notes with a figure."""
    if not run.findings.is_file():
        return []
    return [
        found
        for found in read_json(run.findings)["findings"]
        if found["severity"] != "note" or found.get("measured") is not None
    ]


def _plain(value: Any) -> str:
    return (
        "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
