"""Which parameters were drawn at random, against what transformers says when it loads."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from scipy.stats import kurtosis
from tests.fixtures import tiny_trainer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from luthier.check import origin
from luthier.check.context import shown


def rename(folder, change):
    path = folder / "model.safetensors"
    weights = {change(name): value for name, value in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_unloaded_parameters_are_those_that_transformers_misses(tmp_path, family):
    tiny_trainer.save_folder(tmp_path, tiny_trainer.model(family))
    renamed = ("layers.1.", "blocks.1.") if family == "llama" else ("h.1.", "blocks.1.")
    rename(tmp_path, lambda name: name.replace(*renamed))
    made, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    lacking, unfit = origin.unloaded(made)
    # All that transformers drew anew, but for matrices of few numbers, whose shape cannot be told.
    sizes = {name: p.numel() for name, p in made.named_parameters() if p.ndim > 1}
    small = {name for name, size in sizes.items() if size < 1000}
    assert set(lacking) == set(info["missing_keys"]) - small
    prefix = f"{made.base_model_prefix}."
    assert {name.removeprefix(prefix) for name in info["unexpected_keys"]} <= set(unfit)


def test_nothing_is_unloaded_in_a_whole_model(tmp_path):
    tiny_trainer.save_folder(tmp_path, tiny_trainer.model("qwen3", tie_word_embeddings=True))
    made = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert origin.unloaded(made) == ([], [])
    assert origin.unloaded(tiny_trainer.model()) == ([], [])  # it names no folder


def test_tied_weights_are_loaded_by_one_of_their_names(tmp_path):
    """Also where they are random on purpose, and look as if they had been drawn by mistake."""
    config = tiny_trainer.config("llama", tie_word_embeddings=True)
    tiny_trainer.save_folder(tmp_path, AutoModelForCausalLM.from_config(config))
    assert origin.unloaded(AutoModelForCausalLM.from_pretrained(tmp_path)) == ([], [])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_an_adapter_is_no_part_of_the_files(tmp_path):
    tiny_trainer.save_folder(tmp_path)
    made = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert origin.unloaded(get_peft_model(made, LoraConfig(r=4, target_modules="all-linear"))) == ([], [])


def test_a_new_head_is_all_that_a_classifier_lacks(tmp_path):
    tiny_trainer.save_folder(tmp_path, tiny_trainer.model("llama"))
    made = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=40)
    assert origin.unloaded(made) == (["score.weight"], ["lm_head.weight"])


@pytest.mark.parametrize("shape", [(40, 40), (2000, 500)])
def test_drawn_numbers_are_told_from_trained_ones(shape):
    torch.manual_seed(0)
    normal = torch.randn(shape) * 0.02
    uniform = torch.rand(shape) - 0.5
    heavy = torch.distributions.StudentT(4.0).sample(shape)
    assert abs(kurtosis(normal.flatten())) < 0.3 < 1 < kurtosis(heavy.flatten())
    assert origin.looks_fresh(normal) and origin.looks_fresh(uniform)
    assert not origin.looks_fresh(heavy)
    assert not origin.looks_fresh(normal + 0.01)


def test_few_numbers_and_vectors():
    assert origin.looks_fresh(torch.ones(64)) and origin.looks_fresh(torch.zeros(8))
    assert not origin.looks_fresh(torch.randn(64))  # of a norm: no shape can be told
    assert not origin.looks_fresh(torch.randn(10, 10))
    assert not origin.looks_fresh(torch.randint(0, 9, (50, 50)))
    assert not origin.looks_fresh(torch.empty(50, 50, device="meta"))


def test_drawn_matrices_are_hardly_ever_taken_for_trained():
    generator = torch.Generator().manual_seed(0)
    assert all(origin.looks_fresh(torch.randn(64, 64, generator=generator)) for _ in range(300))


def test_names_without_what_peft_adds():
    names = {
        "base_model.model.model.layers.0.q_proj.base_layer.weight": "model.layers.0.q_proj.weight",
        "base_model.model.score.modules_to_save.default.weight": "score.weight",
        "base_model.model.score.original_module.weight": "score.weight",
        "base_model.model.model.embed_tokens.token_adapter.base_layer.weight": "model.embed_tokens.weight",
        "transformer.h.0.attn.c_attn.weight": "transformer.h.0.attn.c_attn.weight",
    }
    assert {name: origin.plain_name(name) for name in names} == names
    assert origin.is_added("model.q_proj.lora_A.default.weight")
    assert not origin.is_added("model.q_proj.base_layer.weight")
    assert shown(list("abcde")) == "a, b, c and 2 more" and shown(["a"]) == "a"
