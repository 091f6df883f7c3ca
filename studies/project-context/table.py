"""The documentation's page about the study, from ``results.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
INTRODUCTION = """\
# Does the rest of the project help?

Lines of files that releases *added*, completed with three kinds of text before the file: nothing, files of the same project, files of another project. The rows are the same lines
and the same number of tokens; only what fills them differs. The embedded model is asked as it came and after training on rows with the own project before them.

```
python studies/project-context/run.py train own none other categories memory table
```

**Data.** Trained on Django 4.2, scikit-learn 1.7.2 and Textual 8.2.8. Asked: what Django 5.2.19 and scikit-learn 1.9.1 added (projects that were trained on), and what SymPy 1.14.0,
statsmodels 0.15.0 and NetworkX 3.6.1 added (projects that were not). The project before a line is the release *before* the one that added it. All are pinned by SHA-256; the recipe is
`recipes/project-completion.yaml`.
"""
ARMS = {
    "none": "the file alone",
    "own": "the project's other files",
    "other": "another project's files",
}
MODELS = {"base": "as it came", "tuned": "tuned"}


def page(path: Path = RESULTS) -> str:
    """The whole page as Markdown."""
    if not path.is_file():
        return f"{INTRODUCTION}\nNot measured yet.\n"
    results = json.loads(path.read_text(encoding="utf-8"))
    figures = results["figures"]
    arms = {arm: title for arm, title in ARMS.items() if f"exact_match/tuned/{arm}/micro" in figures}
    lines = [
        INTRODUCTION,
        f"Made on {results['date']}: {figures['num_rows']:,} lines of {figures['num_files']} files. Exact match with its 95% interval over files.",
        "",
        "| before the file | base, over lines | base, over files | tuned, over lines | tuned, over files | tuned, bits per byte |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for arm, title in arms.items():
        cells = [
            share(figures[f"exact_match/{model}/{arm}/{kind}"])
            for model in MODELS
            for kind in ("micro", "macro")
        ]
        lines.append(f"| {title} | {' | '.join(cells)} | {figures[f'bits_per_byte/{arm}/tuned']:.3f} |")
    if "own" in arms:
        copied = share(figures["exact_match/baseline/own/micro"])
        lines += ["", f"Copying the line that followed where the last lines stood before gets {copied}."]
    lines += ["", "## What the project is worth", "", *gains(figures, arms)]
    if "memory/2048/peak_memory_gib" in figures:
        lines += ["", "## Memory of one row", "", *memory(figures)]
    lines += [
        "",
        f"{results['notes']} {figures['leaks/share_of_lines_verbatim_in_training']:.0%} of the lines stand somewhere in the training rows word for word; they are a stratum of their own above. "
        f"The test rows are `{results['test_rows_sha256'][:16]}` (SHA-256 of their file): the recipe gives the same rows on any machine.",
    ]
    return "\n".join(lines) + "\n"


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
    return [
        *rows,
        "",
        "Differences in points of exact match with 95% intervals; relative gain in brackets behind them.",
        "",
        verdict(figures),
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


def memory(figures: dict[str, Any]) -> list[str]:
    """Peak memory by length."""
    rows = ["| tokens | peak memory, GiB |", "|--:|--:|"]
    for length in (2048, 4096, 8192):
        rows.append(f"| {length:,} | {figures[f'memory/{length}/peak_memory_gib']:.2f} |")
    loaded = figures["memory/2048/loaded_gib"]
    return [*rows, "", f"Of that {loaded:.2f} GiB are the process with the model loaded."]


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
