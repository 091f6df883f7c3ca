"""The share of weights that a step does not move, against what was measured with an optimizer."""

import pytest
import torch

from luthier.check.checks import precision


@pytest.mark.parametrize("learning_rate", [1e-6, 1e-5, 2e-5, 1e-4])
def test_share_kept_in_bf16_is_that_of_one_step_of_adam(learning_rate):
    torch.manual_seed(0)
    weight = torch.nn.Parameter((torch.randn(400, 400) * 0.02).to(torch.bfloat16))
    before = weight.detach().clone()
    share = precision._share_kept([weight], learning_rate)
    optimizer = torch.optim.AdamW([weight], lr=learning_rate, weight_decay=0.0, eps=1e-12)
    weight.grad = torch.randn(400, 400).to(torch.bfloat16)
    optimizer.step()
    assert share == pytest.approx(float((weight == before).float().mean()), abs=0.03)


def test_a_norm_of_ones_never_moves():
    ones = torch.ones(1000, dtype=torch.bfloat16)
    assert precision._share_kept([ones], 1e-4) == 1.0
    assert precision._share_kept([ones.float()], 1e-4) == 0.0
