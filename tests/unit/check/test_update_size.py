"""Shares of weights that a step changes, against figures that were measured before and against torch's own rounding."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luthier.check.checks.update_size import _counted


def share(rate: float, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter((torch.randn(200_000, generator=generator) * 0.02).to(dtype))
    before = weight.detach().clone()
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0)
    weight.grad = torch.randn(200_000, generator=generator).to(dtype)
    optimizer.step()
    (found,) = _counted([weight], [before])
    assert found.total == int((weight.grad != 0).sum())
    assert found.typical == pytest.approx(0.02 * (2 / torch.pi) ** 0.5, rel=0.02)
    return found.share


@pytest.mark.parametrize(
    ("rate", "expected"), [(1e-6, 0.02), (1e-5, 0.16), (2e-5, 0.30), (1e-4, 0.88)], ids=str
)
def test_bf16(rate: float, expected: float) -> None:
    # Figures of the catalogue of silent failures, entry 72, where sign(gradient) x rate was added.
    assert share(rate, torch.bfloat16) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("rate", [1e-6, 1e-3])
def test_fp32(rate: float) -> None:
    assert share(rate, torch.float32) == pytest.approx(1.0, abs=1e-3)


def test_weights_without_a_gradient_are_left_out() -> None:
    moved, still = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    moved.grad = torch.tensor([1.0, 0.0, -1.0, 0.0])
    before: Any = [moved.detach().clone(), still.detach().clone()]
    with torch.no_grad():
        moved += torch.tensor([0.5, 0.5, 0.0, 0.0])  # decay moves the second one, rounding leaves the third
    (found,) = _counted([moved, still], before)
    assert SimpleNamespace(changed=found.changed, total=found.total) == SimpleNamespace(changed=1, total=2)
