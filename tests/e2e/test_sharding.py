"""Weights in shards (FSDP2) on two processes: the losses and files of one process, whatever the shapes of the batches."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.fixtures.processes import Luthier, luthier
from tests.fixtures.tiny_run import write_recipe

LORA = {"adapter": {"rank": 4}, "precision": "fp32"}
WHOLE = {"adapter": None, "precision": "fp32"}


def history(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    rows = history(run)
    evals = [row["eval"]["loss"] for row in rows if "eval" in row]
    return [row["loss"] for row in rows if "loss" in row] + evals + norms(run)


def norms(run: Path) -> list[float]:
    return [row["gradient_norm"] for row in history(run) if "loss" in row]


def seen(run: Path) -> dict[str, object]:
    return json.loads((run / "environment.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    file = run / "adapter" / "adapter_model.safetensors"
    return load_file(file if file.exists() else run / "model" / "model.safetensors")


@pytest.fixture
def prepared(tmp_path, request):
    """A recipe and a run folder in which all is done but training."""
    model = request.param
    recipe = write_recipe(
        tmp_path,
        # Two rows' tokens at most go through the model at once, so that processes have unequal numbers of batches.
        train={"max_steps": 6, "eval_every_steps": 3, "micro_batch_tokens": 100, "batch_size": 5, "keep": "last", "learning_rate": 1e-3},
        model=model,
    )  # fmt: skip
    luthier(["check", recipe, "--run", tmp_path / "checked"], tmp_path / "log")
    return recipe, tmp_path


def train(recipe, tmp_path, name, *overrides, count=1, end=None):
    run = tmp_path / name
    if not run.exists():
        shutil.copytree(tmp_path / "checked", run)
    luthier(["train", recipe, *overrides, "--run", run], tmp_path / f"log-{name}", count)
    return run


@pytest.mark.parametrize("prepared", [LORA, WHOLE], ids=["lora", "whole"], indirect=True)
def test_shards_train_as_one_process_does(prepared):
    recipe, tmp_path = prepared
    one = train(recipe, tmp_path, "one")
    two = train(recipe, tmp_path, "two", "train.sharding=fsdp", count=2)
    print(seen(one), seen(two))
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert seen(two)["sharding"] == "fsdp" and seen(one)["sharding"] == "none"
    expected = weights(one)
    found = weights(two)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=2e-5)
