"""Training without an eval split, and folders in which other training lies."""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from tests.fixtures.tiny_run import write_recipe

from luthier import pipeline
from luthier.errors import Refused, UserError
from luthier.recipe import Recipe, Train
from luthier.run_folder import RunFolder, read_json, write_json
from luthier.train import checkpoint
from luthier.train.checkpoint import Progress
from luthier.train.loop import _checkpoint_due, _eval_due, _interruption, _note_best, _stopped_early

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(
        tmp_path,
        train={"max_steps": 4, "checkpoint_every_steps": None, "eval_every_steps": None, "keep": "last"},
        check={"waive": ["initial-loss", "schedule"]},  # without eval rows only by a waiver
        data={"splits": {"train": 0.8, "eval": 0.0, "test": 0.2}},
    )


def test_without_eval_rows_nothing_is_evaluated_and_the_last_weights_are_kept(recipe, tmp_path):
    run = pipeline.train(recipe, folder=tmp_path / "run")
    history = [json.loads(line) for line in run.history.read_text().splitlines()]
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    assert not any("eval" in row for row in history)
    assert run.result() == run.adapter


def test_the_best_evaluation_is_the_first_of_the_best_since_training_began():
    for direction, sign in (("min", 1), ("max", -1)):
        progress, seen = Progress(), []
        for progress.step, value in enumerate((0.1, 1.0, 0.8, 0.8, 0.9, 0.7)):
            noted = _note_best(progress, sign * value, direction)
            seen.append((noted, progress.best_step, progress.evals_without_better))
        assert seen == [
            (False, None, 0),
            (True, 1, 0),
            (True, 2, 0),
            (False, 2, 1),
            (False, 2, 2),
            (True, 5, 0),
        ]
        assert progress.best_value == sign * 0.7
    two = Progress(evals_without_better=2)
    assert [_stopped_early(two, patience) for patience in (1, 2, 3, None)] == [True, True, False, False]


def test_evaluations_and_checkpoints_are_due():
    by_steps = Recipe(train=Train(eval_every_steps=4, checkpoint_every_steps=3))
    due = [_eval_due(Progress(step=step), 10, by_steps) for step in range(1, 11)]
    assert [step for step, found in enumerate(due, 1) if found] == [4, 8, 10]
    saved = [_checkpoint_due(Progress(step=step), {}, due[step - 1], 10, by_steps) for step in range(1, 11)]
    assert [step for step, found in enumerate(saved, 1) if found] == [3, 6, 9, 10]
    assert _checkpoint_due(Progress(step=4), {"eval": {"best": True}}, True, 10, by_steps)
    assert not _checkpoint_due(Progress(step=4), {"eval": {"best": False}}, True, 10, by_steps)
    with_evaluations = Recipe(train=Train(checkpoint_every_steps=None))
    assert _checkpoint_due(Progress(step=4), {}, True, 10, with_evaluations)
    assert not _checkpoint_due(Progress(step=4), {}, False, 10, with_evaluations)
    by_tokens, progress = Recipe(train=Train(eval_every_tokens=100)), Progress(next_eval_tokens=100)
    found = []
    for progress.step, progress.tokens in enumerate((99, 100, 199, 250, 299, 520, 599), 1):
        found.append((_eval_due(progress, 7, by_tokens), progress.next_eval_tokens))
    assert found == [
        (False, 100), (True, 200), (False, 200), (True, 300), (False, 300), (True, 600), (True, 600)
    ]  # fmt: skip


def test_training_is_never_replaced_by_that_of_another_recipe_or_data(recipe, tmp_path):
    run = pipeline.train(recipe, folder=tmp_path / "run")
    before = {path: path.read_bytes() for path in (run.recipe, run.manifest, run.history)}
    with pytest.raises(UserError, match=r"other settings or data \(train, seed\)"):
        pipeline.prepare(recipe, "seed=1", "train.learning_rate=1", folder=run.path)
    assert before == {path: path.read_bytes() for path in before}
    (tmp_path / "code" / "module_0.py").unlink()
    with pytest.raises(UserError, match="would be replaced: sources changed"):
        pipeline.train(recipe, folder=run.path)
    assert before == {path: path.read_bytes() for path in before} and run.result() == run.adapter
    pipeline.report(recipe, folder=run.path)  # looks at what is there


def test_a_run_that_memory_ended_goes_on_with_less_at_once(recipe, tmp_path):
    run = pipeline.train(recipe, "train.keep_checkpoints=9", folder=tmp_path / "run")
    shutil.rmtree(run.adapter)
    for step in sorted(checkpoint.steps(run))[1:]:
        shutil.rmtree(run.checkpoints / f"step-{step}")
    engine = read_json(run.environment)["engine"]
    assert engine["micro_batch_tokens"] > 64
    pipeline.train(
        recipe, "train.micro_batch_tokens=64", "train.gradient_checkpointing=true", folder=run.path
    )
    engine = read_json(run.environment)["engine"]
    assert engine["micro_batch_tokens"] == 64 and engine["gradient_checkpointing"]
    assert "resuming from" in run.log.read_text() and run.result() == run.adapter


def test_metrics_that_cannot_be_taken_are_refused_of_a_checked_run_too(recipe, tmp_path):
    run = pipeline.check(recipe, folder=tmp_path / "run")
    with pytest.raises(UserError, match="needs rows with tests"):
        pipeline.check(recipe, 'evaluate.metrics=["pass@1"]', folder=run.path)


def test_a_run_cut_off_between_saving_and_noting_it_is_taken_up(recipe, tmp_path):
    run = pipeline.train(recipe, folder=tmp_path / "run")
    adapter = (run.adapter / "adapter_model.safetensors").read_bytes()
    stages = read_json(run.stages)
    del stages["train"]
    write_json(run.stages, stages)
    pipeline.train(recipe, folder=run.path)
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == adapter
    assert "train" in read_json(run.stages)
    assert "resuming from" in run.log.read_text()


def _history(run):
    """Objects of history.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in run.history.read_text().splitlines()]
    for row in rows:
        for key in ("seconds", "tokens_per_s", "memory_gib", "peak_memory_gib"):
            row.pop(key, None)
            row.get("eval", {}).pop(key, None)
    return rows


def test_the_best_weights_are_kept_and_patience_ends_the_run(tmp_path, monkeypatch):
    losses = iter([9.0, 3.0, 4.0, 5.0])  # before training, and after 2, 4 and 6 steps
    noted = lambda progress, _, direction: _note_best(progress, next(losses), direction)  # noqa: E731
    monkeypatch.setattr(sys.modules["luthier.train.loop"], "_note_best", noted)
    train = {"max_steps": 12, "eval_every_steps": 2, "checkpoint_every_steps": 2, "early_stop_patience": 2,
             "keep_checkpoints": 9, "num_samples": 0}  # fmt: skip
    run = pipeline.train(write_recipe(tmp_path, train=train), folder=tmp_path / "run")
    assert _history(run)[-1]["step"] == 6
    kept = load_file(run.adapter / "adapter_model.safetensors")
    for step in (2, 6):
        saved = load_file(run.checkpoints / f"step-{step}" / "weights.safetensors")
        same = [torch.equal(saved[name.replace(".weight", ".default.weight")], kept[name]) for name in kept]
        assert all(same) == (step == 2)


def test_a_watcher_stops_the_run_and_it_can_go_on(tmp_path, caplog):
    train = {"max_steps": 24, "learning_rate": 1.0, "schedule": "constant", "eval_every_steps": 12,
             "batch_size": 8, "checkpoint_every_steps": 6, "num_samples": 0}  # fmt: skip
    recipe = write_recipe(tmp_path, train=train, model={"adapter": None})
    progress = []
    whole = pipeline.train(recipe, folder=tmp_path / "whole", progress=lambda *step: progress.append(step))
    told = [row for row in _history(whole) if "findings" in row]
    assert [found["check"] for row in told for found in row["findings"]] == ["watch-loss-rise"]
    step, (found,) = told[0]["step"], told[0]["findings"]
    assert found["severity"] == "warning" and f"{found['measured']:.3g}" in found["what"]
    assert f"WARNING step {step}: watch-loss-rise: {found['what']}" in whole.log.read_text()
    assert [label for label, *_ in progress if "! watch-loss-rise" in label], "the progress line has it too"

    stops = "train.stop_on=[watch-loss-rise]"
    with pytest.raises(Refused, match=rf"watch-loss-rise stopped the run after step {step} of 24") as refused:
        pipeline.train(recipe, stops, folder=tmp_path / "stopped")
    assert "a checkpoint was saved" in refused.value.fix
    stopped = RunFolder(tmp_path / "stopped")
    assert (stopped.checkpoints / f"step-{step}").is_dir() and stopped.result() is None
    assert len(_history(stopped)) == step + 1
    pipeline.report(recipe, stops, folder=stopped.path)
    page = stopped.report.read_text(encoding="utf-8")
    assert f"watch-loss-rise stopped training after step {step}" in page and 'id="watched"' in page

    # The same command goes on, as does one that no longer stops, and ends as the run that was never stopped.
    pipeline.train(recipe, folder=stopped.path)
    assert f"resuming from {stopped.checkpoints / f'step-{step}'}" in stopped.log.read_text()
    assert _history(stopped) == _history(whole)
    weights = "model/model.safetensors"
    assert (stopped.path / weights).read_bytes() == (whole.path / weights).read_bytes()


@pytest.mark.parametrize("under_torchrun", [False, True])
def test_a_second_ctrl_c_does_not_wait(under_torchrun, monkeypatch, capfd):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if under_torchrun:  # it hands on what the terminal sent as well
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with _interruption() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.wait(5) and capfd.readouterr().err.count("with a checkpoint") == 1
        with nullcontext() if under_torchrun else pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(
                0.1
            )  # the interpreter calls a handler between two instructions, not in the call that sends the signal
    assert "again" not in capfd.readouterr().err
