"""The documentation's page about the study, from ``results.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
CURVE = Path(__file__).resolve().parents[2] / "docs" / "images" / "project_context_curve.png"
INTRODUCTION = """\
# Does the rest of the project help?

Lines of files that releases *added*, completed with three kinds of text before the file: nothing, files of the same project, files of another project. The rows are the same lines
and the same number of tokens; only what fills them differs. The embedded model is asked as it came and after training on rows with the own project before them.

```
python studies/project-context/run.py train own none other categories memory table
```

**Data.** Trained on Django 4.2, scikit-learn 1.7.2 and Textual 8.2.8. Asked: what Django 5.2.19 and scikit-learn 1.9.1 added (projects that were trained on), and what SymPy 1.14.0,
statsmodels 0.15.0 and NetworkX 3.6.1 added (projects that were not). The project before a line is the release *before* the one that added it. All are pinned by SHA-256; the recipe is
`recipes/project-completion.yaml`, with fewer rows and longer files as the study's script says.
"""
# Arms of results.json have these names; further ones are composers, over the project's other files.
ARMS = {
    "none": "the file alone",
    "own": "the project's other files",
    "other": "another project's files",
    "path-distance": "the project's other files, by path distance",
    "imports-first": "the project's other files, imported ones nearest",
    "same-folder": "files of the same folder",
    "skeletons": "the project's other files, far ones without bodies",
    "half-memory": "half of the lines of the project's other files",
    "alphabetical": "the project's other files, by name",
    "file-length": "the project's other files, the shortest nearest",
    "shuffled": "the project's other files, in any order",
}
# Strata whose differences are shown over files as well.
OVER_FILES = ("all", "own projects in training", "projects not in training")
MODELS = {"base": "as it came", "tuned": "tuned"}


def page(path: Path = RESULTS) -> str:
    """The whole page as Markdown."""
    if not path.is_file():
        return f"{INTRODUCTION}\nNot measured yet.\n"
    results = json.loads(path.read_text(encoding="utf-8"))
    figures = results["figures"]
    measured = [
        name.split("/")[2] for name in figures
        if name.startswith("exact_match/tuned/") and name.endswith("/micro")
    ]  # fmt: skip
    known = list(ARMS)
    order = sorted(measured, key=lambda arm: (known.index(arm) if arm in known else len(known), arm))
    arms = {arm: ARMS.get(arm, arm) for arm in order}
    lines = [
        INTRODUCTION,
        f"Made on {results['date']}: {figures['num_rows']:,} lines of {figures['num_files']} files. 95% intervals over files.",
        "",
        verdict(figures),
        *only_copied(figures),
        "",
        "## Exact match",
        "",
        *exact_match(figures, arms),
    ]
    if "own" in arms:
        copied = share(figures["exact_match/baseline/own/micro"])
        lines += ["", f"Copying the line that followed where the last lines stood before gets {copied}."]
    models = {text: f"{model}/{{}}" for model, text in MODELS.items()}
    similar = by_arm("edit_similarity", models, figures, arms, share)
    lines += ["", "## Edit similarity", "", *similar]
    models = {text: f"{{}}/{model}" for model, text in MODELS.items()}
    bits = by_arm("bits_per_byte", models, figures, arms, "{:.3f}".format)
    lines += [
        "",
        "## Bits per byte",
        "",
        *bits,
        "",
        "Of the lines themselves, given what stands before them.",
    ]
    lines += ["", "## What the project is worth", "", *gains(figures, arms)]
    lines += [
        "",
        "## The training",
        "",
        f"![Loss of training and validation by step](../images/{CURVE.name})",
    ]
    if "categories/lines" in figures:
        lines += ["", "## What is in the project", "", *jedi(figures)]
    if "memory/2048/peak_memory_gib" in figures:
        lines += ["", "## Memory of one row", "", *memory(figures)]
    lines += [
        "",
        f"{results['notes']} {figures['leaks/share_of_lines_verbatim_in_training']:.0%} of the lines stand somewhere in the training rows word for word; they are a stratum of their own above. "
        f"The test rows are `{results['test_rows_sha256'][:16]}` (SHA-256 of their file): `python studies/project-context/run.py rows` makes them from the pinned releases and says whether they are the same.",
    ]
    return "\n".join(lines) + "\n"


def exact_match(figures: dict[str, Any], arms: dict[str, str]) -> list[str]:
    """Exact match by arm, over lines and over files."""
    kinds = {"micro": "over lines", "macro": "over files"}
    columns = {
        f"{text}, {over}": f"{model}/{{}}/{kind}"
        for model, text in MODELS.items()
        for kind, over in kinds.items()
    }
    return by_arm("exact_match", columns, figures, arms, share)


def by_arm(
    metric: str,
    columns: dict[str, str],
    figures: dict[str, Any],
    arms: dict[str, str],
    shown: Callable[[Any], str],
) -> list[str]:
    """A table of a metric: a row an arm; columns by their heads, each the rest of a figure's name."""
    rows = [f"| before the file | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for arm, text in arms.items():
        cells = (shown(figures[f"{metric}/{name.format(arm)}"]) for name in columns.values())
        rows.append(f"| {text} | {' | '.join(cells)} |")
    return rows


def jedi(figures: dict[str, Any]) -> list[str]:
    """How categories by name and by import agree with jedi."""
    rows = [
        "| in the project by | lines it says that of | of them by jedi too | by jedi, and missed | agree |",
        "|---|--:|--:|--:|--:|",
    ]
    total = figures["categories/lines"]
    for tier in ("name", "import"):
        both, only, missed = (
            int(figures.get(f"categories/{tier}: {said}, jedi: {true}", 0))
            for said, true in (("in", "in"), ("in", "out"), ("out", "in"))
        )
        agree = 1 - (only + missed) / total
        rows.append(f"| {tier} | {both + only} | {both} | {missed} | {agree:.0%} |")
    return [*rows, "", f"A sample of {total:,} lines; jedi goes to the definition of each name in a line."]


def gains(figures: dict[str, Any], arms: dict[str, str]) -> list[str]:
    """Own project against each other arm, by stratum."""
    others = [arm for arm in arms if arm != "own"]
    head = ["lines", "number", *(f"{MODELS[m]}: own against {arm}" for m in MODELS for arm in others)]
    rows = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    subsets = [
        name.split("/")[1] for name in figures if name.startswith("by_subset/") and name.endswith("/rows")
    ]
    for subset in subsets:
        cells = [
            gain(figures, f"by_subset/{subset}/{model}/own against {arm}")
            for model in MODELS
            for arm in others
        ]
        rows.append(f"| {subset} | {figures[f'by_subset/{subset}/rows']:,} | {' | '.join(cells)} |")
        if subset in OVER_FILES:
            cells = [
                gain(figures, f"by_subset/{subset}/{model}/own against {arm}/macro")
                for model in MODELS
                for arm in others
            ]
            if any(cells):
                rows.append(f"| {subset}, over files | | {' | '.join(cells)} |")
    return [
        *rows,
        "",
        "Differences in points of exact match with 95% intervals; the relative gain behind them.",
    ]


def verdict(figures: dict[str, Any]) -> str:
    """What became of the claim, by the intervals alone."""
    claim = "The claim to test was that the own project raises exact match relatively by 20% or more."
    found = figures.get("relative_gain_own")
    if not isinstance(found, list):
        return f"{claim} Too few lines are right without context to say a relative gain."
    gain, low, high = found
    if low >= 0.2:
        said = "It holds, over its whole interval"
    elif high < 0.2:
        said = "It does not hold here"
    else:
        said = "It is not decided by so few lines"
    against = figures.get("by_subset/all/tuned/own against other/difference")
    control = ""
    if isinstance(against, list):
        beats = "more than" if against[1] > 0 else "not surely more than"
        control = f" The own project helps {beats} as much text of another one."
    return f"{claim} {said}: {gain:+.0%} ({low:+.0%} to {high:+.0%}), tuned, against no context.{control}"


def only_copied(figures: dict[str, Any]) -> list[str]:
    """Whether the project helps where nothing can be copied out of it."""
    found = figures.get("by_subset/line not verbatim in the context/tuned/own against none/difference")
    if not isinstance(found, list) or found[1] > 0:
        return []
    return [
        "",
        "Of lines that do not stand in the context word for word no more are seen to be right with it: what helps is what can be copied.",
    ]


def memory(figures: dict[str, Any]) -> list[str]:
    """Peak memory by length."""
    rows = ["| tokens | peak memory of a step, GiB |", "|--:|--:|"]
    for length in (2048, 4096, 8192):
        rows.append(f"| {length:,} | {figures[f'memory/{length}/peak_memory_gib']:.2f} |")
    loaded = figures["memory/2048/loaded_gib"]
    return [
        *rows,
        "",
        f"Of that {loaded:.2f} GiB are the process with the model loaded. One optimizer step of the recipe on one row, without gradient checkpointing.",
    ]


def gain(figures: dict[str, Any], name: str) -> str:
    """A difference with its interval, and the relative gain."""
    found, relative = figures.get(f"{name}/difference"), figures.get(f"{name}/relative_gain")
    if found is None:
        return ""
    text = share(found, "+")
    if relative is not None:
        text += f", {relative[0] if isinstance(relative, list) else relative:+.0%}"
    return text


def share(value: float | list[float], sign: str = "") -> str:
    """Per cent, with an interval where there is one."""
    middle, *ends = value if isinstance(value, list) else [value]
    shown = f"{100 * middle:{sign}.1f}"
    return f"{shown} ({' to '.join(f'{100 * end:{sign}.1f}' for end in ends)})" if ends else shown
