"""Loss and gradients depend on the rows of a step, not on how they are split, padded or ordered."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fixtures.tiny_classifier import classifier, labelled_rows, load, save_base
from tests.fixtures.tiny_model import make_model, make_tokenizer, random_rows

from luthier.encoding.batches import collate, micro_batches, shuffled
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.evaluate import runner as evaluation
from luthier.models import fused, packed
from luthier.models.engine import Engine
from luthier.models.forward import token_scores
from luthier.models.generate import score_and_generate
from luthier.recipe import Recipe, Train
from luthier.run_folder import RunFolder
from luthier.train.checkpoint import Progress
from luthier.train.loop import Loop, accumulate_gradients, evaluate

ROWS = random_rows(16)
loop_module = sys.modules[Loop.__module__]


class _Rows(list):  # type: ignore[type-arg]
    def row(self, index):  # type: ignore[no-untyped-def]
        return self[index]


def _loop(tmp_path: Path, rows, way: str = "plain", micro_batch_tokens: int = 4096) -> Loop:  # type: ignore[no-untyped-def]
    recipe = Recipe(train=Train(num_samples=0))
    model = make_model()
    if way != "plain":
        model.config._attn_implementation = packed.NAME
    if way == "compiled":
        fused.compile_layers(model)
    engine = Engine(packed=way != "plain", micro_batch_tokens=micro_batch_tokens, plain_head=False)
    tokenizer = TextTokenizer(make_tokenizer())
    return Loop(recipe, RunFolder(tmp_path), model, tokenizer, _Rows(rows), _Rows(rows), None, engine=engine)


def _loss_and_gradients(tmp_path: Path, rows, way: str, micro_batch_tokens: int):  # type: ignore[no-untyped-def]
    loop = _loop(tmp_path, rows, way, micro_batch_tokens)
    loss = accumulate_gradients(loop, rows)
    fused.unfuse(loop.model)
    return loss, {name: p.grad.clone() for name, p in loop.model.named_parameters()}


def _reference() -> tuple[float, dict[str, torch.Tensor]]:
    """One row at a time through transformers' own forward, the mean written out in double precision."""
    model = make_model()
    total = 0.0
    weight = sum(float(row.loss_weights.sum()) for row in ROWS)
    for row in ROWS:
        ids = torch.tensor(row.input_ids[None].astype("int64"))
        logits = model(input_ids=ids).logits[0, :-1]
        nll = -logits.double().log_softmax(-1)[torch.arange(len(row.input_ids) - 1), ids[0, 1:]]
        part = (nll * torch.tensor(row.loss_weights[1:]).double()).sum() / weight
        part.backward()
        total += part.item()
    return total, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("order", ["given", "reversed"])
@pytest.mark.parametrize("micro_batch_tokens", [1, 4 * 40, 10**6])
@pytest.mark.parametrize("way", ["plain", "packed", "compiled"])
def test_loss_and_gradients_do_not_depend_on_micro_batches_or_order_or_way(
    tmp_path: Path, way: str, micro_batch_tokens: int, order: str
) -> None:
    expected_loss, expected = _reference()
    rows = ROWS if order == "given" else ROWS[::-1]
    loss, gradients = _loss_and_gradients(tmp_path, rows, way, micro_batch_tokens)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, gradient in gradients.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_step_of_a_head_is_the_same_at_any_accumulation(tmp_path: Path) -> None:
    model = load(classifier(save_base(tmp_path / "base", "qwen3"), 280, adapter=None))
    rows = labelled_rows(16, 280, seed=3)
    for place, row in enumerate(rows):
        row.loss_weights[-1] = (0.5, 1, 2)[place % 3]
    weights = torch.tensor([float(row.loss_weights[-1]) for row in rows], dtype=torch.float64)
    logits = [model(input_ids=torch.tensor(row.input_ids[None].astype("int64"))).logits[0] for row in rows]
    labels = torch.tensor([row.meta["label"] for row in rows])
    nll = torch.nn.functional.cross_entropy(torch.stack(logits).double(), labels, reduction="none")
    expected = (nll * weights).sum() / weights.sum()
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3
    for packs in (False, True):
        if packs:
            model.config._attn_implementation = packed.NAME
        for accumulation in (1, 2, 4, 8, 12, 16):
            model.zero_grad()
            engine = Engine(packed=packs, plain_head=False, pad_to_multiple_of=accumulation)
            loop = Loop(
                Recipe(), RunFolder(tmp_path), model, None, _Rows(rows), _Rows(rows), None, engine=engine
            )
            groups = [part.tolist() for part in np.array_split(np.arange(16), accumulation)]
            loss = accumulate_gradients(loop, rows, groups)
            assert loss == pytest.approx(expected.item(), rel=1e-5)
            for name, gradient in gradients.items():
                found, scale = model.get_parameter(name).grad, float(gradient.abs().max())
                torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5 * scale + 1e-9, msg=name)


@pytest.mark.parametrize("multiple", [8, 64])
def test_padding_to_a_multiple_changes_nothing(tmp_path: Path, multiple: int) -> None:
    expected_loss, expected = _reference()
    loop = _loop(tmp_path, ROWS, micro_batch_tokens=4 * multiple)
    loop.engine = replace(loop.engine, pad_to_multiple_of=multiple)
    groups = loop.engine.groups([len(row.input_ids) for row in ROWS])
    shapes = [loop.engine.batch([ROWS[i] for i in group]).input_ids_BT.shape for group in groups]
    assert all(
        width % multiple == 0 and (size == 1 or size * width <= 4 * multiple) for size, width in shapes
    )
    assert accumulate_gradients(loop, ROWS) == pytest.approx(expected_loss, rel=1e-5)
    for name, parameter in loop.model.named_parameters():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_a_step_that_is_out_of_memory_goes_on_with_half_as_many_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = _loop(tmp_path, ROWS, micro_batch_tokens=10**4)
    tried = []

    def short(model, batch, **others):  # type: ignore[no-untyped-def]
        tried.append(batch.input_ids_BT.numel())
        if tried[-1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return token_scores(model, batch, **others)

    monkeypatch.setattr(loop_module, "token_scores", short)
    loss = accumulate_gradients(loop, ROWS)
    expected_loss, expected = _reference()
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, parameter in loop.model.named_parameters():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-5 * scale, msg=name)
    assert loop.engine.micro_batch_tokens == 10**4 // 128 and "out of memory" in caplog.text
    monkeypatch.setattr(loop_module, "token_scores", lambda *_, **__: short(None, collate(ROWS * 9, 0)))
    with pytest.raises(torch.OutOfMemoryError):  # one row alone is too much
        accumulate_gradients(loop, ROWS)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_padding_side_changes_nothing(size: int) -> None:
    expected_loss, expected = _reference()
    weight = sum(float(row.loss_weights.sum()) for row in ROWS)
    for side in ("left", "right"):
        model = make_model()
        loss = 0.0
        for start in range(0, 16, size):
            part = token_scores(model, collate(ROWS[start : start + size], 2, side)).weighted_sum() / weight
            part.backward()
            loss += part.item()
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        for name, parameter in model.named_parameters():
            scale = float(expected[name].abs().max())
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_padding_that_is_looked_at_would_be_seen() -> None:
    """The guard of the tests above: without mask and positions, left padding does change the loss."""
    batch = collate(ROWS[:4], 2, "left")
    blind = collate(ROWS[:4], 2, "left")
    blind.position_ids_BT[:] = torch.arange(blind.position_ids_BT.shape[1])
    blind.attention_mask_BT[:] = 1
    model = make_model()
    assert (
        abs((token_scores(model, batch).weighted_sum() - token_scores(model, blind).weighted_sum()).item())
        > 1e-2
    )


def test_evaluation_loss_does_not_depend_on_batch_size(tmp_path: Path) -> None:
    expected_loss, _ = _reference()
    with torch.no_grad():
        alone = [token_scores(make_model(), collate([row], 2)) for row in ROWS]
    nats = sum(float(scores.nll_N.sum()) for scores in alone)
    right = [bool(correct) for scores in alone for correct in scores.correct_N]
    rows = [replace(row, target_bytes=7) for row in ROWS]
    said: list[tuple[str, int, int]] = []
    for micro_batch_tokens in (1, 3 * 40, 8 * 40):
        loop = _loop(tmp_path, rows, micro_batch_tokens=micro_batch_tokens)
        said.clear()
        found = evaluate(loop, Progress(), lambda *far: said.append(far))
        assert [label for label, *_ in said] == ["eval loss"] * len(said) and {far[2] for far in said} == {16}
        assert said[0][1] == 0 and [done for _, done, _ in said] == sorted({done for _, done, _ in said})
        if micro_batch_tokens == 1:
            assert len(said) == 16, "one row at a time"
        assert found["loss"] == pytest.approx(expected_loss, rel=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(expected_loss), rel=1e-4)
        assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / (16 * 7), rel=1e-5)
        assert (found["num_tokens"], found["token_accuracy"]) == (len(right), sum(right) / len(right))
        tokenizer = TextTokenizer(make_tokenizer())
        for batch_size in (1, 3, 8):
            sums = [
                row
                for indices, scores, _ in score_and_generate(
                    loop.model, tokenizer, ROWS, max_new_tokens=1, batch_size=batch_size
                )
                for row in evaluation.row_sums(scores, len(indices))
            ]
            total = sum(row["weighted_nats"] for row in sums) / sum(row["weight"] for row in sums)
            assert total == pytest.approx(expected_loss, rel=1e-5)


def test_micro_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [len(row.input_ids) for row in ROWS]
    for budget in (1, 50, 100, 1000):
        groups = micro_batches(lengths, budget)
        assert sorted(i for group in groups for i in group) == list(range(16))
        assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= budget for g in groups)


def test_every_epoch_is_a_permutation_wherever_it_is_entered() -> None:
    stream = shuffled(0, 30, 10, seed=3)
    assert [sorted(stream[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert stream[:10] != stream[10:20]
    assert shuffled(7, 11, 10, seed=3) == stream[7:18]
    assert shuffled(0, 10, 10, seed=4) != stream[:10]
