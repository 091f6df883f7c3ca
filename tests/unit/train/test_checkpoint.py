"""A damaged checkpoint is refused by name, and the newest whole one before it is offered."""

import os
import shutil

import pytest
import torch
from tests.fixtures.tiny_model import make_model

from luthier.errors import UserError
from luthier.recipe import Train
from luthier.run_folder import RunFolder
from luthier.train import checkpoint
from luthier.train.checkpoint import Progress
from luthier.train.optimizer import adamw

FILES = ["manifest.json", "optimizer.safetensors", "state.json", "weights.safetensors"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 2, 4 and 6 of a tiny model."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    model = make_model().train()
    optimizer = adamw(model.named_parameters(), Train())
    for step in (2, 4, 6):
        model(torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
        optimizer.step()
        checkpoint.save(run, Progress(step=step, tokens=step * 100), model, optimizer, "key")
    return run


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_whole_checkpoint_is_taken(run):
    path = checkpoint.latest(run, "key")
    assert path == run.checkpoints / "step-6"
    assert sorted(os.listdir(path)) == FILES
    with pytest.raises(UserError, match="step-6 was made with other settings"):
        checkpoint.latest(run, "another key")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_the_one_before_offered(run, name):
    (run.checkpoints / "step-6" / name).unlink()
    with pytest.raises(UserError, match=f"step-6 is damaged: {name} is missing") as error:
        checkpoint.latest(run, "key")
    assert error.value.fix == "delete that folder to go on from step-4"
    assert error.value.where == str(run.checkpoints / "step-6")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_flipped_byte_is_named_and_the_one_before_offered(run, name, share):
    path = run.checkpoints / "step-6" / name
    flip(path, int(share * path.stat().st_size))
    with pytest.raises(UserError, match=rf"step-6 is damaged: {name} .*(changed|is missing)") as error:
        checkpoint.latest(run, "key")
    assert error.value.fix == "delete that folder to go on from step-4"


def test_every_byte_of_the_manifest_counts(run):
    path = run.checkpoints / "step-6" / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        flip(path, place)
        with pytest.raises(UserError, match=r"step-6 is damaged: manifest\.json"):
            checkpoint.latest(run, "key")
        path.write_bytes(whole)
    assert checkpoint.latest(run, "key")


def test_only_a_whole_one_is_offered(run):
    flip(run.checkpoints / "step-6" / "state.json", 20)
    flip(run.checkpoints / "step-4" / "weights.safetensors", 5000)
    with pytest.raises(UserError, match="step-6 is damaged") as error:
        checkpoint.latest(run, "key")
    assert error.value.fix == "delete that folder and step-4 to go on from step-2"
    for step in (6, 4):
        shutil.rmtree(run.checkpoints / f"step-{step}")
    assert checkpoint.latest(run, "key") == run.checkpoints / "step-2"
    flip(run.checkpoints / "step-2" / "optimizer.safetensors", 5000)
    with pytest.raises(UserError, match="step-2 is damaged") as error:
        checkpoint.latest(run, "key")
    assert error.value.fix == "delete that folder to start over"


def test_a_folder_that_is_no_checkpoint_is_left_alone(run):
    own = ["step-6-kept", "step-007"]
    for name in own:
        shutil.copytree(run.checkpoints / "step-6", run.checkpoints / name)
    assert checkpoint.latest(run, "key") == run.checkpoints / "step-6"
    checkpoint.remove_old(run, 1, best_step=None)
    assert sorted(os.listdir(run.checkpoints)) == sorted(["step-6", *own])
    flip(run.checkpoints / "step-6" / "state.json", 20)
    with pytest.raises(UserError, match="to start over"):
        checkpoint.latest(run, "key")


def test_steps_are_counted_where_a_fused_optimizer_looks_for_them(tmp_path):
    """On a GPU beside the parameters: a count on the processor would end the run at its first step."""
    layer, run = torch.nn.Linear(3, 2), RunFolder(tmp_path)
    optimizer = adamw(layer.named_parameters(), Train())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = checkpoint.save(run, Progress(step=1), layer, optimizer, "key")
    elsewhere = torch.nn.Linear(3, 2, device="meta")
    again = adamw(elsewhere.named_parameters(), Train())
    checkpoint.load(path, elsewhere, again)
    found = {name: value.device.type for state in again.state.values() for name, value in state.items()}
    assert found == {"step": "meta", "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_what_was_cut_off_while_writing_or_deleting_is_cleared_away(run):
    for name in (".step-8-x1y2", ".step-2-old"):
        shutil.copytree(run.checkpoints / "step-2", run.checkpoints / name)
    checkpoint.remove_old(run, 1, best_step=4)
    assert sorted(os.listdir(run.checkpoints)) == ["step-4", "step-6"]
