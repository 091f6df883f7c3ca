"""State-space models go through a whole run: checks, training in full and with LoRA, scores and text of the result."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_run import write_recipe

from luthier import pipeline
from luthier.models.load import load_tokenizer, load_trained

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

FULL: dict[str, Any] = {"adapter": None}
LORA: dict[str, Any] = {"adapter": {"rank": 4}}


@pytest.mark.parametrize("way", ["full", "lora"])
@pytest.mark.parametrize("family", ["bigs", "mamba", "mamba2"])
def test_a_run_of_a_state_space_model(family: str, way: str, tmp_path: Path) -> None:
    tiny_trainer.save_folder(tmp_path / "model", tiny_trainer.model(family))
    recipe = pipeline.read(
        write_recipe(
            tmp_path,
            model=FULL if way == "full" else LORA,
            train={"max_steps": 6, "learning_rate": 2e-3 if way == "full" else 1e-2},
        )
    )
    run = pipeline.run(recipe, folder=tmp_path / "run")
    findings = json.loads(run.findings.read_text())
    assert [f["check"] for f in findings["findings"] if f["severity"] != "note"] in ([], ["initial-loss"])
    # What a state could get wrong is looked into, and what it has not is skipped with that reason.
    looked_into = {
        "cache",
        "causality",
        "padding-invariance",
        "gradients",
        "overfit-batch",
        "save-reload",
        "resume",
    }
    assert looked_into <= set(findings["passed"])
    skipped = {entry["check"]: entry["why"] for entry in findings["skipped"]}
    assert "has none" in skipped["attention"] or "no attention" in skipped["attention"]
    assert "keeps a state" in skipped["packing"]
    engine = json.loads(run.environment.read_text())["engine"]
    assert not engine["packed"] and "keeps a state" in engine["why_not_packed"]
    history = [json.loads(line) for line in run.history.read_text().splitlines()]
    assert history[-1]["eval"]["loss"] < history[0]["eval"]["loss"]

    predictions = [json.loads(line) for line in run.predictions.read_text().splitlines()]
    tokenizer = load_tokenizer(recipe.model)
    model = load_trained(recipe.model, run, len(tokenizer)).eval()
    compared = 0
    for prediction in predictions[:6]:  # written with a cache, in batches: as by one forward pass a token
        ids, written = tokenizer.encode(prediction["prompt"], first=True), []
        stop = recipe.evaluate.max_new_tokens
        while len(written) < stop and "\n" not in tokenizer.decode(written)[1:]:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids + written]), use_cache=False).logits[0, -1]
            if int(logits.argmax()) in tokenizer.stop_ids:
                break
            written.append(int(logits.argmax()))
        said, output = tokenizer.decode(written), prediction["tuned"]["output"]
        shorter = min(len(said), len(output))
        assert said[:shorter] == output[:shorter]
        compared += shorter
    assert compared >= 10
