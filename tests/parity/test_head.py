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


@pytest.fixture
def low_default():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("trained", [False, True])
def test_products_are_rounded_as_asked_and_losses_are_not(trained, low_default):
    torch.manual_seed(0)
    hidden, labels = torch.randn(9, 16, dtype=torch.float32, requires_grad=True), torch.randint(0, 100, (9,))
    g, layer = torch.rand(9), nn.Linear(16, 100, bias=False, dtype=torch.float32).requires_grad_(trained)
    (head.head_loss(hidden, layer, labels, torch.float32)[0] * g).sum().backward()
    exact, hidden.grad, layer.weight.grad = (hidden.grad, layer.weight.grad), None, None
    nll, best = head.head_loss(hidden, layer, labels, torch.bfloat16)
    (nll * g).sum().backward()
    ours, hidden.grad, layer.weight.grad = (hidden.grad, layer.weight.grad), None, None
    logits = (hidden.bfloat16() @ layer.weight.bfloat16().t()).float()
    theirs = functional.cross_entropy(logits, labels, reduction="none")
    (theirs * g).sum().backward()
    assert best is None and nll.dtype == torch.float32
    assert torch.allclose(nll, theirs, rtol=1e-6, atol=1e-6)
    for found, expected, other in zip(ours, (hidden.grad, layer.weight.grad), exact, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            far = float((found - other).norm()) / float(expected.norm())
            assert float((found - expected).norm()) < 0.01 * float(expected.norm()) and far > 1e-4
    with torch.no_grad():
        asked, best = head.head_loss(hidden, layer, labels, torch.bfloat16)
    assert torch.equal(asked, nll) and asked.grad_fn is None and torch.equal(best, logits.argmax(-1))


def test_slices_are_summed_in_32_bits_and_a_frozen_head_is_read_once(monkeypatch):
    torch.manual_seed(0)
    hidden, labels = torch.randn(300, 16, requires_grad=True), torch.randint(0, 50, (300,))
    calls, whole = [], {}
    nll = head._nll
    monkeypatch.setattr(head, "_nll", lambda *both: calls.append(len(both[1])) or nll(*both))
    for most_logits in (1 << 24, 50):
        monkeypatch.setattr(head, "MOST_LOGITS", most_logits)
        layer = nn.Linear(16, 50, bias=False, dtype=torch.bfloat16)
        layer.weight.data = torch.linspace(-1, 1, 800).reshape(50, 16).bfloat16()
        head.head_loss(hidden, layer, labels, torch.float32)[0].sum().backward()
        whole[most_logits] = layer.weight.grad
    assert torch.allclose(whole[50].float(), whole[1 << 24].float(), rtol=2**-7, atol=1e-4)
    calls.clear()
    loss = head.head_loss(hidden, layer.requires_grad_(False), labels, torch.float32)[0].sum()
    loss.backward()
    assert calls == [1] * 300, "nothing of the logits is computed again"


@pytest.mark.parametrize("trained", [False, True])
def test_all_is_made_on_the_device_of_the_hidden_states(trained):
    with torch.device("meta"):
        hidden, labels = torch.empty(5, 4, requires_grad=True), torch.empty(5, dtype=torch.int64)
        layer = nn.Linear(4, 7, bias=False).requires_grad_(trained)
    loss = head.head_loss(hidden, layer, labels, torch.float32)[0]
    loss.sum().backward()
    with torch.no_grad():
        found = head.head_loss(hidden, layer, labels, torch.float32)
    assert loss.is_meta and hidden.grad.is_meta and all(one.is_meta for one in found)


def test_no_slice_has_more_logits_than_64_mib_hold():
    assert 4 * head.MOST_LOGITS == 64 * 2**20
    assert head._slices(5, 1 << 23) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert head._slices(2, 1 << 25) == [slice(0, 1), slice(1, 2)]


def test_heads_that_do_more_are_told_apart():
    assert head.is_linear(nn.Linear(2, 3, bias=False))
    assert not head.is_linear(nn.Linear(2, 3))
    assert not head.is_linear(None)
    assert not head.is_linear(type("Capped", (nn.Linear,), {})(2, 3, bias=False))
