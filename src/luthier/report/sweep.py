"""All runs of a sweep in one table: each setting with its spread over seeds and its difference to the first one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from markupsafe import Markup
from rich.table import Table
from rich.text import Text
from scipy.stats import t as student

from luthier.display import pages
from luthier.display.text import plain
from luthier.errors import UserError
from luthier.report import history, sections
from luthier.report.compare import Paired, cell, paired_scores
from luthier.run_folder import SWEEP, RunFolder, read_json, write_json, write_text

_HERE = Path(__file__).parent
_CONFIDENCE = 0.95
_IN_TERMINAL = 3  # metrics beside the validation loss


@dataclass(frozen=True, slots=True)
class Member:
    """A run of a sweep.

    Attributes:
        run: Its folder.
        settings: What it has instead of the recipe's, as written, by recipe key.
        state: ``finished``, ``failed``, ``running`` or ``waiting``.
        reason: Why it failed.
        eval_loss: Best validation loss, in nats; none before the first evaluation.
        scores: The content of its ``scores.json``, once it is finished; none where no test rows are kept.
    """

    run: RunFolder
    settings: dict[str, str]
    state: str
    reason: str = ""
    eval_loss: float | None = None
    scores: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """The runs that differ in nothing but their seed.

    Attributes:
        name: What the setting is, ``learning_rate=1e-4``.
        members: Its runs, in order of the sweep.
        eval_loss: Mean over its finished runs of the best validation loss; none if there is none.
        spread: Standard deviation of that over seeds; none for fewer than two.
        against_base: By metric, tuned against base model as in ``scores.json``; means over seeds.
        against_first: The same against the first setting; empty where that could not be tested.
        deviations: By metric, the standard deviation of the tuned value over seeds.
        notes: Why something could not be tested.
    """

    name: str
    members: list[Member]
    eval_loss: float | None = None
    spread: float | None = None
    against_base: dict[str, dict[str, Any]] = field(default_factory=dict)
    against_first: dict[str, dict[str, Any]] = field(default_factory=dict)
    deviations: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def members(folder: Path) -> list[Member]:
    """The runs of a sweep's folder, in the order of its settings, with what each has come to.

    Raises:
        UserError: The folder holds no sweep.
    """
    if not (folder / SWEEP).is_file():
        raise UserError(
            f"{folder} holds no sweep: there is no {SWEEP} in it", str(folder), "name the folder of a sweep"
        )
    return [
        _member(RunFolder(folder / each["folder"]), each["settings"])
        for each in read_json(folder / SWEEP)["runs"]
    ]


def _member(run: RunFolder, settings: dict[str, str]) -> Member:
    past = history.read(run)
    loss = history.key_figures(past).eval_best
    if run.stopped.is_file():
        said = read_json(run.stopped)
        return Member(run, settings, "failed", f"{said['kind']}: {said['what']}", loss)
    stages = read_json(run.stages) if run.stages.is_file() else {}
    if "evaluate" in stages:  # without scores, if it keeps no test rows
        scores = read_json(run.scores) if run.scores.is_file() else None
        return Member(run, settings, "finished", "", loss, scores)
    return Member(run, settings, "running" if run.recipe.is_file() else "waiting", "", loss)


def collect(folder: Path, paired: Paired) -> list[Setting]:
    """The settings of a sweep in order; runs that differ in nothing but ``seed`` are one setting.

    Args:
        folder: Of the sweep.
        paired: Makes scores with intervals of predictions (``luthier.evaluate.significance.compare``).
    """
    groups: dict[str, list[Member]] = {}
    for member in members(folder):
        varied = {key: value for key, value in member.settings.items() if key != "seed"}
        groups.setdefault(name_of(varied) or "as the recipe has it", []).append(member)
    settings: list[Setting] = []
    for name, group in groups.items():
        done = [member for member in group if member.state == "finished"]
        losses = [member.eval_loss for member in done if member.eval_loss is not None]
        setting = Setting(
            name, group, fmean(losses) if losses else None, stdev(losses) if len(losses) > 1 else None
        )
        scored = [member for member in done if member.scores is not None]
        _score(setting, scored, settings[0] if settings else None, paired)
        settings.append(setting)
    return settings


def name_of(settings: Mapping[str, str]) -> str:
    """``learning_rate=1e-4, epochs=2``: keys without their section, unless two would then be the same."""
    last = [key.rpartition(".")[2] for key in settings]
    return ", ".join(
        f"{short if last.count(short) == 1 else key}={value}"
        for (key, value), short in zip(settings.items(), last, strict=True)
    )


def _score(setting: Setting, done: Sequence[Member], first: Setting | None, paired: Paired) -> None:
    """Fills in what the finished runs of a setting say."""
    if not done:
        return
    all_scores = [member.scores["metrics"] for member in done if member.scores is not None]
    means = {
        name: over_seeds([scores[name] for scores in all_scores if name in scores]) for name in all_scores[0]
    }
    setting.against_base.update(means)
    for name in means:
        values = [scores[name]["tuned"] for scores in all_scores if name in scores]
        if len(values) > 1 and None not in values:
            setting.deviations[name] = stdev(values)
    if first is None:
        return
    tests = []
    by_seed = {member.settings.get("seed"): member for member in first.members if member.scores is not None}
    for member in done:
        if other := by_seed.get(member.settings.get("seed")):
            scores, problem = paired_scores(other.run, member.run, paired)
            if problem:
                setting.notes.append(
                    f"{member.run.path.name} is not tested against {other.run.path.name}: {problem}"
                )
            else:
                tests.append(scores["metrics"])
    if tests:
        names = [name for name in tests[0] if all(name in test for test in tests)]
        setting.against_first.update({name: over_seeds([test[name] for test in tests]) for name in names})


def over_seeds(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One entry of ``scores.json`` for several seeds: means, and Student's interval of the difference over seeds.

    A single seed keeps its own interval, over groups of rows. Several seeds say more: what another draw of data order,
    adapter and split would change is in their differences, so those are what the interval is made of.

    Source: Student 1908, Biometrika 6(1), for the mean of paired differences with n - 1 degrees of freedom.
    """
    if len(entries) == 1:
        return dict(entries[0])
    means: dict[str, Any] = {
        key: None if any(entry[key] is None for entry in entries) else fmean(entry[key] for entry in entries)
        for key in ("base", "tuned", "difference")
    }
    interval = None
    if means["difference"] is not None:
        differences = [entry["difference"] for entry in entries]
        reach = (
            float(student.ppf((1 + _CONFIDENCE) / 2, len(entries) - 1))
            * stdev(differences)
            / math.sqrt(len(entries))
        )
        interval = [means["difference"] - reach, means["difference"] + reach]
    return {**entries[0], **means, "interval": interval}


def best(settings: Sequence[Setting]) -> Setting | None:
    """The setting with the lowest validation loss; none before two are finished.

    Chosen by validation, so that the test figures of the chosen one are no best of many draws.
    """
    known = [setting for setting in settings if setting.eval_loss is not None]
    return min(known, key=lambda setting: setting.eval_loss or 0.0) if len(known) > 1 else None


def table(settings: Sequence[Setting]) -> Table:
    """The sweep for the terminal, a setting a line."""
    names = metric_names(settings)[:_IN_TERMINAL]
    result = Table(
        title="Test rows: tuned model, its gain over the base, and against the first setting",
        title_justify="left",
    )
    result.add_column("")
    result.add_column("validation loss", justify="right")
    for name in names:
        result.add_column(Text(plain(sections.label(name))), justify="right")
    result.add_column("")
    chosen = best(settings)
    for setting in settings:
        loss = Text(loss_text(setting), style="bold" if setting is chosen else "")
        result.add_row(
            Text(plain(setting.name)),
            loss,
            *(_figures(setting, name) for name in names),
            _state(setting),
        )
    return result


def metric_names(settings: Sequence[Setting]) -> list[str]:
    """The metrics of all settings, those of generated text first."""
    return list(dict.fromkeys(name for setting in settings for name in shown(setting.against_base)))


def shown(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Scores by metric as text, with a verdict: entries of ``sections.metrics`` by name."""
    return {entry["name"]: entry for entry in sections.metrics({"metrics": scores})}


def loss_text(setting: Setting) -> str:
    """The best validation loss with its spread over seeds."""
    spread = f" ± {sections.number(setting.spread, 'nats')}" if setting.spread is not None else ""
    return sections.number(setting.eval_loss, "nats") + spread


def tuned_text(setting: Setting, name: str) -> str:
    """A metric of the tuned model with its spread over seeds."""
    entry, spread = setting.against_base[name], setting.deviations.get(name)
    text = sections.number(entry["tuned"], entry["unit"])
    return text if spread is None else f"{text} ± {sections.number(spread, entry['unit'])}"


def _figures(setting: Setting, name: str) -> Text:
    if name not in setting.against_base:
        return Text("–", style="dim")
    text = Text(tuned_text(setting, name) + "\n", style="bold")
    text += cell(shown(setting.against_base)[name], value=False)
    if name in setting.against_first:
        text += Text("\nfirst: ", style="dim") + cell(shown(setting.against_first)[name], value=False)
    return text


def _state(setting: Setting) -> str:
    states = [member.state for member in setting.members]
    return states[0] if len(states) == 1 else f"{states.count('finished')} of {len(states)} finished"


def write(folder: Path, name: str, settings: Sequence[Setting]) -> Path:
    """Writes ``table.json`` and the page; returns the path of the page."""
    chosen = best(settings)
    write_json(
        folder / "table.json",
        {
            "best": chosen.name if chosen else None,
            "settings": [
                {
                    "name": setting.name,
                    "runs": [
                        {
                            "folder": member.run.path.name,
                            "settings": member.settings,
                            "state": member.state,
                            "reason": member.reason,
                            "eval_loss": member.eval_loss,
                            "metrics": (member.scores or {"metrics": {}})["metrics"],
                        }
                        for member in setting.members
                    ],
                    "eval_loss": setting.eval_loss,
                    "eval_loss_deviation": setting.spread,
                    "deviations": setting.deviations,
                    "against_base": setting.against_base,
                    "against_first": setting.against_first,
                    "notes": setting.notes,
                }
                for setting in settings
            ],
        },
    )
    template = pages.environment(_HERE).get_template("sweep.html.j2")
    view: dict[str, Any] = {
        "name": name,
        "settings": settings,
        "best": chosen,
        "metrics": metric_names(settings),
        "label": sections.label,
        "loss_text": loss_text,
        "tuned_text": tuned_text,
        "shown": shown,
        "look": pages.look(),
        "style": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
    }
    path = folder / "report.html"
    write_text(path, template.render(**view))
    return path
