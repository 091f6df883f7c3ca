"""Micro-batches are as large as memory holds; gradient checkpointing comes only where the longest row needs it."""

import numpy as np
import pytest
import torch
from tests.fixtures.tiny_model import make_model, random_rows

from luthier.errors import UserError
from luthier.models import memory
from luthier.models.engine import Engine
from luthier.models.forward import token_scores

ENGINE = Engine(plain_head=False)


class _Rows(list):
    def row(self, index):
        return self[index]

    def lengths(self):
        return np.array([len(row.input_ids) for row in self])


ROWS = _Rows(random_rows(8, longest=60))
LENGTHS = sorted(ROWS.lengths(), reverse=True)


def checkpointed(model):
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def free(monkeypatch, num_bytes, per_token):
    """A machine with so much memory beside the model, where a pass takes so much a token, and half with checkpointing."""
    trained = sum(p.numel() for p in make_model().parameters())
    whole = (num_bytes + 12 * trained) / 0.8  # gradients and AdamW's two moments; a fifth is left free
    monkeypatch.setattr(memory, "available", lambda device: whole)
    monkeypatch.setattr(
        memory,
        "_bytes_per_token",
        lambda model, engine, rows: per_token / (2 if checkpointed(model) else 1),
    )


def fit(model=None, **settings):
    return memory.fit(model or make_model().train(), ENGINE, ROWS, rows_at_once=4, **settings)


def test_where_memory_is_plenty_a_step_goes_through_at_once_whatever_is_free():
    found = fit()
    assert found.micro_batch_tokens == sum(LENGTHS[:4]) and not found.gradient_checkpointing


@pytest.mark.parametrize("most", [LENGTHS[0] - 1, LENGTHS[0] + 1])
def test_a_processor_takes_no_more_than_makes_it_faster_but_always_a_whole_row(monkeypatch, most):
    monkeypatch.setattr(memory, "MOST_ON_CPU", most)
    assert fit().micro_batch_tokens == max(most, LENGTHS[0])


def test_what_is_told_is_taken():
    model = make_model().train()
    found = fit(model, micro_batch_tokens=77, gradient_checkpointing=True)
    assert found.micro_batch_tokens == 77 and found.gradient_checkpointing and checkpointed(model)


def test_short_memory_gives_smaller_micro_batches(monkeypatch):
    free(monkeypatch, num_bytes=100 * 1000, per_token=1000)
    model = make_model().train()
    found = fit(model)
    assert found.micro_batch_tokens == 100 and not checkpointed(model)


def test_what_grows_faster_than_the_tokens_is_seen_by_a_second_try(monkeypatch):
    free(monkeypatch, num_bytes=100 * 1000, per_token=1000)
    tried = iter([1000, 1600, 1600])
    monkeypatch.setattr(memory, "_bytes_per_token", lambda model, engine, rows: next(tried))
    assert fit().micro_batch_tokens == 100_000 // 1600


def test_a_pass_that_takes_no_memory_to_be_seen_fits(monkeypatch):
    monkeypatch.setattr(memory, "peak", lambda device: 0)
    assert fit().micro_batch_tokens == sum(LENGTHS[:4])


def test_checkpointing_comes_only_where_the_longest_row_needs_it_and_is_said_in_numbers(monkeypatch, caplog):
    caplog.set_level("INFO")
    free(monkeypatch, num_bytes=(LENGTHS[0] - 1) * 10**6, per_token=10**6)
    model = make_model().train()
    found = fit(model)
    assert found.gradient_checkpointing and checkpointed(model)
    assert LENGTHS[0] <= found.micro_batch_tokens <= 2 * LENGTHS[0]
    assert f"the longest row, of {LENGTHS[0]} tokens, would need 0.1 GiB" in caplog.text
    with pytest.raises(UserError, match=r"needs about 0\.1 GiB"):
        fit(gradient_checkpointing=False)


def test_what_fits_not_at_all_is_refused_with_what_would(monkeypatch):
    free(monkeypatch, num_bytes=10 * 1000, per_token=2000)
    with pytest.raises(UserError, match="longest row") as error:
        fit()
    assert "lower data.max_length to 10 or less" in error.value.fix


@pytest.mark.parametrize("own", ["/", "/system.slice/job_17/step_0", "/seen/from/outside"])
def test_a_job_or_container_has_what_its_limit_leaves_and_what_files_take(own, monkeypatch, tmp_path):
    """A model that was just read lies in the page cache, which is given back when memory is wanted."""
    groups = {"": ("9000", 5000, 1000), "system.slice/job_17": ("max", 4000, 900)}
    groups["system.slice/job_17/step_0"] = ("3000", 2500, 800)
    for name, (limit, used, files) in groups.items():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "memory.max").write_text(f"{limit}\n")
        (tmp_path / name / "memory.current").write_text(f"{used}\n")
        (tmp_path / name / "memory.stat").write_text(f"anon 7\nactive_file 5\ninactive_file {files}\n")
    (tmp_path / "mine").write_text(f"1:cpu:/elsewhere\n0::{own}\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUP", tmp_path / "mine")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory.available(torch.device("cpu")) == (1300 if "step_0" in own else 5000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.available(torch.device("cpu")) == (650 if "step_0" in own else 2500)


def test_what_torch_keeps_of_a_gpu_for_later_is_free(monkeypatch):
    kept = [3 * 2**30]
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * 2**30 - sum(kept), 16 * 2**30))
    assert memory.available(torch.device("cuda")) == 10 * 2**30


def test_the_try_sees_what_a_pass_takes():
    """A layer that keeps 100 MB is seen, and freed memory is not counted."""
    model = make_model().train()
    small = memory._bytes_per_token(model, ENGINE, ROWS) * sum(LENGTHS)
    whole = model.model.layers[0].mlp.forward
    kept = []
    model.model.layers[0].mlp.forward = lambda x: (kept.append(torch.ones(25_000_000)), whole(x))[1]
    large = memory._bytes_per_token(model, ENGINE, ROWS) * sum(LENGTHS)
    assert large - small > 90e6
    assert all(p.grad is None for p in model.parameters())


def test_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        model = make_model().train()
        if on:
            memory.checkpoint_gradients(model)
        token_scores(model, ENGINE.batch(ROWS)).weighted_sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(*gradients, strict=True))
