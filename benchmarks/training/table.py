"""The documentation's page about the speed of training, from ``results.json``, and its picture.

python benchmarks/training/table.py > page.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "training_speed.png"
TITLES = {
    "luthier": "Luthier",
    "trl": "TRL SFTTrainer",
    "transformers": "transformers Trainer",
    "llamafactory": "LLaMA-Factory",
    "luthier-full": "Luthier",
    "transformers-full": "transformers Trainer",
    "luthier-fp32": "Luthier, fp32",
}
COLOURS = {
    "luthier": "#b5521b",
    "luthier-full": "#b5521b",
    "luthier-fp32": "#000000",
    "trl": "#4c78a8",
    "transformers": "#54a24b",
    "transformers-full": "#54a24b",
    "llamafactory": "#8e6bbd",
}
RATIOS = {
    "trl": "speed_vs_trl",
    "transformers": "speed_vs_hf_trainer",
    "llamafactory": "speed_vs_third_peer",
    "transformers-full": "full_speed_vs_hf_trainer",
}
INTRODUCTION = """\
# Speed of training

Luthier beside TRL, transformers' `Trainer` and LLaMA-Factory: the same training, in turns, on one machine without a GPU, and how cost grows with
the length of rows, their number and the size of the model. Tables and picture are written by the script:

```
python benchmarks/training/run.py
```

## What is compared

**The same for all.** The weights (the embedded model, 135 million parameters, from one folder); rows, their tokens, which tokens are trained, and
their order; 8 rows a step; LoRA of rank 16 and alpha 32 on all linear layers without dropout, or the whole model; AdamW without decay, a constant
learning rate without warm-up (2e-4 for LoRA, 2e-5 for the whole model), gradients clipped to 1.0. Every peer's process compares the tokens, labels
and order that its trainer has with Luthier's, and the script stops if one differs.

**The rows** are functions of the Python standard library of at least four lines and at most 796 tokens, drawn by their hash: signature and docstring
are the prompt (half of the lines where there is no docstring), the rest is trained, with the token that ends it. They differ in length as real
rows do, so how a tool deals with that counts.

**Each tool** as its documentation shows it, in an environment of its own with the versions below:

- *TRL*: `SFTTrainer` with its defaults, bf16 and gradient checkpointing among them. Its rows are given as tokens and labels: from text it would make
  other tokens than the rest.
- *transformers*: `Trainer` with `bf16=True`, padding to the longest row of a batch, LoRA by peft.
- *LLaMA-Factory*: the settings that its command line reads, `bf16: true`, `template: empty`. It needs an older transformers.
- *Luthier*: `prepare`, `check` and `train` of a recipe, figures from `history.jsonl`. `train.compile=true`: by itself Luthier
  compiles only where a run is long enough to earn it back, which this one of {steps} steps is not.

**What is measured.** *Tokens/s*: real tokens, trained or context, no padding, over all steps after the first two, pauses between steps included. *First step*: from the
start of the process to the end of its first step. *Memory*: the most that the process and its children held. Each training is a fresh process; the tools
take turns in every round, every other round backwards, and a ratio is of two trainings of the same round.

## What is not

- One machine, one small model, one batch size. Nothing here says anything of GPUs, where all of these have faster ways that they do not have here (fused kernels, flash
  attention), nor of several processes.
- Switches for more speed that a peer has but does not set by itself were not tried, such as TRL's without gradient checkpointing.
- Luthier's `check` is not in its first step: it took {check_s:.0f} s here, once for all rounds; the others have none. Tokenising is in LLaMA-Factory's first step
  alone, which takes text and nothing else. What Luthier tries before its first step, ways through the model and what memory holds, is in its first step and in its memory.
- Nothing is evaluated or saved between steps by any of them. For Luthier this means that its check `schedule`, which wants rows to evaluate on, is waived.
- Attention is left out of the operations by which the share of the matrix peak is reckoned, so at long rows that share is too low.
"""
UNMEASURED = """\

## Results

Not measured yet.
"""


def page(path: Path = RESULTS) -> str:
    """The whole page as Markdown."""
    results = json.loads(path.read_text()) if path.is_file() else None
    if results is None or "luthier/tokens_per_s" not in results["figures"]:
        return (
            INTRODUCTION.format(steps=30, check_s=0).replace("it took 0 s here, once", "it runs once")
            + UNMEASURED
        )
    figures = results["figures"]
    lines = [
        INTRODUCTION.format(
            steps=len(results["losses"]["luthier"]), check_s=results["settings"]["check_s/lora"]
        ),
        "## Results",
        "",
        f"Made on {results['date']}. {results['notes']}",
        "",
        f"![Speeds and loss curves](../images/{PICTURE.name})",
        "",
        f"The rows of all steps have {results['settings']['num_tokens']:,} tokens (a row's median {results['settings']['median']}, its longest "
        f"{results['settings']['longest']}), {results['settings']['trained_share']:.0%} of them trained.",
    ]
    for title, names in (
        ("LoRA", ("luthier", "trl", "transformers", "llamafactory")),
        ("The whole model", ("luthier-full", "transformers-full")),
    ):
        lines += ["", f"### {title}", "", *speeds(figures, names)]
    lines += ["", "### Precision and the machine", "", *inside(figures, results)]
    if any(results["growth"].values()):
        lines += ["", "## How cost grows", "", *growth(results["growth"])]
    lines += ["", "## Versions", "", "| | " + " | ".join(versions(results)[0]) + " |", *versions(results)[1]]
    return "\n".join(lines) + "\n"


def speeds(figures: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """One row for each tool that was measured."""
    lines = [
        "| | tokens/s: median (lowest to highest) | Luthier is faster by | first step, s | memory, GiB | losses differ by |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in names:
        if f"{name}/tokens_per_s" not in figures:
            continue
        ratio = figures.get(RATIOS.get(name, ""))
        gap = figures.get(f"{name}/loss_gap")
        lines.append(
            f"| {TITLES[name]} | {ranged(figures[f'{name}/tokens_per_s'], 0)} | "
            f"{ranged(ratio, 1) + ' times' if ratio else ''} | {figures[f'{name}/first_step_s'][0]:.0f} | "
            f"{figures[f'{name}/peak_memory_gib'][0]:.1f} | {'' if gap is None else f'{gap:.4f}'} |"
        )
    return [*lines, "", "Losses: mean distance to Luthier's over all steps, in nats."]


def ranged(values: list[float], digits: int) -> str:
    """Median, lowest and highest as text."""
    middle, low, high = (f"{value:,.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"


def inside(figures: dict[str, Any], results: dict[str, Any]) -> list[str]:
    """What bf16 costs in precision, what the machine could do, and where a step's time goes."""
    lines = []
    if "bf16_loss_gap" in figures:
        lines.append(
            f"- Loss in bf16 beside fp32, mean distance over all steps: {figures['bf16_loss_gap']:.5f} nats."
        )
    if "gradient_cosine" in figures:
        lines.append(
            f"- Gradients of one step in bf16 beside fp32, at the weights after the run: cosine {figures['gradient_cosine']:.5f}."
        )
    if "matrix_peak_share" in figures:
        shares = f"{figures['matrix_peak_share']:.1%} with LoRA"
        if "full_matrix_peak_share" in figures:
            shares += f", {figures['full_matrix_peak_share']:.1%} with the whole model"
        lines.append(
            f"- The best product of two large square matrices in bf16 runs at {figures['matrix_peak_gflops']:,} GFLOP/s here. Of this, the "
            f"operations that the mathematics of a step needs (attention left out) reach {shares}."
        )
    parts = results["step_parts"]
    if parts:
        titles = {"lora": "LoRA", "full": "whole model"}
        lines += [
            "",
            "Shares of the time of a step of Luthier, by the profiler:",
            "",
            "| | " + " | ".join(titles[kind] for kind in parts) + " |",
            "|---|" + "--:|" * len(parts),
        ]
        names = list(next(iter(parts.values())))
        lines += [
            f"| {name} | " + " | ".join(f"{parts[kind][name]:.1%}" for kind in parts) + " |" for name in names
        ]
    return lines


def growth(axes: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One table for each thing that grows."""
    titles = {
        "length": "Length of rows, in tokens",
        "rows": "Number of rows",
        "size": "Parameters, random weights",
    }
    lines = ["Luthier alone, LoRA of rank 16 on all linear layers, few steps at each point, no rounds."]
    for axis, points in axes.items():
        if not points:
            continue
        lines += [
            "",
            f"| {titles[axis]} | tokens a step | tokens/s | memory, GiB | share of the matrix peak | preparing, s |",
            "|--:|--:|--:|--:|--:|--:|",
        ]
        for point in points:
            shown = {
                "length": point["name"],
                "rows": f"{point['rows']:,}",
                "size": f"{point['parameters'] / 1e6:,.0f} M",
            }[axis]
            share = f"{point['matrix_peak_share']:.1%}" if "matrix_peak_share" in point else ""
            lines.append(
                f"| {shown} | {point['tokens_per_step']:,} | {point['tokens_per_s']:,.0f} | "
                f"{point['peak_memory_gib']:.1f} | {share} | {point['prepare_s']:.1f} |"
            )
    return lines


def versions(results: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Head and rows of a table: a package in each row, a tool in each column."""
    tools: dict[str, dict[str, str]] = {}
    for key, version in results["versions"].items():
        tool, colon, package = key.partition(": ")
        if colon:
            tools.setdefault(tool, {})[package] = version
    packages = dict.fromkeys(package for found in tools.values() for package in found)
    rows = [
        f"| {package} | " + " | ".join(found.get(package, "") for found in tools.values()) + " |"
        for package in packages
    ]
    return [TITLES[tool] for tool in tools], ["|---|" + "---|" * len(tools), *rows]


def draw(results: dict[str, Any], path: Path) -> None:
    """The picture: speeds with their spread on the left, loss curves over each other on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures, losses = results["figures"], results["losses"]
    names = [name for name in TITLES if f"{name}/tokens_per_s" in figures and name != "luthier-fp32"]
    if not names:
        return
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1, 1.15))
    for place, name in enumerate(reversed(names)):
        middle, low, high = figures[f"{name}/tokens_per_s"]
        label = TITLES[name] + (", whole model" if name.endswith("full") else "")
        left.barh(
            label,
            middle,
            xerr=[[middle - low], [high - middle]],
            color=COLOURS[name],
            alpha=0.55 if name.endswith("full") else 1.0,
        )
        left.annotate(f" {middle:,.0f}", (high, place), va="center", fontsize=9)
    left.set_xlabel("real tokens/s (median; line: lowest to highest)")
    left.margins(x=0.15)
    for name in ("luthier-fp32", "trl", "transformers", "llamafactory", "luthier"):
        if name in losses:
            steps = range(1, len(losses[name]) + 1)
            style = ":" if name == "luthier-fp32" else "-"
            right.plot(
                steps, losses[name], style, color=COLOURS[name], label=TITLES[name], linewidth=1.4, alpha=0.8
            )
    right.set_xlabel("step")
    right.set_ylabel("loss, LoRA (nats a token)")
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    print(page(), end="")
