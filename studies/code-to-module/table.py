"""The documentation's page about the study, from ``results.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
INTRODUCTION = """\
# From which module does a function come?

Functions of the standard library and of installed packages, with all that names their module masked; near copies stay in one split. The embedded model learns the module by a head over
the classes, and by writing the label; hashed n-grams with logistic regression are the baseline.

```
python studies/code-to-module/run.py --work build/code-to-module
```
"""
WAYS = {"head": "a head over the classes", "words": "label words"}


def page(path: Path = RESULTS) -> str:
    """The whole page as Markdown."""
    if not path.is_file():
        return f"{INTRODUCTION}\nNot measured yet.\n"
    results = json.loads(path.read_text(encoding="utf-8"))
    figures = results["figures"]
    ways = [way for way in WAYS if f"{way}/macro_f1_model" in figures]
    first = ways[0]
    lines = [
        INTRODUCTION,
        f"Made on {results['date']}: {figures[f'{first}/num_classes']} classes, {figures[f'{first}/num_train_rows']:,} functions to learn from, "
        f"{figures[f'{first}/num_test_rows']:,} to be told.",
        "",
        "| | macro F1 | n-grams | difference | accuracy | n-grams | loss at step 0 (ln C) | minutes |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [row(figures, way) for way in ways]
    if "words/cost_of_words/cost" in figures:
        cost = {name: figures[f"words/cost_of_words/{name}"] for name in ("cost", "num_labels", "tokens_in_tree", "mean_text_tokens", "most_difference_to_exhaustive_nats")}  # fmt: skip
        lines += [
            "",
            f"Scoring all {cost['num_labels']} labels, {cost['tokens_in_tree']} tokens as a tree, costs **{cost['cost']:.2f} times** one forward pass over the texts alone "
            f"({cost['mean_text_tokens']:.0f} tokens on average); it differs from scoring each label by itself by {cost['most_difference_to_exhaustive_nats']:.1e} nats at most.",
        ]
    return "\n".join([*lines, "", results["notes"]]) + "\n"


def row(figures: dict[str, Any], way: str) -> str:
    """One way's figures."""
    own = {
        name.removeprefix(f"{way}/"): value for name, value in figures.items() if name.startswith(f"{way}/")
    }
    middle, low, high = own["macro_f1_difference"]
    cells = [
        WAYS[way],
        f"{own['macro_f1_model']:.3f}",
        f"{own['macro_f1_baseline']:.3f}",
        f"{middle:+.3f} ({low:+.3f} to {high:+.3f})",
        f"{own['accuracy_model']:.3f}",
        f"{own['accuracy_baseline']:.3f}",
        f"{own['loss_at_step_0']:.2f} ({own['uniform_loss']:.2f})",
        f"{own['seconds'] / 60:.0f}",
    ]
    return f"| {' | '.join(cells)} |"
