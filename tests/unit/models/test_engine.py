"""The fast way is taken where a try proves it, and left with a reason where it does not."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_model import random_rows

from luthier.errors import UserError
from luthier.models import engine, fused, packed
from luthier.models.forward import base_model, token_scores

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
ROWS = random_rows(4)


def adapted(family="llama"):
    base = tiny_trainer.model(family)
    targets = ["in_proj"] if family == "mamba" else "all-linear"
    return get_peft_model(base, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))


def test_the_fast_way_gives_the_model_s_own_losses():
    model = adapted().train()
    own = engine.start(model, ROWS, packing=False, fusing=False, compiling=False)
    assert own == engine.Engine(why_not_packed="switched off", plain_head=False)
    expected = token_scores(model, own.batch(ROWS)).nll_N
    fast = engine.start(model, ROWS, packing=True, fusing=True, compiling=False)
    assert fast.packed and fast.why_not_packed is None and fast.fused_adapters == 14 and not fast.plain_head
    assert fast.batch(ROWS).row_lengths == tuple(len(row.input_ids) for row in ROWS)
    assert torch.allclose(token_scores(model, fast.batch(ROWS)).nll_N, expected, atol=1e-5)
    assert model.training and base_model(model).config._attn_implementation == packed.NAME


def test_a_model_with_a_state_keeps_its_padding_and_says_why():
    found = engine.start(adapted("mamba"), ROWS, fusing=True, compiling=False)
    assert not found.packed and "keeps a state" in found.why_not_packed
    assert not found.batch(ROWS).row_lengths


def test_rows_are_padded_to_a_multiple_of_8_where_16_bit_products_run_on_a_gpu():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    for device, dtype, longest, expected in (
        (cuda, torch.bfloat16, 4096, 8), (cuda, torch.float16, None, 8), (cuda, torch.float32, 4096, 1),
        (cuda, torch.bfloat16, 4001, 1), (cpu, torch.bfloat16, 4096, 1),
    ):  # fmt: skip
        assert engine.padding_multiple(device, dtype, longest) == expected


def test_attention_that_was_asked_for_is_kept():
    model = adapted()
    base_model(model).set_attn_implementation("eager")
    found = engine.start(model, ROWS, fusing=False, compiling=False)
    assert not found.packed and found.why_not_packed == "model.attention is eager"


def test_packs_that_leak_are_found_out(monkeypatch):
    model = adapted()
    whole = packed.inputs
    monkeypatch.setattr(packed, "inputs", lambda lengths, device: whole((sum(lengths),), device))
    found = engine.start(model, ROWS, fusing=False, compiling=False)
    assert not found.packed and "nats off those in fp32" in found.why_not_packed
    assert base_model(model).config._attn_implementation == "sdpa"


def test_a_product_that_is_wrong_is_taken_back(monkeypatch, caplog):
    model, whole = adapted(), fused.lora_product

    def wrong(x, first, weight, joined, *rest):
        width = x.shape[1]  # behind it stands the adapter, which is new: its update is nothing so far
        return whole(x, first, weight, torch.cat([joined[:, :width], 3 * joined[:, width:]], 1), *rest)

    monkeypatch.setattr(fused, "lora_product", wrong)
    found = engine.start(model, ROWS, packing=False, fusing=True, compiling=False)
    assert found.fused_adapters == 0 and "not computed as one product" in caplog.text
    assert not any(p.any() for name, p in model.named_parameters() if "lora_B" in name)


def test_packing_that_is_wanted_and_cannot_be_is_a_mistake():
    with pytest.raises(UserError, match="cannot be packed: MambaForCausalLM keeps a state"):
        engine.start(adapted("mamba"), ROWS, packing=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("faster", [True, False])
def test_compiling_is_kept_where_it_pays(faster, monkeypatch):
    model = adapted()
    own = engine.start(model, ROWS, planned_tokens=0)
    assert own.compiled_layers == 0 and own.compile_speedup is None  # too short a run
    fused.unfuse(model)
    times = iter([2.0, 1.0 if faster else 2.0])
    monkeypatch.setattr(engine, "_seconds", lambda *_: next(times))
    found = engine.start(model, ROWS, planned_tokens=10**12)
    assert (found.compiled_layers, found.compile_speedup) == ((2, 2.0) if faster else (0, 1.0))
    assert found.fused_adapters == 14
    expected = token_scores(adapted(), engine.Engine().batch(ROWS)).nll_N
    assert torch.allclose(token_scores(model, found.batch(ROWS)).nll_N, expected, atol=1e-5)


def test_a_compiler_that_fails_without_a_word_is_left_out(monkeypatch, caplog):
    times = iter([2.0])  # the second one raises
    monkeypatch.setattr(engine, "_seconds", lambda *_: next(times))
    found = engine.start(adapted(), ROWS, packing=False, planned_tokens=10**12)
    assert found.compiled_layers == 0 and "layers are not compiled: StopIteration" in caplog.text
