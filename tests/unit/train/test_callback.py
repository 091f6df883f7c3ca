"""Luthier's watchers in a real transformers Trainer."""

import logging
from types import SimpleNamespace

import pytest
import torch
from tests.fixtures import tiny_trainer
from transformers import Trainer

import luthier
from luthier.errors import UserError
from luthier.train import callback
from luthier.train.watchers import DOCUMENTED

pytestmark = pytest.mark.filterwarnings("default")  # of other people's trainers
SETTINGS = {"logging_steps": 1, "lr_scheduler_type": "constant", "max_steps": 200}


def watched(*stop_on, cls=Trainer, model=None, train=None, **settings):
    """A callback after a training, and the trainer."""
    watch = luthier.WatchCallback(stop_on=stop_on)
    trainer = tiny_trainer.trainer(model, cls=cls, train=train, **{**SETTINGS, **settings})
    trainer.add_callback(watch)
    trainer.train()
    return watch, trainer


def test_a_trainer_that_overfits_is_stopped(caplog):
    caplog.set_level(logging.WARNING, "luthier")
    few = tiny_trainer.items(16)
    watch, trainer = watched("watch-overfitting", train=few, learning_rate=1e-2, eval_steps=10)
    (finding,) = watch.findings
    assert finding.check == "watch-overfitting" and trainer.state.global_step < 100
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert f"{losses[-1]:.4g} from {min(losses):.4g}" in finding.what
    assert "num_train_epochs=" in finding.fix
    assert "watch-overfitting" in caplog.text and "so training ends here" in caplog.text


def test_a_trainer_that_diverges_is_told_once_and_goes_on(caplog):
    watch, trainer = watched(learning_rate=2.0, eval_strategy="no", max_steps=40)
    assert [finding.check for finding in watch.findings] == ["watch-loss-rise"]
    assert trainer.state.global_step == 40
    assert caplog.text.count("watch-loss-rise") == 1 and "training ends" not in caplog.text


def test_a_healthy_trainer_is_left_alone(caplog):
    watch, _ = watched(train=tiny_trainer.items(400), eval_steps=30, learning_rate=2e-4, logging_steps=2)
    assert watch.findings == [] and "watch" not in caplog.text


class Breaks(Trainer):
    """Its loss is NaN from the thirteenth micro-batch on, as fp16 that overflows."""

    count = 0

    def compute_loss(self, *args, **kwargs):
        self.count += 1
        return super().compute_loss(*args, **kwargs) * (float("nan") if self.count > 12 else 1)


def test_nan_that_the_trainer_hides_is_found():
    watch, trainer = watched("watch-not-finite", cls=Breaks, logging_steps=5, eval_strategy="no")
    (finding,) = watch.findings
    assert (finding.check, finding.severity) == ("watch-not-finite", "error")
    assert trainer.state.global_step == 15
    assert math_is_finite([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert "parameters hold NaN" in finding.what and "logging_nan_inf_filter" in finding.what


def math_is_finite(values):
    return bool(torch.tensor(values).isfinite().all())


def test_a_few_overflows_of_fp16_are_as_they_should_be():
    watch = luthier.WatchCallback()
    trainer = tiny_trainer.trainer()
    trainer.args.fp16 = True
    for step in range(1, 6):
        trainer.state.global_step = step
        watch.on_log(trainer.args, trainer.state, trainer.control, {"loss": 2.0, "grad_norm": float("inf")})
        assert len(watch.findings) == (step == 5)


def test_speed_is_measured_at_every_step(monkeypatch):
    # Two readings a step: after the 120th step each step takes 5 s instead of 1 s.
    readings = (reading for n in range(10**6) for reading in (10 * n, 10 * n + (1 if n < 120 else 5)))
    monkeypatch.setattr(callback, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    watch, trainer = watched("watch-throughput", logging_steps=500, eval_strategy="no")
    (finding,) = watch.findings
    assert finding.check == "watch-throughput" and 140 <= trainer.state.global_step <= 150
    assert "ran at 0.2 steps/s at most, 20% of this run's 1 steps/s" in finding.what


def test_a_training_that_goes_on_is_judged_with_its_log(tmp_path):
    settings = {"train": tiny_trainer.items(16), "learning_rate": 1e-2, "eval_steps": 10}
    settings |= {"save_strategy": "steps", "save_steps": 20, "output_dir": str(tmp_path)}
    whole, _ = watched("watch-overfitting", **settings)
    again = luthier.WatchCallback()
    trainer = tiny_trainer.trainer(**{**SETTINGS, **settings, "max_steps": 50})
    trainer.add_callback(again)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert [finding.what for finding in again.findings] == [finding.what for finding in whole.findings]


def test_what_chance_would_give():
    assert callback._chance_loss(tiny_trainer.model()) == pytest.approx(5.9296, abs=1e-4)
    assert callback._chance_loss(tiny_trainer.classifier(num_labels=280)) == pytest.approx(5.6348, abs=1e-4)
    assert callback._chance_loss(tiny_trainer.classifier(num_labels=1)) is None
    assert callback._chance_loss(None) is None
    assert callback._chance_loss(SimpleNamespace(config=SimpleNamespace())) is None  # anybody's own


def test_an_unknown_watcher_is_a_mistake():
    with pytest.raises(UserError, match="watch-overfiting"):
        luthier.WatchCallback(stop_on=["watch-overfiting"])
    assert luthier.WatchCallback(stop_on=DOCUMENTED).findings == []
