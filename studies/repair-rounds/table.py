"""The documentation's page about the study, from ``results.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
INTRODUCTION = """\
# Repair in rounds, and vulnerable code

The embedded model, before and after it has learned planted fixes, repairs HumanEvalPack's bugs in [rounds](../how-to/repair-rounds.md): each prompt shows the last wrong patch and what its tests said. A
script repairs the same bugs exactly when its prompt shows what that bug's own wrong patch raised: what passes in the second round got its own feedback. The other figures are of vulnerable code.

```
python studies/repair-rounds/run.py --humaneval-python FILE --humaneval-java FILE --sven FILE --bugs 40
```

The model repairs bugs spread over all of each language, as many as the table says: enough to see what training brings, too few to see a round's gain of less than ten points. All bugs (without `--bugs`) and a model of
some billions would settle whether feedback helps a model that was not trained on conversations.
"""
FIRST = "plausible_by_round/"
WHO = {"script": "the script", "base": "the model as it came", "tuned": "the model after training"}
DATA = {"sven": "SVEN's functions", "generated": "generated functions whose names tell"}


def page(path: Path = RESULTS) -> str:
    """The whole page as Markdown; a part that was not measured says so."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    figures = results["figures"] if results else {}
    lines = [INTRODUCTION, *([f"Made on {results['date']}."] if results else [])]
    for title, part in (
        ("Bugs repaired by each round", rounds),
        ("What names give away", leaks),
        ("Two stages on vulnerable code", stages),
    ):
        lines += ["", f"## {title}", "", *(part(figures) or ["Not measured yet."])]
    return "\n".join([*lines, "", *([results["notes"]] if results else [])]) + "\n"


def rounds(figures: dict[str, Any]) -> list[str]:
    """Per cent of bugs with a patch that passes, by who wrote it and round."""
    by_round: dict[str, dict[int, Any]] = {}
    for name, value in figures.items():
        if name.startswith(FIRST):
            who, _, which = name.removeprefix(FIRST).rpartition("/")
            by_round.setdefault(who, {})[int(which)] = value
    if not by_round:
        return []
    numbers = range(1, max(which for values in by_round.values() for which in values) + 1)
    lines = [f"| % | bugs | {' | '.join(map(str, numbers))} |", f"|---|--:|{'--:|' * len(numbers)}"]
    for name, values in by_round.items():
        language, _, which = name.partition("/")
        said = f"{WHO[which]}, {language.capitalize()}" if which in WHO else name
        cells = [share(values[n]) if n in values else "" for n in numbers]
        lines.append(f"| {said} | {figures[f'rounds/{name}/num_judged']} | {' | '.join(cells)} |")
    return lines


def leaks(figures: dict[str, Any]) -> list[str]:
    """How often names alone tell vulnerable from fixed code, before and after cleaning."""
    lines = [
        "| % told apart by names alone | as it is | own names numbered | all names numbered |",
        "|---|--:|--:|--:|",
    ]
    for data, title in DATA.items():
        for rows in ("fixes", "functions"):
            names = (
                f"leak_probe_before/{data}/{rows}",
                *(f"leak_probe_after/{data}/{rows}/{kind}" for kind in ("own-names", "all-names")),
            )
            if all(name in figures for name in names):
                cells = (share(figures[name]) for name in names)
                lines.append(f"| {title}, as rows of {rows} | {' | '.join(cells)} |")
    if len(lines) == 2:
        return []
    return [
        *lines,
        "",
        f"Chance is {share(figures['chance'])}. [How the probe works](../how-to/vulnerabilities.md#the-leak-probe), and what numbering all names costs.",
    ]


def stages(figures: dict[str, Any]) -> list[str]:
    """Scores of each stage before and after it, and of the first stage's test rows after the second."""
    lines = ["| stage | metric | before | after | difference |", "|---|---|--:|--:|--:|"]
    for name in figures:
        if name.startswith("stages/") and name.endswith("/after"):
            _, stage, metric, _ = name.split("/")
            cells = (
                number(figures[f"stages/{stage}/{metric}/{what}"])
                for what in ("before", "after", "difference")
            )
            lines.append(f"| {stage} | {metric} | {' | '.join(cells)} |")
    if len(lines) == 2:
        return []
    lines += ["", "| forgetting: first stage's test rows | difference |", "|---|--:|"]
    lines += [
        f"| {name.removeprefix('forgetting/').replace('/', ', ')} | {number(value)} |"
        for name, value in figures.items()
        if name.startswith("forgetting/")
    ]
    killed = [
        f"{name.removeprefix('killed/')} at step {value:.0f}, going on from step {figures['went_on_from/' + name.removeprefix('killed/')]:.0f}"
        for name, value in figures.items()
        if name.startswith("killed/")
    ]
    return [*lines, "", f"Each stage was killed once behind a checkpoint: {'; '.join(killed)}."]


def share(value: Any) -> str:
    """Per cent, with its interval."""
    middle, *ends = value if isinstance(value, list) else [value]
    text = f"{100 * middle:.1f}"
    return f"{text} ({' to '.join(f'{100 * end:.1f}' for end in ends)})" if ends else text


def number(value: Any) -> str:
    """A number, with its interval."""
    middle, *ends = value if isinstance(value, list) else [value]
    return f"{middle:.4g} ({' to '.join(f'{end:.4g}' for end in ends)})" if ends else f"{middle:.4g}"
