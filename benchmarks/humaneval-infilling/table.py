"""The documentation's page about HumanEval-Infilling, from ``results.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
INTRODUCTION = """\
# Gaps in programs

[HumanEval-Infilling](https://github.com/openai/human-eval-infilling) takes one line out of a program that works, and runs the program's tests with what a model writes in its place. A model that
knows no sentinel tokens is asked from the left: it sees what stands before the gap alone, and its first line counts.

```
luthier run infill --run runs/infill 'data.source={type: stdlib}' 'data.max_rows={train: 1500, eval: 40, test: 40}'
python benchmarks/humaneval-infilling/run.py embedded:smollm2-135m FILE --left --name embedded-left
python benchmarks/humaneval-infilling/run.py runs/infill FILE --left --name tuned-left
python benchmarks/humaneval-infilling/run.py runs/infill FILE --name tuned
```
"""
ASKED = {
    "embedded-left": "embedded model, from the left",
    "tuned-left": "after the recipe `infill`, from the left",
    "tuned": "after the recipe `infill`, both sides",
}


def page(path: Path = RESULTS) -> str:
    """The whole page as Markdown."""
    if not path.is_file():
        return INTRODUCTION + "\nNot measured yet.\n"
    results = json.loads(path.read_text())
    figures = results["figures"]
    lines = [INTRODUCTION, f"Made on {results['date']}. {results['notes']}", ""]
    lines += ["| | gaps | pass@1 | of the first line alone | ended by itself |", "|---|--:|--:|--:|--:|"]
    for name, title in ASKED.items():
        if f"{name}/gaps" in figures:
            cells = [f"{figures[f'{name}/gaps']:,}"]
            cells += [
                share(figures.get(f"{name}/{counted}")) for counted in ("pass_at_1", "first_line_pass_at_1")
            ]
            lines.append(f"| {title} | {' | '.join(cells)} | {figures[f'{name}/ended']:.1%} |")
    if {"tuned/gaps", "tuned-left/gaps"} <= set(figures):
        lines += ["", lesson(figures)]
    return "\n".join([*lines, ""])


def lesson(figures: dict[str, Any]) -> str:
    """What a run with both sides says beside one from the left."""
    both, first = figures["tuned/pass_at_1"][0], figures["tuned/first_line_pass_at_1"][0]
    [left, low, high] = figures["tuned-left/pass_at_1"]
    told = (
        "nothing that shows here"
        if low <= first <= high
        else "something"
        if first > high
        else "less than nothing"
    )
    return (
        f"With both sides the tuned model fills {both:.1%} of the gaps; where its first line alone counts, {first:.1%}; from the left {left:.1%}. "
        "What it writes behind the line that was asked for costs it the difference between the first two, and the text behind the gap "
        f"has told it {told}. Models that are known for filling gaps had them in pretraining, in billions of tokens; this run had 1,500 rows, "
        "and a longer one of a larger model would say how much tuning alone can teach."
    )


def share(figure: list[float] | None) -> str:
    """A share with its interval, where there is one."""
    if figure is None:
        return ""
    value, low, high = figure
    return f"{value:.1%} [{low:.1%}, {high:.1%}]"


if __name__ == "__main__":
    print(page())
