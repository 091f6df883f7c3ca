"""Parameters are counted exactly, without weights and without network."""

import pytest
from tests.fixtures import measured_training, tiny_trainer

from luthier.errors import UserError
from luthier.estimate.shape import config_of, published, shape_of
from luthier.models.coverage import coverage
from luthier.models.load import load_model
from luthier.recipe import Adapter, Model

# Parameters as the models' pages on the Hub state them (safetensors metadata).
STATED = {
    "codellama/CodeLlama-7b-hf": 6_738_546_688,
    "codellama/CodeLlama-13b-hf": 13_016_028_160,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "Qwen/Qwen2.5-Coder-7B": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
}


def test_every_published_config_is_tested():
    assert set(published()) == set(STATED)


@pytest.mark.parametrize(("name", "stated"), STATED.items(), ids=lambda value: str(value).rpartition("/")[2])
def test_parameters_are_those_that_are_stated(name, stated):
    shape = shape_of(Model(name=name, adapter=None), "bf16")
    assert shape.total == stated == shape.num_trained
    assert shape.source == f"https://huggingface.co/{name}/blob/main/config.json"


@pytest.mark.parametrize(
    ("name", "rank", "widths"),
    [
        # (inputs + outputs) of q, k, v, o, gate, up and down, by hand
        ("codellama/CodeLlama-7b-hf", 16, 32 * (4 * 8192 + 3 * 15104)),
        ("Qwen/Qwen3-4B", 32, 36 * (2 * 6656 + 2 * 3584 + 3 * 12288)),
    ],
)
def test_adapters_are_counted(name, rank, widths):
    shape = shape_of(Model(name=name, adapter=Adapter(rank=rank)), "bf16")
    assert shape.trained == {"adapter": rank * widths}
    assert shape.total == STATED[name], "the adapter is no part of the model"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {"adapter": None},
        {"adapter": Adapter(rank=4)},
        {"adapter": Adapter(rank=3, targets=["q_proj", "down_proj"])},
        {"adapter": None, "freeze": ["embed_tokens", r"layers\.[01]\."]},
        {"adapter": None, "new_tokens": ["<|new|>", "<|other|>"]},
        {"adapter": Adapter(rank=4), "new_tokens": ["<|new|>", "<|other|>"]},
    ],
    ids=str,
)
def test_what_is_counted_is_what_is_loaded(tmp_path, settings):
    folder = measured_training.save_model(tmp_path / "model", "qwen3", tie_word_embeddings=True)
    model = Model(name=str(folder), precision="fp32", **settings)
    vocabulary = measured_training.SIZES["vocab_size"] + len(model.new_tokens)
    loaded = load_model(model, vocabulary, training=True, seed=0)
    shape = shape_of(model, "fp32")
    assert sum(shape.parameters.values()) == sum(p.numel() for p in loaded.parameters())
    assert shape.num_trained == coverage(loaded)[-1].trained


def test_of_frozen_blocks_the_first_trained_one_is_known(tmp_path):
    folder = measured_training.save_model(tmp_path / "model")
    frozen = Model(name=str(folder), adapter=None, freeze=["embed_tokens", r"layers\.[01]\."])
    assert shape_of(frozen, "bf16").first_trained == 2
    assert shape_of(Model(name=str(folder), adapter=None), "bf16").first_trained == 0
    assert shape_of(Model(name=str(folder)), "bf16").first_trained == 0


def test_a_config_alone_is_enough(tmp_path):
    tiny_trainer.config("qwen3").save_pretrained(tmp_path)
    config, source = config_of(Model(name=str(tmp_path)))
    assert config.model_type == "qwen3" and source == str(tmp_path)


def test_a_model_out_of_reach_is_a_mistake_that_names_those_at_hand(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="config cannot be read") as caught:
        config_of(Model(name="nobody/no-such-model"))
    assert "codellama/CodeLlama-7b-hf" in caught.value.fix


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_blocks_of_another_kind_are_refused(tmp_path, family):
    tiny_trainer.config(family).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not made of LLaMA-style blocks"):
        shape_of(Model(name=str(tmp_path), adapter=None), "fp32")
