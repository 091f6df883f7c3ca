"""What checks of the model share, against transformers' own and by property."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.fixtures import tiny_trainer
from transformers import AutoModelForCausalLM

from luthier.check import as_before, model_rows
from luthier.check.context import Skip
from luthier.check.trainer import TrainerContext
from luthier.errors import UserError


@pytest.fixture
def context(tmp_path):
    made = TrainerContext(tiny_trainer.trainer(), tmp_path)
    assert made.rows
    return made


def test_distance_of_equal_and_of_unrelated_logits():
    torch.manual_seed(0)
    first, second = torch.randn(2, 50, 300)
    assert model_rows.distance(first, first) == 0
    assert model_rows.distance(first, second) == pytest.approx(2**0.5, rel=0.02)
    assert model_rows.distance(7 * first, 7 * first + 0.07) == pytest.approx(0.01, rel=0.02)
    assert model_rows.distance(first, first * torch.nan) != model_rows.distance(first, first)
    assert model_rows.distance(first[:0], second[:0]) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figure_of_what_json_cannot_hold(value):
    assert model_rows.figure(value) == str(value)
    assert model_rows.figure(1234.5) == 1230.0


def test_attending_changes_what_is_computed_and_puts_it_back():
    made = tiny_trainer.model("qwen3").eval()
    ids = torch.arange(3, 40)[None]
    assert made.config._attn_implementation == "sdpa"
    with torch.no_grad():
        sdpa = made(ids, output_attentions=False).logits
        with as_before.attending(made, "eager"):
            assert made.model.layers[0].self_attn.config._attn_implementation == "eager"
            eager = made(ids).logits
            weights = made(ids, output_attentions=True).attentions
        again = made(ids).logits
    assert weights[0].shape == (1, 4, 37, 37)  # which sdpa does not give
    assert made.config._attn_implementation == "sdpa"
    assert torch.equal(sdpa, again) and torch.allclose(sdpa, eager, atol=1e-4)


def test_forward_that_fails_is_said_once(context):
    context.model.model.layers[0].register_forward_hook(lambda *_: [][0])
    with pytest.raises(UserError, match="forward pass fails: IndexError"):
        model_rows.logits(context, input_ids=torch.tensor([[5, 6]]))
    with pytest.raises(Skip, match="see the errors"):
        model_rows.logits(context, input_ids=torch.tensor([[5, 6]]))


@pytest.mark.parametrize("spoil", ["nan", "noise"])
def test_what_cannot_be_compared_is_skipped(context, spoil):
    model_rows.comparable(context)
    context.comparable = None
    noise = torch.nan if spoil == "nan" else 1.0
    context.seen.clear()
    context.model.model.norm.register_forward_hook(lambda m, a, out: out + noise * torch.randn_like(out))
    said = "not finite" if spoil == "nan" else "dropout-off"
    with pytest.raises(Skip, match=said), as_before.evaluating(context.model):
        model_rows.comparable(context)
    assert context.seen == []


def test_collated_items_are_cut_to_different_lengths(context):
    batch = context.short_batch(range(3), 16)
    assert batch["attention_mask"].sum(-1).tolist() == [16, 12, 8]
    assert set(batch) == {"input_ids", "attention_mask"}
    row = context.rows["train"].row(1)
    assert batch["input_ids"][1, :12].tolist() == row.input_ids[:12].tolist()


def test_collator_that_draws_or_joins_is_skipped(context):
    plain = context.collate
    context.collate = lambda items: {k: v + torch.randint(9, v.shape) for k, v in plain(items).items()}
    with pytest.raises(Skip, match="something else each time"):
        context.short_batch(range(3), 16)
    context.collate = lambda items: {k: v.reshape(1, -1) for k, v in plain(items).items()}
    with pytest.raises(Skip, match="packed"):
        context.short_batch(range(3), 16)


def test_padding_that_has_no_embedding_is_skipped(context):
    plain, size = context.collate, model_rows.embedding_rows(context.model)

    def pad(items):
        batch = plain(items)
        return {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, size)}

    context.collate = pad
    with pytest.raises(Skip, match="no embedding for"):
        context.short_batch(range(3), 16)


def test_classes_beyond_the_head_are_skipped(tmp_path):
    context = TrainerContext(tiny_trainer.class_trainer(), tmp_path)
    assert context.rows
    rows = model_rows.short_rows(context, 4, 16)
    assert model_rows.row_losses(context, rows).shape == (4,)
    context.model.config.pad_token_id = None  # one row at a time then
    alone = model_rows.row_losses(context, rows)
    context.model.config.pad_token_id = 2
    assert torch.allclose(alone, model_rows.row_losses(context, rows), atol=1e-5)
    with pytest.raises(Skip, match="not all among the model's 5 classes"):
        model_rows.losses(context, [dataclasses.replace(rows[0], meta={"label": 5})])


def test_masked_language_models_predict_no_next_token(context):
    model_rows.only_causal(context)
    context.model.__class__ = type("LlamaForMaskedLM", (type(context.model),), {})
    with pytest.raises(Skip, match="masked"):
        model_rows.only_causal(context)


def test_losses_are_transformers_own(context):
    rows = model_rows.short_rows(context, 3, 64)
    labels = [np.where(row.loss_weights != 0, row.input_ids, -100).tolist() for row in rows]
    with as_before.evaluating(context.model):
        ours = model_rows.row_losses(context, rows)
        theirs = [
            float(
                context.model(
                    torch.tensor(np.array(row.input_ids))[None].long(), labels=torch.tensor([own])
                ).loss
            )
            for row, own in zip(rows, labels, strict=True)
        ]
    assert ours.tolist() == pytest.approx(theirs, rel=1e-4)


def test_reduced_products_are_not_exact(context, monkeypatch):
    assert model_rows.most_distance(context) == model_rows.MOST_DISTANCE[True]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert model_rows.most_distance(context) == model_rows.MOST_DISTANCE[False]


def test_random_layers_in_bf16_stay_within_the_distance():
    torch.manual_seed(0)
    config = tiny_trainer.config("llama", num_hidden_layers=12)
    made = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    ids = torch.randint(3, 300, (4, 60))
    with torch.no_grad():
        sdpa = made(ids).logits.float()
        with as_before.attending(made, "eager"):
            eager = made(ids).logits.float()
    assert 0 < model_rows.distance(sdpa, eager) < model_rows.MOST_DISTANCE[False] / 2
