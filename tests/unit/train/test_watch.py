"""Watchers speak of what is planted, once and alone, and are silent over healthy runs however noisy."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import recipe
from luthier.records import Finding
from luthier.train.watch import Setting, Watch
from luthier.train.watchers import DOCUMENTED, OWN, WATCHERS

HERE = Path(__file__).parents[2]
CURVES = json.loads((HERE / "fixtures" / "curves.json").read_text())
LN_V = math.log(50_000)
SETTING = Setting(chance_loss=LN_V, warmup_steps=20)


def course(
    num_steps: int, *, start: float = 2.0, end: float = 1.0, noise: float = 0.1, seed: int = 0
) -> np.ndarray:
    """Losses that fall and level off, with the noise of small batches."""
    draw = np.random.default_rng(seed)
    falling = end + (start - end) * np.exp(-np.arange(num_steps) / 100)
    return falling * draw.lognormal(0, noise, num_steps)


def rows(losses: Any, *, evals: dict[int, float] | None = None, steps_per_epoch: float = 200, **series: Any) -> list[dict[str, Any]]:  # fmt: skip
    """Objects of history.jsonl."""
    draw = np.random.default_rng(1)
    count = len(losses)
    usual = {
        "gradient_norm": 0.5 * draw.lognormal(0, 0.4, count),
        "tokens_per_s": 5000 * draw.lognormal(0, 0.2, count),
        "memory_gib": np.full(count, 3.0),
    }
    made: list[dict[str, Any]] = (
        [{"step": 0, "epoch": 0.0, "eval": {"loss": evals[0]}}] if evals and 0 in evals else []
    )
    for index, loss in enumerate(losses):
        row = {"step": index + 1, "epoch": (index + 1) / steps_per_epoch, "loss": float(loss)}
        row |= {name: float(values[index]) for name, values in (usual | series).items()}
        if evals and index + 1 in evals:
            row["eval"] = {"loss": evals[index + 1]}
        made.append(row)
    return made


def said(history: list[dict[str, Any]], setting: Setting = SETTING) -> list[tuple[int, Finding]]:
    watch = Watch(setting)
    return [(row["step"], finding) for row in history for finding in watch.see(row)]


def replaced(values: np.ndarray, start: int, new: Any) -> np.ndarray:
    values = np.array(values, dtype=float)
    values[start - 1 : start - 1 + np.size(new)] = new
    return values


# Planted


def spike() -> list[dict[str, Any]]:
    return rows(replaced(course(400), 300, 4.5))


def spike_after_a_resume_of_few_steps() -> list[dict[str, Any]]:
    return rows(replaced(course(60), 30, 6.0))


def divergence_at_once() -> list[dict[str, Any]]:
    return rows(np.concatenate([[1.6, 1.5, 1.7, 2.1], 2.6 + 0.02 * np.arange(60)]))


def divergence_beyond_chance() -> list[dict[str, Any]]:
    swings = 14 + 2 * np.sin(np.arange(80))
    return rows(np.concatenate([[2.2, 9.0, 20.0], swings]))


def divergence_late() -> list[dict[str, Any]]:
    losses = course(600)
    losses[400:] *= np.minimum(1 + np.arange(200) / 60, 2.2)
    return rows(losses)


def stuck_at_chance() -> list[dict[str, Any]]:
    return rows(LN_V * np.random.default_rng(0).normal(1, 0.01, 200))


def unmoved_in_evaluation() -> list[dict[str, Any]]:
    noise = np.random.default_rng(0).lognormal(0, 0.3, 200)
    return rows(2.3 * noise, evals={step: 2.3145 + 1e-5 * step % 3e-5 for step in range(0, 200, 40)})


def unmoved_from_epoch_to_epoch() -> list[dict[str, Any]]:
    epoch = 2.3 * np.random.default_rng(0).lognormal(0, 0.3, 80)
    return rows(np.tile(epoch, 3), steps_per_epoch=80)


def explosion() -> list[dict[str, Any]]:
    norms = 0.5 * np.random.default_rng(0).lognormal(0, 0.5, 400)
    return rows(course(400), gradient_norm=replaced(norms, 301, norms[300:] * 200))


def zero_gradient() -> list[dict[str, Any]]:
    return rows(course(200, start=1.1), gradient_norm=replaced(np.full(200, 0.4), 120, np.zeros(81)))


def dying_gradient() -> list[dict[str, Any]]:
    norms = 0.5 * np.exp(-np.arange(300) / 20)
    return rows(course(300, start=1.3), gradient_norm=norms)


def five_epochs_worse_than_two() -> list[dict[str, Any]]:
    losses = 0.2 + 1.3 * np.exp(-np.arange(500) / 150)
    evals = {100: 1.30, 200: 1.05, 300: 1.09, 400: 1.15, 500: 1.21}
    return rows(losses * np.random.default_rng(0).lognormal(0, 0.1, 500), evals=evals, steps_per_epoch=100)


def worse_from_the_start() -> list[dict[str, Any]]:
    return rows(course(200), evals={0: 1.0, 50: 1.03, 100: 1.06, 150: 1.11})


def half_speed() -> list[dict[str, Any]]:
    speeds = 5000 * np.random.default_rng(0).lognormal(0, 0.2, 300)
    return rows(course(300), tokens_per_s=replaced(speeds, 201, speeds[200:] * 0.2))


def leak() -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    return rows(course(700), memory_gib=3 + 0.002 * np.arange(700) + draw.normal(0, 0.02, 700))


PLANTED = [
    (spike, "watch-loss-spike", 300, 300),
    (spike_after_a_resume_of_few_steps, "watch-loss-spike", 30, 30),
    (divergence_at_once, "watch-loss-rise", 20, 30),
    (divergence_beyond_chance, "watch-loss-rise", 15, 20),
    (divergence_late, "watch-loss-rise", 420, 600),
    (stuck_at_chance, "watch-loss-stuck", 120, 120),
    (unmoved_in_evaluation, "watch-loss-stuck", 120, 130),
    (unmoved_from_epoch_to_epoch, "watch-loss-stuck", 161, 161),
    (explosion, "watch-gradient-exploding", 305, 306),
    (zero_gradient, "watch-gradient-vanishing", 122, 122),
    (dying_gradient, "watch-gradient-vanishing", 120, 200),
    (five_epochs_worse_than_two, "watch-overfitting", 500, 500),
    (worse_from_the_start, "watch-overfitting", 150, 150),
    (half_speed, "watch-throughput", 220, 235),
    (leak, "watch-memory", 300, 300),
]


@pytest.mark.parametrize(
    ("plant", "name", "first", "last"), PLANTED, ids=lambda v: getattr(v, "__name__", "")
)
def test_what_is_planted_is_told_once_by_its_watcher_alone(plant, name, first, last):
    found = said(plant())
    assert [finding.check for _, finding in found] == [name]
    ((step, finding),) = found
    assert first <= step <= last
    assert finding.severity == "warning" and finding.fix and str(step) in finding.where + finding.what
    assert f"{finding.measured:.3g}"[:3] in finding.what.replace(",", ""), finding
    json.dumps([finding.measured, finding.expected], allow_nan=False)


def test_the_advice_is_that_of_the_training():
    ours = said(five_epochs_worse_than_two())[0][1]
    others = said(five_epochs_worse_than_two(), Setting(is_recipe=False))[0][1]
    assert "train.epochs" in ours.fix and "epoch 2 " in ours.fix and "num_train_epochs=2," in others.fix
    assert "to 1.21 from 1.05 at step 200 (epoch 2)" in ours.what and "by heart" in ours.what
    assert "another kind" in said(worse_from_the_start())[0][1].what, "no row was seen twice"
    for plant, *_ in PLANTED:
        (_, finding), *_ = said(plant(), Setting(LN_V, 20, is_recipe=False))
        assert "train." not in finding.fix.replace("luthier.audit(trainer)", "")


def test_every_watcher_is_planted_documented_and_known_to_the_recipe():
    assert {name for _, name, *_ in PLANTED} == WATCHERS.keys() == set(recipe.Watcher.__args__)
    assert DOCUMENTED.keys() == {*WATCHERS, "watch-not-finite"}
    for watcher in DOCUMENTED.values():
        for heading in ("What it does:", "Why is this bad:", "Example:", "Fix:"):
            assert f"\n    {heading} " in watcher.__doc__


# Healthy

NOISES = {
    "normal": lambda draw, n: np.abs(draw.normal(1, 0.3, n)),
    "log-normal": lambda draw, n: draw.lognormal(0, 0.5, n),
    "wide log-normal": lambda draw, n: draw.lognormal(0, 0.8, n),
    "exponential": lambda draw, n: draw.exponential(1, n),
    "gamma": lambda draw, n: draw.gamma(2, 0.5, n),
    "means of eight": lambda draw, n: draw.exponential(1, (n, 8)).mean(axis=1),
}


@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_no_finding(noise):
    draw = np.random.default_rng(7)
    for end in (0.05, 1.0, 1.9):
        losses = course(2000, end=end, noise=0) * np.maximum(NOISES[noise](draw, 2000), 1e-3)
        norms = 0.5 * draw.lognormal(0, 0.8, 2000)
        assert said(rows(losses, gradient_norm=norms)) == []


@pytest.mark.parametrize("name", CURVES)
def test_real_runs_are_healthy(name):
    run = CURVES[name]
    evals = {int(step): loss for step, loss in run["eval"].items()}
    series = {key: run[key] for key in ("gradient_norm", "tokens_per_s", "memory_gib")}
    per_epoch = len(run["loss"]) / run["epochs"]
    assert said(rows(run["loss"], evals=evals, steps_per_epoch=per_epoch, **series)) == []


@pytest.mark.parametrize("name", ["adapter", "whole-model"])
def test_golden_curves_are_healthy(name):
    lines = [line.split() for line in (HERE / "golden" / f"{name}.txt").read_text().splitlines()]
    evals = {int(line[0]): float(line[2]) for line in lines if line[1] == "eval"}
    steps = [line for line in lines if line[1] != "eval"]
    norms = [float(line[2]) for line in steps]
    history = rows([float(line[1]) for line in steps], evals=evals, gradient_norm=norms)
    assert said(history, Setting(math.log(376))) == []


def healthy() -> dict[str, list[dict[str, Any]]]:
    draw = np.random.default_rng(3)
    steps = np.arange(1000)
    levelling = {
        step: 1.05 * (1 + 0.008 * math.sin(step)) + 0.6 * math.exp(-step / 60) for step in range(0, 1001, 50)
    }
    stairs = 2 + 0.3 * np.searchsorted(np.geomspace(1, 1000, 9), steps) / 9
    speeds = 5000 * draw.lognormal(0, 0.5, 1000)
    speeds[draw.random(1000) < 0.05] = 200
    return {
        "an evaluation that levels off and wanders": rows(course(1000), evals=levelling),
        "an evaluation of few rows that rises by three per cent": rows(course(300), evals={100: 1.0, 150: 1.025, 200: 1.03, 250: 1.035}),
        "an evaluation that rises with the training loss": rows(
            np.linspace(1.0, 1.2, 400), evals={100: 1.0, 200: 1.05, 300: 1.1, 400: 1.15}
        ),
        "rows learned by heart, small gradients": rows(
            2 * np.exp(-steps / 80) + 0.001, gradient_norm=3 * np.exp(-steps / 80) + 1e-6, steps_per_epoch=5
        ),
        "memory that grows in ever rarer steps": rows(course(1000), memory_gib=stairs),
        "memory that fills a cache and stops": rows(course(1000), memory_gib=np.minimum(2 + steps / 500, 2.35)),
        "single slow steps, rows of varied length": rows(course(1000), tokens_per_s=speeds),
        "slow first steps": rows(course(300), tokens_per_s=replaced(np.full(300, 5000.0), 1, [50] * 12)),
        "from random weights": rows(LN_V * np.exp(-steps / 300) + 2, gradient_norm=5 * np.exp(-steps / 200) + 1),
        "a start that is worse than chance": rows(30 * np.exp(-steps / 40) + 2),
        "a long warm-up": rows(np.concatenate([np.full(100, 2.3), course(300)]), gradient_norm=np.full(400, 1.0)),
        "an epoch that learns little": rows(
            np.concatenate([np.tile(draw.lognormal(0, 0.3, 100), 1) * f for f in (1, 0.99, 0.985)]), steps_per_epoch=100
        ),
        "gradients that calm down": rows(course(1000), gradient_norm=20 * np.exp(-steps / 100) + 0.1),
        "one wild gradient": rows(course(300), gradient_norm=replaced(np.full(300, 0.5), 200, 80.0)),
    }  # fmt: skip


@pytest.mark.parametrize("name", healthy())
def test_healthy_runs_are_left_alone(name):
    setting = Setting(LN_V, 100) if name == "a long warm-up" else SETTING
    assert said(healthy()[name], setting) == []


# Resuming


@settings(max_examples=40, deadline=None)
@given(
    plant=st.sampled_from([plant for plant, name, *_ in PLANTED if name not in OWN]), share=st.floats(0, 1)
)
def test_a_resumed_run_is_told_what_an_uninterrupted_one_is(plant, share):
    history = plant()
    watch = Watch(SETTING)
    for row in history:
        if found := watch.see(row):
            row["findings"] = [{"check": finding.check} for finding in found]
    cut = round(share * len(history))
    resumed = Watch(SETTING, history[:cut])
    for row in history[cut:]:
        plain = {key: value for key, value in row.items() if key != "findings"}
        assert [finding.check for finding in resumed.see(plain)] == [
            f["check"] for f in row.get("findings", ())
        ]


def test_speed_and_memory_are_judged_within_one_process():
    slow = [
        row | {"tokens_per_s": 500.0, "memory_gib": 9.0, "step": row["step"] + 300}
        for row in rows(course(300))
    ]
    whole = [finding.check for _, finding in said([*rows(course(300)), *slow])]
    assert "watch-throughput" in whole
    watch = Watch(SETTING, rows(course(300)))
    assert [f.check for row in slow for f in watch.see(row) if f.check in OWN] == []


def test_what_was_not_logged_is_no_finding():
    watch = Watch(SETTING)
    for step in range(1, 200):
        assert watch.see({"step": step, "loss": 2 - step / 200}) == []
    assert watch.see({"step": 200, "loss": float("nan")}) == [] and watch.see({"step": 201}) == []
