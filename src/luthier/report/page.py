"""``report.html``: the run as a page for people. Nothing in it comes from a network, and no text from data is trusted."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from luthier.display import findings as shown_findings
from luthier.display import pages
from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.records import Row
from luthier.report import classes, history, ontology, repairs, sections, words
from luthier.report.safe import code, json_for_script
from luthier.run_folder import RunFolder, read_json, read_jsonl, write_text

_HERE = Path(__file__).parent
_MOST_TOKENS = 1500


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row as the model sees it.

    Attributes:
        row: The encoded row.
        pieces: Text of each token, shape (num_tokens,).
        split: The split it is in.
    """

    row: Row
    pieces: Sequence[str]
    split: str = "train"


def write(run: RunFolder, recipe: Recipe, *, rows_shown: Sequence[ShownRow] = ()) -> Path:
    """Path of the page. A run that stopped anywhere gets a page too, which says what is missing.

    Args:
        run: The run's folder, with whatever stages have left there.
        recipe: The run's recipe.
        rows_shown: Rows to show token by token.
    """
    text = _environment().get_template("page.html.j2").render(_view(run, recipe, rows_shown))
    write_text(run.report, text)
    return run.report


def _environment() -> jinja2.Environment:
    environment = pages.environment(_HERE)
    environment.filters["code"] = code
    environment.filters["number"] = sections.number
    environment.filters["short"] = sections.short
    environment.filters["label"] = sections.label
    return environment


def _view(run: RunFolder, recipe: Recipe, rows_shown: Sequence[ShownRow]) -> dict[str, Any]:
    problems: list[str] = []

    def load(path: Path) -> Any:
        if not path.is_file():
            return None
        try:
            return read_json(path)
        except UserError as error:
            problems.append(error.what)
            return None

    def load_lines(path: Path) -> list[dict[str, Any]]:
        try:
            return read_jsonl(path)
        except UserError as error:
            problems.append(error.what)
            return []

    ledger, findings, scores, environment = map(load, (run.ledger, run.findings, run.scores, run.environment))
    try:
        graph = ontology.view(run)
    except UserError as error:
        graph = None
        problems.append(error.what)
    past = history.from_rows(load_lines(run.history))
    smoothed = history.smooth(past.series("loss"), recipe.report.smoothing_window)
    predictions = load_lines(run.predictions)
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    sentence, verdict = sections.headline(scores) if scores else (None, "untested")
    chart = sections.chart_data(past, smoothed) if past.steps or past.evals else None
    return {
        "recipe": recipe,
        "about": _about(recipe, ledger, past),
        "state": _state(run, recipe, ledger, findings, past, scores),
        "headline": sentence,
        "verdict": verdict,
        "metrics": sections.metrics(scores) if scores else [],
        "macro": sections.macro(scores) if scores else {},
        "scores": scores,
        "keeps_no_test": _keeps_no_test(ledger),
        "strata": sections.strata(scores) if scores else [],
        "observations": words.observations(past, smoothed),
        "base_name": "Baseline" if scores and scores.get("base_is") == "baseline" else "Base",
        "classes": classes.view(scores, past),
        "pictures": {name: pages.picture(run.figures / f"{name}.png") for name in classes.FIGURES},
        "key_figures": sections.figures(history.key_figures(past, smoothed), smoothed),
        "chart": json_for_script(chart) if chart else None,
        "thinned": chart is not None and chart["total"] > len(chart["steps"]),
        "smoothed": bool(smoothed.values),
        "warmup": history.warmup_end(past) > 1,
        "smoothing": smoothed.note,
        "figure": pages.picture(run.figures / "learning_curve.png"),
        "ledger": sections.ledger(ledger) if ledger else None,
        "findings": shown_findings.view(findings) if findings else None,
        "watched": [{**found, "waived": False} for found in past.findings],
        "predictions": sections.predictions(predictions, recipe.report.num_predictions),
        "num_predictions": len(predictions),
        "ontology": graph,
        "repairs": repairs.view(run, load, load_lines),
        "repair_rounds": repairs.view_rounds(run, load, load_lines),
        "samples": sections.samples(past),
        "rows": [_row(row) for row in rows_shown],
        "environment": environment or {},
        "recipe_text": run.recipe.read_text(encoding="utf-8", errors="replace")
        if run.recipe.is_file()
        else None,
        "problems": problems,
        "look": pages.look(),
        "style": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        # The only script that the browser may run is this one, whatever the page's text says.
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _about(recipe: Recipe, ledger: Mapping[str, Any] | None, past: history.History) -> str:
    adapter = recipe.model.adapter
    kinds = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}
    how = (
        f"a {kinds[adapter.variant]} adapter of rank {adapter.rank}"
        if adapter
        else f"{'a part' if recipe.model.freeze else 'all'} of its own weights trained"
    )
    if recipe.model.quantisation:
        how = f"its weights in {recipe.model.quantisation} and {how}"
    if recipe.model.start_from:
        how += f", from the adapter {recipe.model.start_from} ({recipe.model.start_mode})"
    verb = "fine-tuned" if past.steps else "to be fine-tuned"
    source = recipe.data.source
    named = next((str(source[key]) for key in ("path", "name", "paths") if source.get(key)), None)
    origin = f"{source['type']}" + (f" ({named})" if named else "")
    amount = ""
    if ledger and "train" in ledger["splits"]:
        train = ledger["splits"]["train"]
        amount = f" on {train['rows']:,} rows, {sections.short(train['tokens'])} tokens,"
    return (
        f"{recipe.model.name} with {how}, {verb} for {recipe.task['type']}{amount} from the source {origin}."
    )


def _state(
    run: RunFolder, recipe: Recipe, ledger: Any, findings: Any, past: history.History, scores: Any
) -> tuple[str, str] | None:
    """What is missing from a whole run, and how to go on; none for a whole run."""
    go_on = f"luthier run {shlex.quote(str(run.recipe))} --run {shlex.quote(str(run.path))}"
    if scores or (run.result() and _keeps_no_test(ledger)):
        return None
    if run.result():
        return "Trained, but not compared with the base model on the test rows yet.", go_on
    if past.steps or past.evals:
        last = (past.steps or past.evals)[-1]["step"]
        stopping = [f for f in past.findings if f["step"] == last and f["check"] in recipe.train.stop_on]
        if stopping:
            return (
                f"{stopping[0]['check']} stopped training after step {last:,}: {stopping[0]['what']}.",
                go_on,
            )
        return (
            f"Training has not ended: the history reaches step {last:,}. It is still running, or was stopped.",
            go_on,
        )
    if findings and not findings["ok"]:
        return "The checks found errors, so training did not start.", go_on
    if findings:
        return "Prepared and checked, but not trained yet.", go_on
    return (
        "Prepared, but neither checked nor trained yet." if ledger else "Nothing has been prepared yet."
    ), go_on


def _keeps_no_test(ledger: Any) -> bool:
    return ledger is not None and not ledger["splits"].get("test", {}).get("rows")


def _row(shown: ShownRow) -> dict[str, Any]:
    """A row's tokens, span by span; of a very long row the middle of untrained spans is left out, and counted."""
    row = shown.row
    weights = [float(weight) for weight in row.loss_weights]
    tokens = list(zip(row.span_ids, shown.pieces, weights, strict=True))
    share = min(1, _MOST_TOKENS / max(len(tokens), 1))
    spans: list[dict[str, Any]] = []
    by_name: dict[str, dict[str, Any]] = {}
    for span_id, group in groupby(tokens, key=lambda token: int(token[0])):
        name = row.span_names[span_id] if span_id >= 0 else "control"
        boxes = [{"text": code(text, marks=True), "weight": weight} for _, text, weight in group]
        trained = [box["weight"] for box in boxes if box["weight"]]
        half = max(int(share * len(boxes)) // 2, 20)
        hidden = len(boxes) - 2 * half if share < 1 and not trained else 0
        if hidden > 0:
            boxes[half : len(boxes) - half] = []
        spans.append({"name": name, "tokens": boxes, "hidden": max(hidden, 0), "after": half})
        entry = by_name.setdefault(name, {"name": name, "tokens": 0, "trained": 0, "weights": set()})
        entry["tokens"] += len(boxes) + max(hidden, 0)
        entry["trained"] += len(trained)
        entry["weights"] |= {f"{weight:g}" for weight in trained}
    for name, count in row.trimmed.items():
        if count:
            by_name.setdefault(name, {"name": name, "tokens": 0, "trained": 0, "weights": set()})[
                "trimmed"
            ] = count
    for entry in by_name.values():
        several = sorted(entry["weights"], key=float)
        entry["weights"] = ", ".join(several[:4]) + (" …" if len(several) > 4 else "")
    return {"id": row.id, "split": shown.split, "spans": spans, "names": list(by_name.values()), "lossy": row.lossy,
            "num_tokens": len(tokens), "num_trained": sum(weight != 0 for weight in weights)}  # fmt: skip
