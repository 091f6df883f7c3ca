"""Divergence and rounding of merged adapters, against scipy and against merging outside of the check."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from scipy import stats
from tests.fixtures import tiny_trainer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import luthier
from luthier.check.checks.merge import _kl

pytestmark = pytest.mark.filterwarnings("default")  # of other people's trainers


def test_divergence_is_that_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(5, 7, generator=generator) for _ in range(2))
    expected = np.mean(
        [stats.entropy(a, b) for a, b in zip(p.softmax(-1).numpy(), q.softmax(-1).numpy(), strict=True)]
    )
    assert _kl(p, q) == pytest.approx(expected, rel=1e-5)
    assert _kl(p, p) == 0.0


@pytest.mark.parametrize("rate", [1e-6, 3e-4])
def test_what_is_rounded_away_is_what_a_merge_loses(tmp_path: Path, rate: float) -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        tiny_trainer.model().bfloat16(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trainer = tiny_trainer.trainer(
        model, bf16=True, learning_rate=rate, lr_scheduler_type="constant", output_dir=str(tmp_path)
    )
    report = luthier.audit(trainer, only=["merge"])
    base = {n: p.detach().clone() for n, p in model.named_parameters() if "base_layer" in n}
    generator = torch.Generator().manual_seed(0)
    deltas = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # drawn as the check draws them
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * rate * 20**0.75)
    for name, module in model.named_modules():
        if f"{name}.base_layer.weight" in base:
            deltas[f"{name}.base_layer.weight"] = (
                module.lora_B.default.weight.double() @ module.lora_A.default.weight.double()
            ) * module.scaling["default"]
    model.merge_adapter()
    merged = dict(model.named_parameters())
    error = sum(float((merged[n].double() - base[n].double() - d).square().sum()) for n, d in deltas.items())
    lost = (error / sum(float(d.square().sum()) for d in deltas.values())) ** 0.5
    if lost > 0.5:
        (found,) = report.findings
        said = float(re.search(r"round away (\d+)%", found.what).group(1)) / 100  # type: ignore[union-attr]
        assert found.severity == "warning" and said == pytest.approx(lost, abs=0.01)
    else:
        assert report.findings == []
    assert (lost > 0.5) == (rate == 1e-6)


def test_merging_into_four_bits_is_measured_and_undone(tmp_path: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    folder = tiny_trainer.save_folder(tmp_path / "model", tiny_trainer.model())
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )

    def adapted() -> PeftModel:
        base = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=quantised, dtype=torch.float32, device_map={"": "cpu"}
        )
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        assert isinstance(model, PeftModel)
        return model

    model = adapted()
    rate = 3e-4
    trainer = tiny_trainer.trainer(
        model, learning_rate=rate, lr_scheduler_type="constant", output_dir=str(tmp_path / "out")
    )
    layers = {n: m for n, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    before = {n: (m.weight, m.weight.detach().clone(), m.weight.quant_state) for n, m in layers.items()}
    report = luthier.audit(trainer, only=["merge"])
    (found,) = report.findings
    assert found.severity == "warning" and "quantised base" in found.what, found
    for name, layer in layers.items():
        parameter, bits, state = before[name]
        assert layer.weight is parameter and torch.equal(layer.weight, bits)
        assert layer.weight.quant_state is state and layer.weight.bnb_quantized
    assert not any(m.merged for m in model.modules() if isinstance(m, BaseTunerLayer))
    # The same, by peft alone: how far the merged weights are from those that were trained, by the size of the update.
    other = adapted()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "lora_B" in name:  # drawn as the check draws them
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * rate * 20**0.75)
    wanted, error, size = {}, 0.0, 0.0
    for name, module in other.named_modules():
        if isinstance(module, BaseTunerLayer):
            delta = module.get_delta_weight("default").double()
            wanted[name] = dequantize_module_weight(module.get_base_layer()).double() + delta
            size += float(delta.square().sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, that weights are rounded
        other.merge_adapter()
    for name, module in other.named_modules():
        if name in wanted:
            now = dequantize_module_weight(module.get_base_layer()).double()
            error += float((now - wanted[name]).square().sum())
    assert found.measured == pytest.approx((error / size) ** 0.5, rel=0.01)
    assert found.measured > 0.5
