"""The fused layers give what peft's and transformers' own give: losses and gradients."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_model import random_rows
from transformers import AutoModelForCausalLM

from luthier.encoding.batches import collate, pack
from luthier.models import fused, packed
from luthier.models.forward import base_model, token_scores

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor:UserWarning"
    ),  # torch.compile looks there
]
LAYERS = {"llama": 14, "qwen3": 14, "mistral": 14, "gpt2": 0}


def adapted(family, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(tiny_trainer.config(family)).to(dtype)
    settings = {"target_modules": "all-linear", "fan_in_fan_out": family == "gpt2", **settings}
    model = get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM", **settings))
    draw = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.05, generator=draw)
    return model


def loss_and_gradients(model, batch=lambda rows: collate(rows, 0)):
    model.zero_grad()
    loss = token_scores(model, batch(random_rows(6))).weighted_sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", LAYERS)
def test_lora_as_one_product_is_peft_s(family):
    model = adapted(family)
    loss, gradients = loss_and_gradients(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert fused.fuse_lora(model) == LAYERS[family]
    fast, faster = loss_and_gradients(model)
    assert torch.allclose(fast, loss, rtol=1e-6)
    assert gradients.keys() == faster.keys()
    assert all(torch.allclose(gradients[n], faster[n], rtol=1e-4, atol=1e-5) for n in gradients)
    with model.disable_adapter():
        bare = token_scores(model, collate(random_rows(6), 0)).weighted_sum()
    assert not torch.allclose(bare, loss)
    fused.unfuse(model)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.equal(loss_and_gradients(model)[0], loss)


@torch.no_grad()
def test_a_model_that_is_asked_has_one_product_for_as_long_as_that_takes():
    model = adapted("llama")
    batch = collate(random_rows(6), 0)
    plain = token_scores(model, batch).nll_N
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with fused.fused_lora(model):
        assert sum(hasattr(layer, "_luthier_joined") for layer in model.modules()) == LAYERS["llama"]
        assert torch.allclose(token_scores(model, batch).nll_N, plain, rtol=1e-5)
    assert not any("forward" in vars(layer) for layer in model.modules())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.equal(token_scores(model, batch).nll_N, plain)
    fused.fuse_lora(model)  # as in training, where adapters go on changing afterwards
    with fused.fused_lora(model):
        pass
    next(p for name, p in model.named_parameters() if "lora_B" in name).data.zero_()
    changed = token_scores(model, batch).nll_N
    fused.unfuse(model)
    assert not torch.allclose(changed, plain)
    assert torch.allclose(token_scores(model, batch).nll_N, changed, rtol=1e-5)


def test_an_update_below_the_output_s_rounding_is_not_lost():
    """One product in bf16 keeps what a sum of two rounded outputs loses."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 256).bfloat16(), torch.randn(128, 256).bfloat16()
    a, b = torch.randn(4, 256) / 16, torch.randn(128, 4) * 0.05
    exact = x.double() @ weight.double().t() + (x.double() @ a.double().t()) @ b.double().t()
    joined = torch.empty(128, 260, dtype=torch.bfloat16)
    joined[:, :256] = weight
    joined[:, 256:] = b
    ours, _ = fused.lora_product(x, a, b, joined, None, 1.0)
    theirs = x @ weight.t() + (x.float() @ a.t() @ b.t()).bfloat16()
    error = [float((y.double() - exact).square().mean().sqrt()) for y in (ours, theirs)]
    assert error[0] < 0.8 * error[1], error


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_adapters_that_do_more_are_left_as_they_are(settings):
    assert fused.fuse_lora(adapted("llama", **settings)) == 0


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("packed_rows", [False, True])
def test_compiled_layers_are_the_model_s_own(family, packed_rows):
    model = adapted(family)
    loss, gradients = loss_and_gradients(model)
    fused.fuse_lora(model)
    if packed_rows:
        base_model(model).config._attn_implementation = packed.NAME
    assert fused.compile_layers(model) == 2
    fast, faster = loss_and_gradients(model, pack if packed_rows else lambda rows: collate(rows, 0))
    assert torch.allclose(fast, loss, rtol=1e-5)
    assert all(torch.allclose(gradients[n], faster[n], rtol=1e-3, atol=1e-5) for n in gradients)
    fused.unfuse(model)
    base_model(model).config._attn_implementation = "sdpa"
    assert torch.equal(loss_and_gradients(model)[0], loss)
