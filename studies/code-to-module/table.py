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
        "| | macro F1 | n-grams | difference | accuracy | n-grams | loss at step 0 (ln C) | minutes of training |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [row(figures, way) for way in ways]
    lines += [line for way in ways for line in ("", verdict(figures, way))]
    if "words/cost_of_words/cost" in figures:
        cost = of_way(figures, "words/cost_of_words")
        lines += [
            "",
            f"Scoring all {cost['num_labels']} labels, {cost['tokens_in_tree']} tokens as a tree, costs **{cost['cost']:.2f} times** one forward pass over the texts alone, which "
            f"have {cost['mean_text_tokens']:.0f} tokens on average, and {cost['longer_cost']:.2f} times over texts of {cost['mean_longer_text_tokens']:.0f}. In fp32 it differs from scoring "
            f"each label by itself by {cost['most_difference_to_exhaustive_nats']:.1e} nats at most.",
        ]
    return "\n".join([*lines, "", results["notes"]]) + "\n"


def verdict(figures: dict[str, Any], way: str) -> str:
    """Whether the model beats the baseline; where it does not, what the run had to learn from."""
    own = of_way(figures, way)
    difference = own["macro_f1_difference"]
    low, high = difference[1:] if isinstance(difference, list) else (-1.0, 1.0)
    if low > 0:
        return f"With {WAYS[way]} the model beats the n-grams: the interval of the difference excludes zero."
    what = (
        "is behind the n-grams, and the interval of the difference excludes zero"
        if high < 0
        else "cannot be told from the n-grams: the interval of the difference includes zero"
    )
    rows, classes, seen = own["num_train_rows"], own["num_classes"], own["num_steps"]
    return (
        f"With {WAYS[way]} the model {what}. What it had: {rows / classes:.0f} functions a class on average, {seen:,} steps over "
        f"{own['tokens'] / 1e6:.1f} million tokens, and {own['num_parameters'] / 1e6:.0f} million parameters, of which "
        f"{own['num_trained_parameters'] / 1e6:.1f} million were trained. Which of these limits it was not measured."
    )


def with_interval(figure: float | list[float], form: str = ".3f") -> str:
    """A figure with its interval, if it has one."""
    if not isinstance(figure, list):
        return format(figure, form)
    middle, low, high = (format(value, form) for value in figure)
    return f"{middle} ({low} to {high})"


def of_way(figures: dict[str, Any], way: str) -> dict[str, Any]:
    """The figures of one way by their own names."""
    return {
        name.removeprefix(f"{way}/"): value for name, value in figures.items() if name.startswith(f"{way}/")
    }


def row(figures: dict[str, Any], way: str) -> str:
    """One way's figures."""
    own = of_way(figures, way)
    cells = [
        WAYS[way],
        with_interval(own["macro_f1_model"]),
        with_interval(own["macro_f1_baseline"]),
        with_interval(own["macro_f1_difference"], "+.3f"),
        f"{own['accuracy_model']:.3f}",
        f"{own['accuracy_baseline']:.3f}",
        f"{own['loss_at_step_0']:.2f} ({own['uniform_loss']:.2f})",
        f"{own['train_seconds'] / 60:.0f}",
    ]
    return f"| {' | '.join(cells)} |"
