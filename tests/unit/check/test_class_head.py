"""The law of a fresh head, and agreement beyond chance."""

import math

import pytest
import torch
from tests.fixtures import tiny_trainer
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForSequenceClassification

import luthier
from luthier.check.checks import class_head


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0, 2.5])
def test_cross_entropy_of_logits_that_know_nothing(spread):
    torch.manual_seed(0)
    logits, labels = spread * torch.randn(2000, 280), torch.randint(280, (2000,))
    law = math.log(280) + spread**2 / 2
    assert float(functional.cross_entropy(logits, labels)) == pytest.approx(law, rel=0.03)
    assert float((logits.logsumexp(-1) - logits.mean(-1)).mean()) == pytest.approx(law, rel=0.03)


# Measured elsewhere on a toy Qwen3 with 280 classes: gains of the last norm and the first loss.
@pytest.mark.parametrize(("gain", "loss"), [(1, 5.68), (4, 6.11), (8, 7.40)])
def test_gains_of_the_last_norm_that_are_no_finding(gain, loss):
    assert head_of(gain) == []


@pytest.mark.parametrize("gain", [32, 64])
def test_gains_of_the_last_norm_that_are(gain):
    (finding,) = head_of(gain)
    assert finding.severity == "warning" and "hidden states are too large" in finding.what
    assert finding.measured > 2 * math.log(280)


def test_a_loss_that_is_not_finite_is_no_matter_of_the_heads_size():
    (finding,) = head_of(math.inf)
    assert finding.severity == "error" and "not finite" in finding.what and "std=" not in finding.fix


def head_of(gain):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen3Config(
        vocab_size=376, num_key_value_heads=2, head_dim=16, num_labels=280, pad_token_id=2, **sizes
    )
    made = Qwen3ForSequenceClassification(config)
    with torch.no_grad():
        made.model.norm.weight.fill_(float(gain))
    trainer = tiny_trainer.class_trainer(made, num_labels=280, train=tiny_trainer.class_items(280, 280))
    return luthier.audit(trainer, only=["class-head"]).findings


def test_kappa_of_a_known_table():
    # Fifty applications for a grant, judged by two people: the usual worked example, 0.4.
    assert class_head._kappa(torch.tensor([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)
    assert class_head._kappa(torch.eye(3)) == 1
    assert class_head._kappa(torch.full((4, 4), 2.0)) == pytest.approx(0, abs=1e-12)
    assert class_head._kappa(torch.tensor([[9.0, 0.0], [0.0, 0.0]])) == 0


def test_renumbering_is_not_found_in_chance():
    generator = torch.Generator().manual_seed(0)
    from scipy.optimize import linear_sum_assignment

    worst = 0.0
    for _ in range(500):
        for classes in (2, 5, 8):
            table = torch.zeros(classes, classes, dtype=torch.float64)
            for said, label in torch.randint(classes, (32, 2), generator=generator).tolist():
                table[said, label] += 1
            _, meant = linear_sum_assignment(table.numpy(), maximize=True)
            worst = max(worst, class_head._kappa(table[:, torch.as_tensor(meant)]))
    assert worst < class_head.LEAST_KAPPA
