"""A finished adapter or model loads where luthier has never been, with equal logits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.fixtures.processes import luthier
from tests.fixtures.tiny_run import write_recipe

from luthier import recipe_file
from luthier.models.load import load_tokenizer, load_trained
from luthier.run_folder import RunFolder

PROBE = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, folders = sys.argv[1], sys.argv[2:]
found = []
for folder in folders:
    if folder.endswith("adapter"):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("def add(a, b):", add_special_tokens=False)["input_ids"]])
    found.append(model.eval()(input_ids=ids).logits.flatten().tolist())
assert "luthier" not in sys.modules
print(json.dumps(found))
"""


def _logits(base: Path, *folders: Path) -> list[list[float]]:
    """Of models and adapters in folders, by a process without luthier."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, base, *folders],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _luthiers_logits(recipe: Path, run: Path) -> list[float]:
    settings = recipe_file.load(recipe).model
    tokenizer = load_tokenizer(settings)
    model = load_trained(settings, RunFolder(run), len(tokenizer)).eval()
    ids = torch.tensor([tokenizer.encode("def add(a, b):", first=True)])
    return model(input_ids=ids).logits.flatten().tolist()


@pytest.mark.slow
def test_adapter_and_merged_model_load_without_luthier(tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, train={"max_steps": 6}), tmp_path / "run"
    luthier(["train", recipe, "--run", run], tmp_path / "log")
    luthier(["merge", run, tmp_path / "merged"], tmp_path / "log")
    ours = _luthiers_logits(recipe, run)
    model = tmp_path / "model"
    adapter, merged, base = _logits(model, run / "adapter", tmp_path / "merged", model)
    assert adapter == pytest.approx(ours, abs=1e-5)
    assert merged == pytest.approx(ours, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(ours, base, strict=True)) > 1e-2  # the training is in there


@pytest.mark.slow
def test_a_fully_trained_model_loads_without_luthier(tmp_path: Path) -> None:
    recipe, run = (
        write_recipe(tmp_path, model={"adapter": None}, train={"max_steps": 6, "learning_rate": 1e-3}),
        tmp_path / "run",
    )
    luthier(["train", recipe, "--run", run], tmp_path / "log")
    [plain] = _logits(tmp_path / "model", run / "model")
    assert plain == pytest.approx(_luthiers_logits(recipe, run), abs=1e-5)
