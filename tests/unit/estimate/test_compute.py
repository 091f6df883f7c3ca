"""Operations by formula against those that torch counts in Luthier's own step, and in a whole 7B model without weights."""

from dataclasses import replace

import pytest
import torch
from tests.fixtures.measured_training import Training, save_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from luthier.estimate.compute import flops
from luthier.estimate.shape import config_of, shape_of
from luthier.models.packed import tiles
from luthier.recipe import Adapter, Model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
ROWS, LENGTH = 4, 100
SHARE = (LENGTH - 1) / LENGTH


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"adapter": None}),
        ("llama", {"adapter": Adapter(rank=8)}),
        ("llama", {"adapter": Adapter(rank=8, dropout=0.1)}),
        ("llama", {"adapter": Adapter(rank=8, targets=["q_proj", "v_proj"])}),
        ("llama", {"adapter": None, "freeze": ["embed_tokens", r"layers\.[01]\."]}),
        ("llama", {"adapter": None, "freeze": ["lm_head"]}),
        ("qwen3", {"adapter": Adapter(rank=8)}),
    ],
    ids=str,
)
def test_operations_of_a_step_are_those_that_torch_counts(tmp_path, family, settings, precision):
    model = Model(
        name=str(save_model(tmp_path / "model", family)), precision=precision, attention="eager", **settings
    )
    training = Training(model, ROWS, LENGTH, fast=False)  # torch does not look into operations of our own
    shape = shape_of(model, precision)
    found, tokens = flops(shape, 0), ROWS * LENGTH
    pairs = 4 * shape.attention_width * LENGTH  # eager attention: all pairs, and twice as much backwards
    passed = len(shape.layers) - shape.first_trained
    forward, both = pairs * len(shape.layers), pairs * (len(shape.layers) + 2 * passed)
    own = found.forward + 2 * shape.hidden * shape.vocabulary * SHARE + forward
    assert own * tokens == pytest.approx(training.flops(backward=False), rel=0.01)
    assert (found.training(SHARE) + both) * tokens == pytest.approx(training.flops(), rel=0.03)


def test_a_step_of_lora_costs_two_thirds_of_full_fine_tuning():
    full = flops(shape_of(Model(name="Qwen/Qwen3-4B", adapter=None), "bf16"), 0.0)
    lora = flops(shape_of(Model(name="Qwen/Qwen3-4B", adapter=Adapter(rank=1)), "bf16"), 0.0)
    assert full.forward + full.backward == pytest.approx(3 * full.forward, rel=1e-6)
    assert lora.forward + lora.backward == pytest.approx(2 * full.forward, rel=0.01)


def test_the_forward_pass_of_a_7b_model_without_weights():
    settings = Model(name="codellama/CodeLlama-7b-hf", adapter=None)
    config, _ = config_of(settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        ids, positions = torch.zeros(1, 512, dtype=torch.int64), torch.zeros(1, 512, dtype=torch.int64)
        mask = torch.zeros(1, 1, 512, 512)  # handed on as it is; to make one, values would be looked at
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
    shape = shape_of(settings, "bf16")
    rest = 4 * 4096 * 512 * 32 + 2 * shape.hidden * shape.vocabulary  # attention and head
    assert (flops(shape, 0).forward + rest) * 512 == pytest.approx(counter.get_total_flops(), rel=0.001)


@pytest.mark.parametrize(
    ("length", "window", "keys"), [(1, None, 1), (3, None, 2), (4, 2, 1.75), (16_384, None, 8192.5)]
)
def test_a_token_sees_what_is_before_it(length, window, keys):
    shape = replace(shape_of(Model(name="codellama/CodeLlama-7b-hf"), "bf16"), window=window)
    more = flops(shape, length).forward - flops(shape, 0).forward
    assert more == pytest.approx(4 * 32 * 4096 * keys, rel=1e-6)


@pytest.mark.parametrize(("length", "window"), [(16_384, None), (16_384, 4096)])
def test_what_a_token_sees_is_what_the_tiles_let_it_see(length, window):
    shape = replace(shape_of(Model(name="codellama/CodeLlama-7b-hf"), "bf16"), window=window)
    pairs = 0
    for tile in tiles((length,), window, torch.device("cpu")):
        queries = torch.arange(tile.queries.stop - tile.queries.start) + tile.offset
        pairs += int((queries - tile.first_Q + 1).sum())
    seen = (flops(shape, length).forward - flops(shape, 0).forward) / (4 * 32 * 4096)
    assert pairs == pytest.approx(seen * length)


def test_checkpointing_computes_the_blocks_once_more():
    found = flops(shape_of(Model(name="Qwen/Qwen3-0.6B"), "bf16"), 100)
    more = found.training(0.5, checkpointing=True) - found.training(0.5)
    assert more == found.forward
