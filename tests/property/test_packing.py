"""Rows in a pack are as they are alone: scores, gradients, and what one row's change does to the others."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_model import random_rows
from transformers import AutoModelForCausalLM

from luthier.encoding.batches import collate, pack
from luthier.models import packed
from luthier.models.forward import token_scores

FAMILIES = ["llama", "qwen3", "mistral", "gpt2"]


def model(family, **settings):
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        tiny_trainer.config(family, **settings), attn_implementation=packed.NAME
    )
    return made.eval()


@pytest.mark.parametrize(
    ("family", "settings"), [*((f, {}) for f in FAMILIES), ("mistral", {"sliding_window": 8})], ids=str
)
@pytest.mark.parametrize("tile", [1, 16, 256])
def test_scores_and_gradients_of_a_pack_are_those_of_its_rows(family, settings, tile, monkeypatch):
    monkeypatch.setattr(packed, "TILE", tile)
    packed.tiles.cache_clear()
    made, rows = model(family, **settings), random_rows(7, longest=90)
    assert packed.can_pack(made) is None
    together = token_scores(made, pack(rows))
    together.weighted_sum().backward()
    gradients = {name: p.grad.clone() for name, p in made.named_parameters()}
    made.zero_grad()
    alone = [token_scores(made, collate([row], 0)) for row in rows]
    sum(part.weighted_sum() for part in alone).backward()
    assert torch.allclose(together.nll_N, torch.cat([part.nll_N for part in alone]), rtol=1e-5, atol=1e-5)
    assert together.rows_N.tolist() == [i for i, part in enumerate(alone) for _ in part.nll_N]
    for name, p in made.named_parameters():
        assert torch.allclose(gradients[name], p.grad, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_sees_nothing_of_the_others(family):
    made, rows = model(family), random_rows(4, longest=50)
    before = token_scores(made, pack(rows))
    changed = dataclasses.replace(rows[1], input_ids=np.full_like(rows[1].input_ids, 5))
    after = token_scores(made, pack([rows[0], changed, *rows[2:]]))
    others = before.rows_N != 1
    assert torch.equal(before.nll_N[others], after.nll_N[others])
    assert not torch.equal(before.nll_N[~others], after.nll_N[~others])


def test_a_window_holds_inside_packs():
    made, rows = model("mistral", sliding_window=8), random_rows(5, longest=60)
    together, alone = token_scores(made, pack(rows)), [token_scores(made, collate([row], 0)) for row in rows]
    assert torch.allclose(together.nll_N, torch.cat([part.nll_N for part in alone]), rtol=1e-5, atol=1e-5)
    whole = model("mistral", sliding_window=None)
    assert not torch.allclose(token_scores(whole, pack(rows)).nll_N, together.nll_N, rtol=1e-3)


def test_attention_with_dropout_is_that_without_but_for_what_is_dropped():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    how = {"row_lengths": torch.tensor([4, 1, 4])}
    plain, _ = packed.attention(None, q, k, v, None, **how)
    kept, _ = packed.attention(None, q, k, v, None, dropout=1e-12, **how)
    torch.testing.assert_close(kept, plain, rtol=1e-5, atol=1e-6)
    dropped, _ = packed.attention(None, q, k, v, None, dropout=0.5, **how)
    assert not torch.allclose(dropped, plain, atol=1e-2)


def test_what_is_not_packed_goes_transformers_own_way():
    rows = random_rows(3)
    own = model("llama")
    plain = AutoModelForCausalLM.from_config(own.config, attn_implementation="sdpa").eval()
    plain.load_state_dict(own.state_dict())
    for side in ("left", "right"):
        batch = collate(rows, 0, side)
        assert torch.equal(token_scores(own, batch).nll_N, token_scores(plain, batch).nll_N)


def test_models_with_a_state_are_refused_with_the_reason():
    torch.manual_seed(0)
    assert "MambaForCausalLM keeps a state" in packed.can_pack(
        AutoModelForCausalLM.from_config(tiny_trainer.config("mamba"))
    )
