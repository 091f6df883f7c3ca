"""What checks of the step share: restrictions, factors, and a model in which nothing is drawn."""

from pathlib import Path

import pytest
import torch
from tests.fixtures import tiny_trainer

import luthier
from luthier.check.as_before import no_dropout
from luthier.check.context import Skip
from luthier.check.steps import fill_zeros, gradient_factor, restrict, set_gradients, step_rows
from luthier.check.trainer import TrainerContext, untouched
from luthier.plan import Step

pytestmark = pytest.mark.filterwarnings("default")  # of other people's trainers


def test_factor_is_that_of_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, generator=generator), torch.randn(50, generator=generator)
    first, second = Step(1.0, {"w": 3 * a + 0.1 * b, "x": None}), Step(1.0, {"w": a, "x": None})
    factor, rest = gradient_factor(first, second)
    solved = torch.linalg.lstsq(a[:, None].double(), (3 * a + 0.1 * b).double()[:, None])
    assert factor == pytest.approx(float(solved.solution))
    left = (3 * a + 0.1 * b).double() - factor * a.double()
    assert rest == pytest.approx(float(left.norm() / (3 * a + 0.1 * b).norm()), rel=1e-5)
    assert all(value != value for value in gradient_factor(first, Step(1.0, {"w": None})))


def test_nothing_is_drawn_without_dropout() -> None:
    dropout = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}
    model = tiny_trainer.model("gpt2", **dropout).train()
    ids = torch.arange(5, 20)[None]
    before = {name: dict(vars(module)).get("p") for name, module in model.named_modules()}

    def loss() -> float:
        return float(model(input_ids=ids, labels=ids).loss)

    assert loss() != loss()
    with no_dropout(model):
        assert model.training and loss() == loss()
    assert loss() != loss()
    assert {name: dict(vars(module)).get("p") for name, module in model.named_modules()} == before


def test_restricted_optimizer_holds_the_last_parameters() -> None:
    model = torch.nn.Sequential(*[torch.nn.Linear(8, 8, bias=False) for _ in range(4)])
    optimizer = torch.optim.AdamW([{"params": [p]} for p in model.parameters()], lr=0.1)
    left = restrict(optimizer, 2 * 8 * 8 * 4, model.parameters())
    assert {id(p) for p in left} == {id(p) for p in list(model.parameters())[2:]}
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 0, 1, 1]
    assert restrict(optimizer, 1, model.parameters())  # one in any case


def test_gradients_are_clipped_as_torch_does() -> None:
    model = torch.nn.Linear(4, 4)
    values = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = values[name].clone()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    set_gradients(model, Step(0.0, {name: value.clone() for name, value in values.items()}), 0.5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])
    for most in (None, 1e3):  # nothing to clip: never made larger
        set_gradients(model, Step(0.0, {name: value.clone() for name, value in values.items()}), most)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, values[name])


def test_only_zeros_are_filled() -> None:
    model = torch.nn.Linear(4, 4)
    torch.nn.init.zeros_(model.bias)
    weight = model.weight.detach().clone()
    fill_zeros(model)
    assert model.bias.any() and torch.equal(model.weight, weight)


def test_rows_are_short_or_varied(tmp_path: Path) -> None:
    trainer = tiny_trainer.trainer(output_dir=str(tmp_path))
    with untouched(trainer):
        context = TrainerContext(trainer, tmp_path)
        lengths = context.rows["train"].lengths()
        short = step_rows(context, 3, 64)
        assert max(len(row.row.input_ids) for row in short) <= sorted(lengths)[3]
        varied = [row.num_trained for row in step_rows(context, 4, 64, varied=True)]
        counts = [int((row.loss_weights != 0).sum()) for row in context.rows["train"]]
        assert (varied[0], varied[-1]) == (min(counts), max(counts))
        assert all(row.same for row in short)


def test_rows_without_trained_tokens_are_none(tmp_path: Path) -> None:
    items = [{**item, "labels": [-100] * len(item["labels"])} for item in tiny_trainer.items(8)]
    trainer = tiny_trainer.trainer(train=items, output_dir=str(tmp_path))
    with untouched(trainer), pytest.raises(Skip, match="untrained-row"):
        step_rows(TrainerContext(trainer, tmp_path), 2, 64)


def test_a_step_that_fails_is_said_once(tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such device")

    trainer = tiny_trainer.trainer(output_dir=str(tmp_path))
    trainer.training_step = fail  # type: ignore[method-assign, assignment]
    report = luthier.audit(trainer)
    said = [f for f in report.findings if "no such device" in f.what]
    assert len(said) == 1 and said[0].severity == "error"
    assert sum("training step fails" in s["why"] for s in report.skipped) >= 4


def test_quick_needs_no_step(tmp_path: Path) -> None:
    report = luthier.audit(tiny_trainer.trainer(output_dir=str(tmp_path)), quick=True)
    assert {"schedule", "ranks", "dropped-columns"} <= set(report.passed)
    assert {"accumulation", "gradients", "resume"} <= {s["check"] for s in report.skipped}
