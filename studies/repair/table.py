"""The documentation's page about the study, from ``results.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
INTRODUCTION = """\
# Repair: representation, epochs, comment format

The embedded model learns to fix functions and writes ten candidates for each bug; a bug counts at k if any of its first k candidates passes the bug's own tests. Asked: which
representation repairs most, whether more epochs help, and what it costs if the buggy lines are commented in another way than in training.

IR1 x OR1 is the whole function in and out; IR3 x OR2 the function with the buggy lines replaced by a marker; IR4 x OR2 with the buggy lines commented out above it. The bugs are planted
into functions of real programs and proven by their tests (`benchmarks/planted`).
"""
LANGUAGES = {"python": "Python", "java": "Java"}
BENCHES = {
    f"{name}-{language}": f"{title}, {shown}"
    for name, title in (("planted", "Planted bugs"), ("humaneval", "HumanEvalPack"))
    for language, shown in LANGUAGES.items()
}
BEST = "ir4xor2-2"
CLAIMS = {
    "ir1xor1-2": "IR4 x OR2 against IR1 x OR1",
    "ir3xor2-2": "IR4 x OR2 against IR3 x OR2",
    "ir4xor2-1": "two epochs against one",
    "ir4xor2-5": "two epochs against five, of which the weights of the best eval loss",
    "ir4xor2-5-last": "two epochs against five, of which the last weights",
    "ir4xor2-2-other-comments": "same comments against others",
}


def page(path: Path = RESULTS) -> str:
    """The whole page as Markdown."""
    if not path.is_file():
        return f"{INTRODUCTION}\nNot measured yet.\n"
    results = json.loads(path.read_text(encoding="utf-8"))
    figures = results["figures"]
    commands = "\n".join(results["commands"].values())
    lines = [
        INTRODUCTION,
        f"```\n{commands}\n```\n\nFixes and bugs are of the same language. Made on {results['date']}.",
    ]
    for bench, title in BENCHES.items():
        names = [name for name in (*CLAIMS, BEST) if f"{bench}/{name}/bugs" in figures]
        if not names:
            continue
        lines += ["", f"## {title}", "", f"{figures[f'{bench}/{BEST}/bugs']} bugs.", ""]
        lines += ["| | @1 | @5 | @10 | compile | exact@10 |", "|---|--:|--:|--:|--:|--:|"]
        for name in sorted(names):
            metrics = ("plausible@1", "plausible@5", "plausible@10", "compile_rate", "exact@10")
            cells = [share(figures[f"{bench}/{name}/{metric}"]) for metric in metrics]
            lines.append(f"| {shown(name)} | {' | '.join(cells)} |")
        lines += ["", "| | only the first repaired | only the second | p, McNemar |", "|---|--:|--:|--:|"]
        for name, claim in CLAIMS.items():
            test = [
                figures.get(f"{bench}/{BEST} against {name}/{what}")
                for what in ("only_first", "only_second", "p_value")
            ]
            if None not in test:
                lines.append(f"| {claim} | {test[0]} | {test[1]} | {test[2]:.3g} |")
    for language, title in LANGUAGES.items():
        exact = {
            name: figures.get(f"held_out_exact_match/{language}/{name}") for name in sorted((*CLAIMS, BEST))
        }
        if exact[BEST] is None:
            continue
        lines += ["", f"## Held-out fixes, {title}", "", "| | exact match |", "|---|--:|"]
        lines += [f"| {shown(name)} | {share(value)} |" for name, value in exact.items() if value is not None]
        tokens = {name: figures[f"tokens/{language}/{name}"] for name in ("OR1", "OR2", "bugs_without_room")}
        lines += [
            "",
            f"A candidate may have {tokens['OR1']} tokens as OR1 and {tokens['OR2']} as OR2: the longest fix of a bug fits. Bugs "
            f"whose fix does not fit in the model's positions: {tokens['bugs_without_room']}.",
        ]
    lines += [
        "",
        "One training of each kind: a comparison whose p is over 0.05 is undecided here; more bugs (`--bugs`) and further seeds would settle it.",
    ]
    return "\n".join([*lines, "", results["notes"]]) + "\n"


def shown(name: str) -> str:
    """A training in words."""
    form, epochs, *other = name.split("-", 2)
    said = f"{form.upper().replace('X', ' x ')}, {epochs} epoch{'s' * (epochs != '1')}"
    return ", ".join([said, *(each.replace("-", " ") for each in other)])


def share(value: Any) -> str:
    """Per cent, with its interval."""
    middle, *ends = value if isinstance(value, list) else [value]
    text = f"{100 * middle:.1f}"
    return f"{text} ({' to '.join(f'{100 * end:.1f}' for end in ends)})" if ends else text
