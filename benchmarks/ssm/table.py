"""The documentation's page about the speed of state-space models, from ``results.json``."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).with_name("results.json")
INTRODUCTION = """\
# Speed of state-space models

Training steps on a processor: Mamba and Mamba-2 by Luthier's layers and by transformers' own in turns, on one model and one batch, and BiGS at growing lengths. Models of 9 to 10
million random weights, random tokens, fp32, warm.

```
python benchmarks/ssm/run.py
```
"""


def page(path: Path = RESULTS) -> str:
    """The whole page as Markdown."""
    results = json.loads(path.read_text())
    figures = results["figures"]
    lines = [INTRODUCTION, f"Made on {results['date']}. {results['notes']}", "", "## Mamba and Mamba-2", ""]
    head = [
        "",
        "rows x tokens",
        "tokens/s",
        "tokens/s, transformers",
        "faster by",
        "pairs of steps",
        "difference of the losses",
    ]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for kind, title in (("mamba1", "Mamba"), ("mamba2", "Mamba-2")):
        for length in (512, 2048):
            own = {
                key: figures[f"{kind}_{length}_{key}"]
                for key in ("rows", "pairs", "tokens_per_s", "loss_difference")
            }
            theirs = figures[f"{kind}_{length}_tokens_per_s_transformers"]
            cells = [
                title,
                f"{own['rows']} x {length:,}",
                f"{own['tokens_per_s']:,.0f}",
                f"{theirs:,.0f}",
                spread(figures[f"{kind}_speed_{length}"]),
                str(own["pairs"]),
                f"{own['loss_difference']:.0e}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    chunks = " and ".join(spread(figures[f"mamba2_{length}_speed_chunk_64"]) for length in (512, 2048))
    lines += [
        "",
        f"A figure with a range is the median, with the least and the most. Mamba-2's are against transformers in chunks of 256, its default: a setting that does not suit processors. Against transformers in chunks of 64, as ours, they are {chunks}.",
        "",
        "## BiGS",
        "",
        "| tokens of a row | tokens/s | convolutions of a step, s |",
        "|---|---|---|",
    ]
    lengths = sorted(
        int(name.split("_")[1])
        for name in figures
        if name.startswith("bigs_") and name.endswith("_convolution_seconds")
    )
    for length in lengths:
        speed = spread(figures[f"bigs_{length}_tokens_per_s"], digits=0)
        lines.append(f"| {length:,} | {speed} | {figures[f'bigs_{length}_convolution_seconds']:.2f} |")
    lines += [
        "",
        f"A token at {lengths[-1]:,} costs {figures['bigs_growth']:.2f} times what it costs at {lengths[0]:,}. If all of a step were convolutions of length L, "
        f"L log L would make that {figures['bigs_growth_if_all_were_l_log_l']:.2f}, L squared {figures['bigs_growth_if_all_were_l_squared']}; most of a step does not depend on the length.",
        "",
    ]
    return "\n".join(lines)


def spread(values: list[float], digits: int = 1) -> str:
    """Median, with the least and the most."""
    middle, low, high = (f"{value:,.{digits}f}" for value in values)
    return middle if low == high else f"{middle} ({low} to {high})"


if __name__ == "__main__":
    print(page())
