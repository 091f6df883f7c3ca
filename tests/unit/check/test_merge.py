"""Divergence and rounding of merged adapters, against scipy and against merging outside of the check."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from tests.fixtures import tiny_trainer

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
