"""AdamW in its forms, against torch's plain one."""

from typing import Any

import pytest
import torch
from tests.fixtures.tiny_model import make_model

from luthier.errors import UserError
from luthier.recipe import Train
from luthier.run_folder import RunFolder
from luthier.train import checkpoint
from luthier.train.checkpoint import Progress
from luthier.train.optimizer import adamw, refuse_unavailable

IDS = torch.tensor([[5, 60, 7, 200, 31, 99, 4, 17, 250, 8, 61, 12]])


def _settings(name: Any) -> Train:
    return Train(optimizer=name, learning_rate=3e-3, weight_decay=0.1, betas=(0.8, 0.95), epsilon=1e-7)


def _train(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _model() -> Any:
    return make_model(hidden_size=64, intermediate_size=128)


def _reference(steps: int) -> tuple[list[float], Any]:
    """torch's plain AdamW, its groups written out."""
    model = _model()
    groups = [
        {"params": [p for n, p in model.named_parameters() if "norm" not in n], "weight_decay": 0.1},
        {"params": [p for n, p in model.named_parameters() if "norm" in n], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=3e-3, betas=(0.8, 0.95), eps=1e-7, fused=False, foreach=False)
    return _train(model, plain, steps), model


def test_the_fused_form_is_torch_s_plain_one() -> None:
    model = _model()
    optimizer = adamw(model.named_parameters(), _settings("adamw"))
    assert all(group["fused"] for group in optimizer.param_groups)
    losses, plain = _reference(10)
    assert _train(model, optimizer, 10) == pytest.approx(losses, rel=1e-5)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_state_of_8_bits_learns_nearly_the_same_and_resumes_exactly(tmp_path: Any) -> None:
    pytest.importorskip("bitsandbytes")
    settings = _settings("adamw8bit")
    model = _model()
    optimizer = adamw(model.named_parameters(), settings)
    losses = _train(model, optimizer, 10)
    assert losses == pytest.approx(_reference(10)[0], rel=0.05)
    states = {n: optimizer.state[p]["state1"].dtype for n, p in model.named_parameters()}
    assert states["model.embed_tokens.weight"] == torch.uint8  # large ones
    assert states["model.norm.weight"] == torch.float32
    run = RunFolder(tmp_path)
    checkpoint.save(run, Progress(step=10), model, optimizer, "key")
    on = _train(model, optimizer, 5)
    other = _model()
    again = adamw(other.named_parameters(), settings)
    checkpoint.load(run.checkpoints / "step-10", other, again)
    assert _train(other, again, 5) == on
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw8bit"])
def test_paged_state_needs_a_gpu(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for ask in (
        lambda: refuse_unavailable(_settings(name)),
        lambda: adamw(_model().named_parameters(), _settings(name)),
    ):
        with pytest.raises(UserError, match="no such GPU") as error:
            ask()
    assert error.value.fix == f"train.optimizer={name.removeprefix('paged_')}"


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None)
    with pytest.raises(UserError, match="not installed") as error:
        refuse_unavailable(_settings("adamw8bit"))
    assert "luthier[quantised]" in error.value.fix
    refuse_unavailable(_settings("adamw"))
