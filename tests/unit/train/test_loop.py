"""Training without an eval split, and folders in which other training lies."""

import json

import pytest
from tests.fixtures.tiny_run import write_recipe

from luthier import pipeline
from luthier.errors import UserError
from luthier.run_folder import read_json, write_json

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


def test_training_is_never_replaced_by_that_of_another_recipe_or_data(recipe, tmp_path):
    run = pipeline.train(recipe, folder=tmp_path / "run")
    before = {path: path.read_bytes() for path in (run.recipe, run.manifest, run.history)}
    with pytest.raises(UserError, match=r"other settings or data \(train, seed\)"):
        pipeline.prepare(recipe, "seed=1", "train.learning_rate=1", folder=run.path)
    assert before == {path: path.read_bytes() for path in before}
    (tmp_path / "code" / "module_0.py").unlink()
    with pytest.raises(UserError, match="other settings or data"):
        pipeline.train(recipe, folder=run.path)
    assert run.result() == run.adapter


def test_a_run_cut_off_between_saving_and_noting_it_is_taken_up(recipe, tmp_path):
    run = pipeline.train(recipe, folder=tmp_path / "run")
    adapter = (run.adapter / "adapter_model.safetensors").read_bytes()
    stages = read_json(run.stages)
    del stages["train"]
    write_json(run.stages, stages)
    pipeline.train(recipe, folder=run.path)
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == adapter
    assert "train" in read_json(run.stages)
