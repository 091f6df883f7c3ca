"""Merging: the same logits, or nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.tiny_model import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.errors import Refused, UserError
from luthier.models.load import load_model, load_tokenizer, load_trained, save_trained
from luthier.models.merge import merge
from luthier.recipe import Adapter, Model
from luthier.run_folder import RunFolder


def _run(folder: Path, *, tied: bool, new_tokens: list[str]) -> tuple[Model, RunFolder]:
    """A run whose adapter changes the model a lot."""
    model_folder = save_model(folder / "model", tie_word_embeddings=tied)
    settings = Model(name=str(model_folder), precision="bf16", adapter=Adapter(rank=4), new_tokens=new_tokens)
    tokenizer, run = load_tokenizer(settings), RunFolder(folder / "run")
    run.create()
    model = load_model(settings, len(tokenizer), training=True, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    save_trained(model, tokenizer, run, settings)
    return settings, run


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("new_tokens", [[], ["<|open|>"]])
def test_the_merged_folder_says_the_same_alone(tmp_path: Path, tied: bool, new_tokens: list[str]) -> None:
    settings, run = _run(tmp_path, tied=tied, new_tokens=new_tokens)
    proof = merge(settings, run, tmp_path / "out")
    assert proof.max_difference < 1e-4 and proof.kl_nats < 1e-8 and proof.adapter_kl_nats > 0.01
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.dtype == torch.float32
    ids = torch.tensor([tokenizer("import os" + "".join(new_tokens))["input_ids"]])
    exact = settings.model_copy(update={"precision": "fp32"})
    adapted = load_trained(exact, run, len(tokenizer))
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-4)


def test_a_merge_that_changes_the_model_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, run = _run(tmp_path, tied=False, new_tokens=[])
    from peft.tuners.lora import LoraModel

    # The defect to catch: merging in bf16, which rounds a small update away.
    usual = LoraModel.merge_and_unload
    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self, **how: usual(self.bfloat16(), **how))
    with pytest.raises(Refused, match="differs from the adapter"):
        merge(settings, run, tmp_path / "out")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model", "run"]


def test_nothing_to_merge_and_a_folder_that_exists(tmp_path: Path) -> None:
    settings, run = _run(tmp_path, tied=True, new_tokens=[])
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        merge(settings, run, tmp_path / "out")
    run.adapter.rename(run.model)
    with pytest.raises(UserError, match="no adapter to merge") as error:
        merge(settings, run, tmp_path / "new")
    assert "as it is" in error.value.fix
