"""Short loss curves in text files: a change that should not touch the numbers leaves them as they are.

Regenerate with `make golden`, and read the diff.
"""

import json
import os
from pathlib import Path

import pytest
from tests.fixtures.tiny_run import write_recipe

import luthier

CURVES = {
    "adapter": {"train": {"max_steps": 12, "eval_every_steps": 6}},
    "whole-model": {
        "model": {"adapter": None},
        "train": {"max_steps": 12, "eval_every_steps": 6, "weight_decay": 0.1},
    },
}


def curve(folder, changes):
    """Lines of step, loss, gradient norm and learning rate, and of the evaluations."""
    place = luthier.train(str(write_recipe(folder, **changes)), folder=folder / "run")
    lines = []
    for entry in map(json.loads, place.history.read_text().splitlines()):
        if "loss" in entry:
            lines.append(
                f"{entry['step']} {entry['loss']:.6f} {entry['gradient_norm']:.6f} {entry['learning_rate']:.6g}"
            )
        if "eval" in entry:
            lines.append(f"{entry['step']} eval {entry['eval']['loss']:.6f}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", CURVES)
def test_curve_is_as_it_was(name, tmp_path):
    file = Path(__file__).with_name(f"{name}.txt")
    now = curve(tmp_path, CURVES[name])
    if "LUTHIER_REGENERATE" in os.environ:
        file.write_text(now)
    before = file.read_text()
    assert [line.split()[0] for line in now.splitlines()] == [line.split()[0] for line in before.splitlines()]
    for line, old in zip(now.splitlines(), before.splitlines(), strict=True):
        assert ("eval" in line) == ("eval" in old)
        numbers, old_numbers = (
            [float(word) for word in text.split() if word != "eval"] for text in (line, old)
        )
        # Matrix products of other processors round elsewhere; what a changed formula does is far larger.
        assert numbers == pytest.approx(old_numbers, rel=1e-3, abs=1e-6), (
            f"{name}.txt: {old!r} is now {line!r}"
        )
