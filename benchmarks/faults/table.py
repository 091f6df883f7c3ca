"""The documentation's page about the faults, from ``results.json``.

python benchmarks/faults/table.py > page.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
TOOLS = {
    "luthier": "Luthier",
    "transformers": "Trainer",
    "trl": "TRL",
    "llamafactory": "LLaMA-Factory",
    "torch-audit": "torch-audit",
    "training-doctor": "training-doctor",
    "preflight-ml": "preflight-ml",
}
CELLS = {
    "stops": "**stops**",
    "warns": "**warns**",
    "mentions": "mentions",
    "silent": "silent",
    "calm": "✓",
    "cries wolf": "**alarm**",
    "n/a": "n/a",
}
INTRODUCTION = """\
# Planted faults, beside the peers

{num_faults} faults, each planted alone in a set-up that trains well without it, and {num_healthy} healthy set-ups, given to Luthier's `audit`, to three
trainers and to three linters of trainings. All by their real output; made on {date} by `{command}`, which installs each tool from PyPI into an
environment of its own.

**How it is judged.** By rules that stand beside each case: words that a message must have to be about the fault. *stops*: an error about
it, or for a linter a failing exit code. *warns*: a warning about it. *mentions*: a note about it of lower severity, which does not count. *silent*:
nothing about it; that a number in a log looks wrong to who reads it is no message. *alarm*: a warning or an error about a healthy
set-up; what a tool says of those does not count for a fault. *n/a*: the fault cannot be expressed in this tool, cannot occur in
it, or shows in nothing that it is given; the reasons are below.

Luthier's authors chose the faults, from a [catalogue of failures](faults.md) that people have reported (its numbers in brackets). So its own
column says only that its checks do what they are for; what the others say is the news.

**How each tool is used.** As its documentation says, at its best:

- *Trainer* and *TRL*'s `SFTTrainer` load the model, make the trainer and train two epochs of a model of 150,000 parameters, each step logged. TRL gets text
  or conversations where it can tokenise them so that the fault is there, tokenised rows where not.
- *LLaMA-Factory* gets a YAML file, a model folder and JSON rows. It needs an older transformers than the others. Without torchvision, and torchaudio without
  its native part: PyPI has both for CUDA only.
- *torch-audit* audits the model, the optimizer and every step of that training, with gradients as they are before they are clipped.
- *training-doctor* listens to the log of that training. Both of its callbacks for transformers are broken in this version (one ends in an error, one hears
  nothing); it is repaired here. Diagnoses under 30% confidence, "weak signal" in its own words, count as notes.
- *preflight-ml* gets both data loaders, the model and the loss, wrapped into the tensors that it takes.
- *Luthier* gets the trainer, before it trains. `luthier.audit(trainer)`, nothing else.
"""


def page(path: Path = RESULTS) -> str:
    """The whole page as Markdown."""
    results = json.loads(path.read_text())
    figures, cases, verdicts = results["figures"], results["cases"], results["verdicts"]
    faults = [name for name in cases if not cases[name]["healthy"]]
    healthy = [name for name in cases if cases[name]["healthy"]]
    introduction = INTRODUCTION.format(
        num_faults=len(faults), num_healthy=len(healthy), date=results["date"], command=results["command"]
    )
    lines = [introduction, "## In numbers", "", *summary(figures, results["versions"])]
    lines += ["", "## Faults", "", *table(faults, cases, verdicts)]
    lines += ["", "## Healthy set-ups", "", *table(healthy, cases, verdicts)]
    lines += [
        "",
        "## What they said",
        "",
        "The message by which each verdict was reached, cut to a line.",
        "",
    ]
    for name in (*faults, *healthy):
        lines += said(name, cases[name], verdicts[name])
    return "\n".join(lines) + "\n"


def summary(figures: dict[str, float], versions: dict[str, str]) -> list[str]:
    """One row for each tool: how many faults it was given and spoke of, and how often it alarmed for nothing."""
    rows = [
        "| | version | faults given | stops or warns | silent | healthy given | alarms | seconds |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for tool, title in TOOLS.items():
        keys = (
            "faults_given",
            "faults_reported",
            "faults_silent",
            "healthy_given",
            "healthy_alarms",
            "seconds",
        )
        numbers = " | ".join(str(figures[f"{tool}/{key}"]) for key in keys)
        rows.append(f"| {title} | {versions.get(f'{tool}: {tool}', '')} | {numbers} |")
    return rows


def table(
    names: list[str], cases: dict[str, Any], verdicts: dict[str, dict[str, dict[str, str]]]
) -> list[str]:
    """One row for each case, one column for each tool."""
    rows = [
        f"| | {' | '.join(TOOLS.values())} |",
        "|---|" + ":-:|" * len(TOOLS),
    ]
    for name in names:
        entries = ", ".join(str(number) for number in cases[name]["catalogue"])
        text = cell(cases[name]["text"]) + (f" ({entries})" if entries else "")
        cells = (
            CELLS.get(verdicts[name][tool]["verdict"], verdicts[name][tool]["verdict"]) for tool in TOOLS
        )
        rows.append(f"| [{text}](#{anchor(name)}) | {' | '.join(cells)} |")
    return rows


def said(name: str, case: dict[str, Any], verdicts: dict[str, dict[str, str]]) -> list[str]:
    """What the tools said of one case; nothing of those that were silent."""
    lines = [f"### {name.replace('_', ' ')}", "", case["text"], ""]
    if case["about"]:
        lines += [f"A message about it matches `{case['about']}`.", ""]
    for tool, title in TOOLS.items():
        verdict = verdicts[tool]
        if verdict["evidence"]:
            evidence = verdict["evidence"].replace("`", "'")
            quoted = evidence if verdict["verdict"] == "n/a" else f"`{evidence}`"
            lines.append(f"- {title}, {verdict['verdict']}: {quoted}")
    return [*lines, ""]


def anchor(name: str) -> str:
    """The name that a heading of a case gets, for links to it."""
    return name.replace("_", "-")


def cell(text: str) -> str:
    """Text that does not end a table's cell."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
