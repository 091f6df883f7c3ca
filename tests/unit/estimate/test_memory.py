"""Memory by formula against what torch keeps and makes in Luthier's own step."""

import pytest
from tests.fixtures.measured_training import Training, save_model

from luthier.estimate.memory import Way, activations, memory
from luthier.estimate.shape import shape_of
from luthier.models.forward import base_model
from luthier.models.memory import MARGIN
from luthier.recipe import Adapter, Model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning"),
]
PLAIN, CHECKPOINTED = Way(), Way(checkpointing=True)
CASES = [
    ("llama", {"adapter": Adapter(rank=4)}, 4, 100),
    ("llama", {"adapter": Adapter(rank=4)}, 1, 300),
    ("llama", {"adapter": Adapter(rank=4)}, 2, 1100),
    ("llama", {"adapter": Adapter(rank=4, dropout=0.1)}, 4, 100),
    ("llama", {"adapter": Adapter(rank=4, targets=["q_proj", "down_proj"])}, 4, 100),
    ("llama", {"adapter": None}, 4, 100),
    ("llama", {"adapter": None, "freeze": ["embed_tokens", r"layers\.[01]\."]}, 4, 100),
    ("qwen3", {"adapter": Adapter(rank=4)}, 4, 100),
    ("qwen3", {"adapter": None}, 4, 100),
    ("mistral", {"adapter": Adapter(rank=4)}, 2, 1100),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("family", "settings", "count", "length"), CASES, ids=str)
def test_what_is_kept_and_the_peak_are_as_measured(tmp_path, family, settings, count, length, precision):
    sizes = {"sliding_window": 500} if family == "mistral" else {}
    model = Model(name=str(save_model(tmp_path / "model", family, **sizes)), precision=precision, **settings)
    shape, training = shape_of(model, precision), Training(model, count, length)
    found = memory(
        shape, PLAIN, tokens=count * length, row_tokens=length, trained_share=(length - 1) / length
    )
    # Weights that are cast for a product are kept with it; joined adapters were made when training was set up.
    cast = found.copies if model.adapter is None else 0
    assert found.activations + cast == pytest.approx(training.kept_bytes(), rel=0.06)
    peak = found.activations + cast + found.working
    assert peak == pytest.approx(training.peak_bytes(), rel=0.2)


@pytest.mark.parametrize("settings", [{"adapter": Adapter(rank=4)}, {"adapter": None}], ids=str)
def test_checkpointing_keeps_inputs_of_blocks_and_computes_one_block_at_a_time(tmp_path, settings):
    model = Model(name=str(save_model(tmp_path / "model", num_hidden_layers=8)), precision="bf16", **settings)
    shape, training = shape_of(model, "bf16"), Training(model, 4, 100)
    base_model(training.model).gradient_checkpointing_enable({"use_reentrant": False})
    found = memory(shape, CHECKPOINTED, tokens=400, row_tokens=100)
    cast = found.copies if model.adapter is None else 0
    peak = found.activations + cast + found.working
    assert peak == pytest.approx(training.peak_bytes(), rel=0.25)
    assert found.activations < 0.3 * activations(shape, PLAIN, 400, 1.0)


def test_states_of_a_trained_weight_are_16_bytes_and_of_a_frozen_one_2():
    full = memory(shape_of(Model(name="Qwen/Qwen3-4B", adapter=None), "bf16"), PLAIN, tokens=1, row_tokens=1)
    states = full.trained_weights + full.gradients + full.optimizer_states
    assert states == 16 * 4_022_468_096 and full.frozen_weights == 0
    lora = memory(
        shape_of(Model(name="Qwen/Qwen3-4B", adapter=Adapter(rank=32)), "bf16"), PLAIN, tokens=1, row_tokens=1
    )
    assert lora.frozen_weights == 2 * 4_022_468_096
    assert lora.trained_weights + lora.gradients + lora.optimizer_states == 16 * 66_060_288


def test_sharding_divides_the_states_and_gathers_two_blocks():
    shape = shape_of(Model(name="mistralai/Mistral-7B-v0.1", adapter=None), "bf16")
    whole = memory(shape, CHECKPOINTED, tokens=512, row_tokens=512)
    split = memory(shape, Way(checkpointing=True, sharded=True), tokens=512, row_tokens=512, num_gpus=8)
    for part in ("trained_weights", "gradients", "optimizer_states"):
        assert getattr(split, part) == getattr(whole, part) / 8
    assert split.activations == whole.activations
    assert split.copies - whole.copies == 2 * 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)


def test_four_bits_keep_embedding_and_head_in_bf16():
    shape = shape_of(Model(name="codellama/CodeLlama-7b-hf"), "bf16")
    found = memory(shape, Way(four_bit=True), tokens=512, row_tokens=512).frozen_weights
    blocks = 2_147_483_648 + 4_328_521_728
    assert found == pytest.approx(blocks * 4.127 / 8 + 2 * (6_738_546_688 - blocks), rel=1e-4)


def test_logits_exist_a_slice_at_a_time():
    shape = shape_of(Model(name="Qwen/Qwen3-0.6B"), "bf16")
    short = memory(shape, PLAIN, tokens=1000, row_tokens=10, trained_share=1.0)
    assert short.working == 14 * (1 << 24), "the whole would be 151,936,000 logits"
    one = memory(shape, PLAIN, tokens=10, row_tokens=10, trained_share=0.5)
    assert one.working == 14 * 5 * 151_936


def test_what_is_planned_with_is_what_a_run_plans_with():
    found = memory(shape_of(Model(name="Qwen/Qwen3-0.6B"), "bf16"), PLAIN, tokens=1, row_tokens=1)
    weights = found.frozen_weights + found.trained_weights
    assert found.allowed(weights + 100) == pytest.approx(weights + 100 * MARGIN)
    assert found.allowed(1.0) == weights, "nothing is free"
