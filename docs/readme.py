"""The tables of README.md, written from the registered tasks and the ``results.json`` of benchmarks and studies.

python docs/readme.py        # or: make readme
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Task -> what is learned, page, recipe, study, and the figure of it that the table shows (see ``measured``).
TASKS: dict[str, tuple[str, str, str, str, str]] = {
    "line-completion": ("the next line of code, or the rest of one", "line-completion", "line-completion", "", "the report above"),
    "project-completion": (
        "the next line, with the project's other files before it",
        "project-completion",
        "project-completion",
        "project-context",
        "exact match {exact_match/tuned/own/micro:%} with the project's files, {exact_match/tuned/none/micro:%} without",
    ),
    "library-generation": (
        "a program that uses a library, from what it is to do", "project-completion", "library-generation", "", "",
    ),
    "codexglue-line": (
        "CodeXGLUE's line completion, by its own metrics",
        "codexglue",
        "codexglue-python",
        "line-completion",
        "exact match {embedded/codexglue_exact_match:%}, edit similarity {embedded/codexglue_edit_similarity:%}",
    ),
    "language-modelling": (
        "text, with or without gaps to fill; from random weights too",
        "infill",
        "infill",
        "line-completion",
        "Mamba-2 of 6 million parameters from random weights: {mamba2/pretraining_bits_per_byte:.2f} bits per byte",
    ),
    "instruction": ("answers to prompts, or the assistant's turns of chats", "instruction", "instruction", "", ""),
    "classification": (
        "one label of a text or several, by a head or by words",
        "classification",
        "classification",
        "code-to-module",
        "macro F1 {head/macro_f1_model:.2f}, n-grams {head/macro_f1_baseline:.2f}",
    ),
    "ontology": (
        "category paths of documents, summed and pruned to a DAG",
        "ontology",
        "ontology",
        "masked-loss",
        "Fuzzy F1 {masked/fuzzy:.2f} with the masked loss, {plain/fuzzy:.2f} with the plain one; Continuous F1 {masked/continuous:.2f}, {plain/continuous:.2f}",
    ),
    "repair": (
        "the fixed lines of a buggy function, judged by tests",
        "repair",
        "repair",
        "repair",
        "{planted-java/ir4xor2-2/plausible@10:%} of planted Java bugs repaired within 10 candidates, by their tests",
    ),
}  # fmt: skip
TOOLS = {
    "luthier": "Luthier",
    "transformers": "transformers `Trainer`",
    "trl": "TRL `SFTTrainer`",
    "llamafactory": "LLaMA-Factory",
    "torch-audit": "torch-audit",
    "training-doctor": "training-doctor",
    "preflight-ml": "preflight-ml",
}


def figures(folder: str) -> dict[str, Any]:
    """The figures of a benchmark or study by name; none if it was not run yet."""
    path = ROOT / folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() else {}


def measured(form: str, found: dict[str, Any]) -> str:
    """A sentence with the figures that its braces name; empty if one of them is not there."""
    if not all(name in found for name in re.findall(r"\{([^:}]+):", form)):
        return ""

    def shown(match: re.Match[str]) -> str:
        value = found[match[1]]
        middle = value[0] if isinstance(value, list) else value
        return f"{100 * middle:.1f}%" if match[2] == "%" else format(middle, match[2])

    return re.sub(r"\{([^:}]+):([^}]+)\}", shown, form)


def tasks() -> list[str]:
    """A task a line, with what came of it here."""
    rows = [
        "| task | what is learned | measured here | recipe |",
        "|---|---|---|---|",
    ]
    for name, (learned, page, recipe, study, form) in TASKS.items():
        said = measured(form, figures(f"studies/{study}") if study else {})
        if said and study:
            said += f" ([figures](studies/{study}/results.json))"
        rows.append(
            f"| [`{name}`](docs/how-to/{page}.md) | {learned} | {said or 'not measured yet'} | `{recipe}` |"
        )
    return rows


def peers() -> list[str]:
    """What each tool says of defects that were planted, and how fast it trains."""
    faults, training = figures("benchmarks/faults"), figures("benchmarks/training")
    rows = [
        "| | defects it was given | it reported | healthy set-ups given | it alarmed | tokens/s, LoRA, two cores |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for tool, title in TOOLS.items():
        counts = [faults[f"{tool}/{name}"] for name in ("faults_given", "faults_reported", "healthy_given", "healthy_alarms")]  # fmt: skip
        speed = training.get(f"{tool}/tokens_per_s")
        rows.append(f"| {title} | {' | '.join(map(str, counts))} | {f'{speed[0]:.0f}' if speed else ''} |")
    return rows


def with_tables(text: str) -> str:
    """README.md with its tables as they are now."""
    for name, lines in (("tasks", tasks()), ("peers", peers())):
        start, end = f"<!-- {name}: made by docs/readme.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = "\n".join([before + start, *lines, end + rest.split(end)[1]])
    return text


def as_index(text: str) -> str:
    """README.md as the first page of the documentation: links as they are from there."""
    text = re.sub(r"\]\(studies/([\w-]+)/results\.json\)", r"](studies/\1.md)", text)
    text = re.sub(
        r"\]\((CHANGELOG|CONTRIBUTING|SECURITY)\.md\)", lambda name: f"]({name[1].lower()}.md)", text
    )
    return text.replace("](docs/", "](")


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {readme}")
