"""Whole runs with other adapters than the usual: in 4 bits, begun from weights, going on from earlier ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.fixtures.tiny_model import save_model
from tests.fixtures.tiny_run import write_recipe
from transformers import AutoModelForCausalLM

from luthier import pipeline
from luthier.errors import UserError
from luthier.models.merge import merge
from luthier.run_folder import RunFolder, read_json, read_jsonl

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
SHORT = {"max_steps": 6, "eval_every_steps": 3, "checkpoint_every_steps": 2}


class Cut(Exception):
    """Stands for a process that ends."""


def _cut_after(steps: int) -> Any:
    def progress(label: str, done: int, total: int | None) -> None:
        if "loss" in label and done == steps:
            raise Cut

    return progress


def _adapter(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def _nats(run: RunFolder, which: str) -> dict[str, float]:
    return {row["id"]: row[which]["loss_nats"] for row in read_jsonl(run.predictions)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        ({"quantisation": "nf4", "adapter": {"rank": 4}}, "adamw8bit"),
        ({"quantisation": "nf4", "adapter": {"rank": 4, "init": "pissa"}}, "adamw"),
        ({"adapter": {"rank": 4, "init": "pissa"}}, "adamw"),
        ({"adapter": {"rank": 4, "variant": "dora", "rank_pattern": {"v_proj": 2}}}, "adamw"),
    ],
    ids=str,
)
def test_a_run_is_checked_cut_off_resumed_evaluated_and_merged(
    tmp_path: Path, model: dict[str, Any], optimizer: str
) -> None:
    pytest.importorskip("bitsandbytes")
    save_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    recipe = write_recipe(tmp_path, model=model, train={**SHORT, "optimizer": optimizer})
    whole = pipeline.run(recipe, folder=tmp_path / "whole")
    with pytest.raises(Cut):
        pipeline.train(recipe, folder=tmp_path / "cut", progress=_cut_after(5))
    cut = pipeline.train(recipe, folder=tmp_path / "cut")
    assert "resuming from" in cut.log.read_text() and "step-4" in cut.log.read_text()
    one, other = _adapter(whole), _adapter(cut)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    losses = [row["loss"] for row in read_jsonl(whole.history) if "loss" in row]
    assert losses == [row["loss"] for row in read_jsonl(cut.history) if "loss" in row]
    assert losses[-1] < losses[0]
    settings = pipeline.read(recipe).model
    proof = merge(settings, whole, tmp_path / "merged")
    assert proof.kl_nats < 1e-6 < proof.adapter_kl_nats
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float32
    base, tuned = _nats(whole, "base"), _nats(whole, "tuned")
    assert base != tuned and read_json(whole.scores)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["continue", "stack", "merge"])
def test_a_run_goes_on_from_another_and_is_compared_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    first = pipeline.run(write_recipe(tmp_path, train=SHORT), folder=tmp_path / "first")
    changes = {"start_from": str(first.path), "start_mode": mode}
    recipe = write_recipe(tmp_path, model=changes, train=SHORT)
    second = pipeline.run(recipe, folder=tmp_path / "second")
    findings = read_json(second.findings)
    assert findings["ok"] and "adapter-targets" in findings["passed"]
    before = read_jsonl(first.history)[-1]["eval"]["loss"]
    assert read_jsonl(second.history)[0]["eval"]["loss"] == pytest.approx(before, rel=1e-4)  # step 0
    # "Base" is what training started from: the first run's result, not the model that it started from.
    base, start, older = _nats(second, "base"), _nats(first, "tuned"), _nats(first, "base")
    assert base == pytest.approx(start, rel=1e-3) and base != pytest.approx(older, rel=1e-3)
    assert _nats(second, "tuned") != pytest.approx(base, rel=1e-3)
    proof = merge(pipeline.read(recipe).model, second, tmp_path / "merged")
    assert proof.kl_nats < 1e-6 < proof.adapter_kl_nats
    # An earlier run that was trained anew is another start.
    adapter = first.adapter / "adapter_config.json"
    adapter.write_text(json.dumps(json.loads(adapter.read_text()) | {"lora_dropout": 0.5}))
    with pytest.raises(UserError, match="other settings or data"):
        pipeline.train(recipe, folder=tmp_path / "second")


def test_an_optimizer_that_cannot_run_here_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = write_recipe(tmp_path, train={"optimizer": "paged_adamw8bit"})
    with pytest.raises(UserError, match="no such GPU"):
        pipeline.check(recipe, folder=tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()
