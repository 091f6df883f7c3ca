"""Head and loss together give torch's cross-entropy, to its gradients, whatever the size of a slice."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from luthier.models import head


@pytest.mark.parametrize("most_logits", [1, 100 * 7, 1 << 24])
@pytest.mark.parametrize("trained", [False, True])
def test_loss_and_gradients_are_torch_s(most_logits, trained, monkeypatch):
    monkeypatch.setattr(head, "MOST_LOGITS", most_logits)
    torch.manual_seed(0)
    hidden, labels, g = torch.randn(23, 16, requires_grad=True), torch.randint(0, 100, (23,)), torch.rand(23)
    layer = nn.Linear(16, 100, bias=False).requires_grad_(trained)
    nll, _ = head.head_loss(hidden, layer, labels, torch.float32)
    with torch.no_grad():
        assert torch.equal(head.head_loss(hidden, layer, labels, torch.float32)[1], layer(hidden).argmax(-1))
    (nll * g).sum().backward()
    ours = hidden.grad.clone(), layer.weight.grad
    hidden.grad = layer.weight.grad = None
    logits = layer(hidden)
    theirs = functional.cross_entropy(logits, labels, reduction="none")
    (theirs * g).sum().backward()
    assert torch.allclose(nll, theirs, rtol=1e-6, atol=1e-6)
    assert torch.allclose(ours[0], hidden.grad, rtol=1e-5, atol=1e-7)
    assert (ours[1] is None) == (layer.weight.grad is None) == (not trained)
    if trained:
        assert torch.allclose(ours[1], layer.weight.grad, rtol=1e-5, atol=1e-7)


def test_without_gradients_nothing_is_kept():
    layer = nn.Linear(16, 100, bias=False)
    with torch.no_grad():
        nll, _ = head.head_loss(torch.randn(4, 16), layer, torch.tensor([1, 2, 3, 4]), torch.float32)
    assert nll.grad_fn is None


def test_heads_that_do_more_are_told_apart():
    assert head.is_linear(nn.Linear(2, 3, bias=False))
    assert not head.is_linear(nn.Linear(2, 3))
    assert not head.is_linear(None)
