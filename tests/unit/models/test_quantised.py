"""A base model in 4 bits under an adapter, by bitsandbytes on the processor."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_adapter import IDS, load, logits, train
from tests.fixtures.tiny_model import save_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from luthier.errors import Refused, UserError
from luthier.models import merge as merging
from luthier.models import pretrained
from luthier.models.coverage import coverage
from luthier.models.load import (
    load_tokenizer,
    load_trained,
    load_untrained,
    save_trained,
)
from luthier.models.merge import merge
from luthier.recipe import Adapter, Model
from luthier.run_folder import RunFolder

bnb = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "model", hidden_size=64, intermediate_size=128)


def _settings(folder: Path, kind: dict[str, Any] | None = None, **changes: Any) -> Model:
    adapter = Adapter(**{"rank": 4, "alpha": 8} | (kind or {}))
    return Model(
        **{"name": str(folder), "precision": "fp32", "adapter": adapter, "quantisation": "nf4", **changes}
    )


def _run(place: Path, settings: Model, model: Any) -> RunFolder:
    run = RunFolder(place)
    run.create()
    save_trained(model, load_tokenizer(settings), run, settings)
    run.recipe.write_text(json.dumps({"model": settings.model_dump(mode="json")}))
    return run


def _plain_base(folder: Path) -> Any:
    """As QLoRA's users load it."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
    )
    for module in base.modules():
        module.support_avx512bf16_for_cpu = False  # else it computes in bf16
    return base


@pytest.mark.parametrize(
    "kind", [{}, {"variant": "rslora"}, {"variant": "dora"}, {"init": "pissa"}, {"init": "olora"}], ids=str
)
def test_it_trains_and_the_adapter_loads_in_plain_transformers_and_peft(
    folder: Path, tmp_path: Path, kind: dict[str, Any]
) -> None:
    settings = _settings(folder, kind)
    model = load(settings)
    quantised = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(quantised) == 14
    assert all(m.weight.quant_type == "nf4" and m.weight.quant_state.nested for m in quantised)
    before = logits(model)
    assert torch.allclose(before, logits(_plain_base(folder)), atol=1e-4)
    full = logits(AutoModelForCausalLM.from_pretrained(folder))
    assert (before - full).abs().max() > 0.1  # four bits are four bits
    losses = train(model)
    assert losses[-1] < losses[0] - 0.05
    run = _run(tmp_path / "run", settings, model)
    tuned = logits(model)
    assert torch.allclose(
        logits(load_trained(settings, run, len(load_tokenizer(settings)))), tuned, atol=1e-4
    )
    plain = PeftModel.from_pretrained(_plain_base(folder), str(run.adapter))
    assert torch.allclose(logits(plain), tuned, atol=1e-4)


def test_evaluation_leaves_the_gradients_of_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(model: Any) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    for precision in ("fp32", "bf16"):
        settings = _settings(folder, {"init": "pissa"}, precision=precision)
        model = load(settings)
        before = gradients(model)
        logits(model)
        after = gradients(model)
        assert all(torch.equal(before[name], after[name]) for name in before)
    if bnb.functional.has_avx512bf16():  # the defect that is guarded against is still there
        monkeypatch.setattr(pretrained, "_settle_quantised", lambda model, dtype: None)
        model = load(settings)
        before = gradients(model)
        logits(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that gradients may be wrong
            after = gradients(model)
        assert any(not torch.allclose(before[name], after[name], rtol=0.1) for name in before)


def test_precision_changes_no_quantised_weight(folder: Path) -> None:
    exact, rough = (load(_settings(folder, precision=p), training=False) for p in ("fp32", "bf16"))
    for (name, a), (_, b) in zip(exact.named_parameters(), rough.named_parameters(), strict=True):
        if a.dtype == torch.uint8:
            assert torch.equal(a, b), name
        else:
            assert (a.dtype, b.dtype) == (torch.float32, torch.bfloat16)
    whole = next(row for row in coverage(exact) if row.name == "all")
    assert whole.total == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", [{}, {"init": "pissa"}, {"variant": "dora"}], ids=str)
def test_the_merged_model_is_what_was_trained(
    folder: Path, tmp_path: Path, kind: dict[str, Any], precision: Any
) -> None:
    settings = _settings(folder, kind, precision=precision)
    model = load(settings)
    train(model)
    run = _run(tmp_path / "run", settings, model)
    proof = merge(settings, run, tmp_path / "out")
    assert proof.kl_nats < 1e-6 < 1e-3 < proof.adapter_kl_nats
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.dtype == torch.float32
    exact = settings.model_copy(update={"precision": "fp32"})
    assert torch.allclose(logits(merged), logits(load_trained(exact, run, 300)), atol=1e-3)


def test_a_merge_into_the_weights_before_quantisation_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(folder)
    model = load(settings)
    train(model)
    run = _run(tmp_path / "run", settings, model)
    usual = merging._dequantised
    original = AutoModelForCausalLM.from_pretrained(folder)
    # The defect to catch: merging into the weights as they were before they were quantised.
    monkeypatch.setattr(merging, "_dequantised", lambda model: (usual(model), original)[1])
    with pytest.raises(Refused, match="differs from the adapter"):
        merge(settings, run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["continue", "stack", "merge"])
def test_training_goes_on_from_a_quantised_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    settings = _settings(folder)
    model = load(settings)
    train(model)
    run, before = _run(tmp_path / "run", settings, model), logits(model)
    on = _settings(
        folder,
        start_from=str(run.path),
        start_mode=mode,
        **({"quantisation": None} if mode == "merge" else {}),
    )
    assert torch.allclose(logits(load_untrained(on, 300)), before, atol=1e-3)
    again = load(on)
    assert torch.allclose(logits(again), before, atol=1e-3)
    losses = train(again)
    assert losses[-1] < losses[0]
    after = _run(tmp_path / "after", on, again)
    assert torch.allclose(logits(load_trained(on, after, 300)), logits(again), atol=1e-4)


def test_without_bitsandbytes_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = pretrained.importlib.util.find_spec
    monkeypatch.setattr(
        pretrained.importlib.util,
        "find_spec",
        lambda name, *a: None if name == "bitsandbytes" else usual(name, *a),
    )
    with pytest.raises(UserError, match=r"luthier\[quantised\]"):
        load(_settings(folder))


def test_a_state_space_model_trains_in_4_bits(tmp_path: Path) -> None:
    settings = _settings(tiny_trainer.save_folder(tmp_path / "mamba", tiny_trainer.model("mamba")))
    model = load(settings)
    kinds = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert kinds == {"base_layer", "out_proj"}
    losses = train(model)
    assert losses[-1] < losses[0]
