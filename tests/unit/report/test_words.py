"""Sentences for three made-up runs, and for two about which little can be said."""

import numpy as np
import pytest

from luthier.report import history, words


def made_up(train, evals, *, noise=0.05, steps=300, warmup=30):
    """A run whose training loss is a function of the share that is done, with some scatter, and evaluations."""
    scatter = np.random.default_rng(0).normal(0, noise, steps)
    rows = [
        {
            "step": n,
            "epoch": n / 100,
            "loss": float(train(n / steps) + scatter[n - 1]),
            "learning_rate": min(1, n / warmup) if warmup else 1.0,
        }
        for n in range(1, steps + 1)
    ]
    for done, loss in evals.items():
        step = round(done * steps)
        if step:
            rows[step - 1]["eval"] = {"loss": loss}
        else:
            rows.append({"step": 0, "eval": {"loss": loss}})
    past = history.from_rows(rows)
    return past, history.smooth(past.series("loss"), 21)


def kinds(past, smoothed):
    return {observation.kind: observation.text for observation in words.observations(past, smoothed)}


def test_over_fitting() -> None:
    evals = {0: 3.0, 0.2: 2.0, 0.4: 1.8, 0.6: 1.9, 0.8: 2.1, 1: 2.3}
    found = kinds(*made_up(lambda t: 0.6 + 2.4 * np.exp(-3 * t), evals))
    assert set(found) == {"warm-up", "noise", "over-fitting", "gap"}
    assert "lowest at step 120 (1.800) and rises to 2.300 by step 300" in found["over-fitting"]
    assert "first 30 steps" in found["warm-up"]
    assert "deviation of 0.04" in found["noise"] or "deviation of 0.05" in found["noise"]


def test_a_gap_within_one_epoch_is_not_called_over_fitting() -> None:
    past, smoothed = made_up(lambda t: 2 - t, {0: 3.0, 0.5: 2.9, 1: 2.8}, noise=0.01)
    assert "holds for the training rows alone" in kinds(past, smoothed)["gap"]
    for row in past.steps:
        row["epoch"] /= 3
    assert "no training row was seen twice" in kinds(past, smoothed)["gap"]


def test_plateau() -> None:
    evals = {0: 3.0, 0.2: 2.05, 0.4: 2.004, 0.6: 2.0, 0.8: 2.002, 1: 1.999}
    found = kinds(*made_up(lambda t: 2 + np.exp(-20 * t), evals))
    assert set(found) == {"warm-up", "noise", "plateau"}
    assert "From step 120 on validation loss moves by less than 1% (2.004 to 1.999)" in found["plateau"]


def test_divergence() -> None:
    evals = {0: 3.0, 0.2: 2.3, 0.4: 2.1, 0.6: 3.0, 0.8: 5.0, 1: 7.0}
    found = kinds(*made_up(lambda t: 2 + np.exp(-10 * t) + 40 * max(0, t - 0.5) ** 2, evals, warmup=0))
    assert set(found) == {"noise", "divergence"}
    assert (
        "lowest at step 1" in found["divergence"] and "rose to 1" in found["divergence"]
    )  # 2 + 40 / 4 at the end
    past, _ = made_up(lambda t: 2.0, {})
    past.steps[99]["loss"] = float("nan")
    assert "At step 100" in kinds(past, history.smooth(past.series("loss"), 21))["divergence"]


def test_validation_below_training_is_told_and_explained() -> None:
    evals = {0: 3.0, 0.1: 2.2, 0.2: 1.9, 0.4: 1.6, 0.7: 1.3, 1: 1.1}
    found = kinds(*made_up(lambda t: 1 + 2 * np.exp(-3 * t), evals))
    assert "Up to step" in found["validation-below"] and "no fault" in found["validation-below"]
    # From 1.3 at 70% of the steps, the last one before their last quarter.
    assert (
        "by 15.4% since step" in found["still-falling"]
        and "plateau" not in found
        and "over-fitting" not in found
    )


@pytest.mark.parametrize("evals", [{}, {0: 3.0, 1: 2.0}])
def test_nothing_is_said_of_what_was_not_measured(evals: dict[float, float]) -> None:
    past, smoothed = made_up(lambda t: 2.0, evals, steps=4, warmup=0)
    assert kinds(past, smoothed) == {}


def test_noise_alone_is_no_trend() -> None:
    scattered = {i / 10: 2 + 0.005 * (-1) ** i for i in range(11)}
    found = kinds(*made_up(lambda t: 2.0, scattered, noise=0.3, warmup=0))
    assert set(found) == {"noise", "plateau"}
    assert "nothing measurable was learned" in found["plateau"]
    assert history.warmup_end(made_up(lambda t: 2.0, {}, warmup=0)[0]) == 0
    assert history.warmup_end(made_up(lambda t: 2.0, {}, warmup=30)[0]) == 30
