"""A finished adapter or model loads where luthier has never been, with equal logits."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from tests.fixtures.tiny_run import write_recipe

PROBE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
kind, base, folder = sys.argv[1:4]
if kind == "adapter":
    from peft import PeftModel
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
else:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
assert "luthier" not in sys.modules
ids = torch.tensor([tokenizer("def add(a, b):", add_special_tokens=False)["input_ids"]])
print(json.dumps(model.eval()(input_ids=ids).logits[0].tolist()))
"""


def _run(*command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _logits(kind: str, base: Path, folder: Path) -> list[list[float]]:
    return json.loads(_run("-c", PROBE, kind, str(base), str(folder)).splitlines()[-1])


def _luthiers_logits(recipe: Path, run: Path) -> list[list[float]]:
    code = f"""
import json, torch
from luthier import recipe_file
from luthier.models.load import load_tokenizer, load_trained
from luthier.run_folder import RunFolder
recipe = recipe_file.load({str(recipe)!r})
tokenizer = load_tokenizer(recipe.model)
model = load_trained(recipe.model, RunFolder({str(run)!r}), len(tokenizer)).eval()
ids = torch.tensor([tokenizer.encode("def add(a, b):", first=True)])
print(json.dumps(model(input_ids=ids).logits[0].tolist()))
"""
    return json.loads(_run("-c", code).splitlines()[-1])


@pytest.mark.slow
def test_adapter_and_merged_model_load_without_luthier(tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, train={"max_steps": 6}), tmp_path / "run"
    _run("-m", "luthier", "train", str(recipe), "--run", str(run))
    ours = _luthiers_logits(recipe, run)
    adapter = _logits("adapter", tmp_path / "model", run / "adapter")
    base = _logits("model", tmp_path / "model", tmp_path / "model")
    _run("-m", "luthier", "merge", str(run), str(tmp_path / "merged"))
    merged = _logits("model", tmp_path / "model", tmp_path / "merged")
    flat = [list(chain.from_iterable(rows)) for rows in (ours, adapter, merged, base)]
    assert flat[1] == pytest.approx(flat[0], abs=1e-5)
    assert flat[2] == pytest.approx(flat[0], abs=1e-4)
    assert max(abs(a - b) for a, b in zip(flat[0], flat[3], strict=True)) > 1e-2  # the training is in there


@pytest.mark.slow
def test_a_fully_trained_model_loads_without_luthier(tmp_path: Path) -> None:
    recipe, run = (
        write_recipe(tmp_path, model={"adapter": None}, train={"max_steps": 6, "learning_rate": 1e-3}),
        tmp_path / "run",
    )
    _run("-m", "luthier", "train", str(recipe), "--run", str(run))
    ours, plain = _luthiers_logits(recipe, run), _logits("model", tmp_path / "model", run / "model")
    assert list(chain.from_iterable(plain)) == pytest.approx(list(chain.from_iterable(ours)), abs=1e-5)
