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
python studies/repair-rounds/run.py --humaneval-python FILE --humaneval-java FILE --sven FILE
```
"""
FIRST = "plausible_by_round/"
OTHERS = {
    "leak_probe": "What names give away",
    "chance": "What names give away",
    "stages/": "Stages",
    "forgetting/": "What the second stage forgets",
    "killed/": "The step at which each stage was killed, and the one that it went on from",
    "went_on_from/": "The step at which each stage was killed, and the one that it went on from",
}


def page(path: Path = RESULTS) -> str:
    """The whole page as Markdown."""
    if not path.is_file():
        return f"{INTRODUCTION}\nNot measured yet.\n"
    results = json.loads(path.read_text(encoding="utf-8"))
    figures = results["figures"]
    lines = [INTRODUCTION, f"Made on {results['date']}."]
    by_round: dict[str, dict[int, Any]] = {}
    for name, value in figures.items():
        if name.startswith(FIRST):
            who, _, which = name.removeprefix(FIRST).rpartition("/")
            by_round.setdefault(who, {})[int(which)] = value
    if by_round:
        most = max(which for values in by_round.values() for which in values)
        numbers = range(1, most + 1)
        lines += ["", "## Bugs repaired by each round, %", ""]
        lines += [f"| | bugs | {' | '.join(map(str, numbers))} |", f"|---|--:|{'--:|' * most}"]
        for who, values in by_round.items():
            cells = [share(values[n]) if n in values else "" for n in numbers]
            lines.append(f"| {who} | {figures[f'rounds/{who}/num_judged']} | {' | '.join(cells)} |")
    title = ""
    for name, value in figures.items():
        found = next((words for start, words in OTHERS.items() if name.startswith(start)), "")
        if found and found != title:
            title = found
            lines += ["", f"## {title}", "", "| | |", "|---|--:|"]
        if found:
            lines.append(f"| {name} | {number(value)} |")
    return "\n".join([*lines, "", results["notes"]]) + "\n"


def share(value: Any) -> str:
    """Per cent, with its interval."""
    middle, *ends = value if isinstance(value, list) else [value]
    text = f"{100 * middle:.1f}"
    return f"{text} ({' to '.join(f'{100 * end:.1f}' for end in ends)})" if ends else text


def number(value: Any) -> str:
    """A number, with its interval."""
    middle, *ends = value if isinstance(value, list) else [value]
    return f"{middle:.4g} ({' to '.join(f'{end:.4g}' for end in ends)})" if ends else f"{middle:.4g}"
