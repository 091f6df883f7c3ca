"""Rotary positions scaled by the recipe."""

from pathlib import Path

import pytest
import torch
from tests.fixtures.tiny_model import save_model
from transformers import AutoModelForCausalLM, GPT2Config

from luthier.errors import UserError
from luthier.models.load import load_model, load_tokenizer
from luthier.models.rope import scale
from luthier.recipe import Model, Rope

IDS = torch.arange(3, 120)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), max_position_embeddings=64)


def logits(settings: Model) -> torch.Tensor:
    model = load_model(settings, len(load_tokenizer(settings)), training=False, seed=0)
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_angles_are_those_that_transformers_computes_from_the_same_config(folder: Path, kind: str) -> None:
    given = {"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0}
    if kind == "yarn":
        given["original_max_position_embeddings"] = 64
    with torch.no_grad():
        expected = (
            AutoModelForCausalLM.from_pretrained(folder, rope_parameters=given).eval()(input_ids=IDS).logits
        )
    plain = Model(name=str(folder), precision="fp32", adapter=None)
    found = logits(plain.model_copy(update={"rope": Rope(type=kind, factor=2.0)}))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, logits(plain), atol=1e-2)


def test_what_was_saved_scaled_is_not_scaled_again(folder: Path, tmp_path: Path) -> None:
    settings = Model(name=str(folder), precision="fp32", adapter=None, rope=Rope(factor=2.0))
    load_model(settings, len(load_tokenizer(settings)), training=False, seed=0).save_pretrained(tmp_path)
    load_tokenizer(settings).hf.save_pretrained(tmp_path)
    saved = settings.model_copy(update={"name": str(tmp_path)})
    torch.testing.assert_close(logits(saved), logits(settings))
    torch.testing.assert_close(logits(saved.model_copy(update={"rope": None})), logits(settings))
    with pytest.raises(UserError, match="scaled already: yarn, factor 2"):
        logits(saved.model_copy(update={"rope": Rope(factor=4.0)}))


def test_a_model_without_rotary_positions_is_refused() -> None:
    with pytest.raises(UserError, match="gpt2 has no rotary positions"):
        scale(GPT2Config(), Rope(factor=2.0))
