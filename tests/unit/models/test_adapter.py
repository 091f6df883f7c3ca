"""Adapters of every kind: what plain peft makes of them, and of what is saved."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_adapter import IDS, load, logits, train
from tests.fixtures.tiny_model import make_model, save_model
from transformers import AutoModelForCausalLM

from luthier.errors import UserError
from luthier.models import fused
from luthier.models.adapter import add_adapter
from luthier.models.load import load_tokenizer, load_trained, load_untrained, save_trained
from luthier.recipe import Adapter, Model
from luthier.run_folder import RunFolder

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern"),
]
SMALL = {"rank": 4, "alpha": 8}
KINDS = [
    {},
    {"init": "gaussian"},
    {"init": "orthogonal"},
    {"variant": "rslora"},
    {"variant": "dora"},
    {"init": "pissa"},
    {"init": "pissa-fast"},
    {"init": "olora"},
    {
        "init": "pissa",
        "variant": "rslora",
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {".*mlp.up_proj": 3},
    },
    {"rank_pattern": {r".*layers\.1\..*": 6, "v_proj": 2}, "alpha_pattern": {"q_proj": 32}},
    {"init": "olora", "targets": ["q_proj", "layers.1.mlp.up_proj"]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "model")


def _settings(folder: Path, kind: dict[str, Any] | None = None, **changes: Any) -> Model:
    return Model(
        **{"name": str(folder), "precision": "fp32", "adapter": Adapter(**SMALL | (kind or {})), **changes}
    )


def _run(place: Path, settings: Model, model: Any) -> RunFolder:
    run = RunFolder(place)
    run.create()
    save_trained(model, load_tokenizer(settings), run, settings)
    return run


def _plain(folder: Path, adapter: Path) -> Any:
    """The model as anybody loads it, without luthier."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_saved_is_what_was_trained_in_plain_peft_on_the_original_base(
    folder: Path, tmp_path: Path, kind: dict[str, Any]
) -> None:
    settings = _settings(folder, kind)
    base = logits(AutoModelForCausalLM.from_pretrained(folder))
    model = load(settings)
    assert torch.allclose(logits(model), base, atol=1e-4)  # it starts as the base model
    with model.disable_adapter():
        assert torch.equal(logits(model), base)  # whose own weights are as they were
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all(".default" in name for name in trainable)
    losses = train(model)
    assert losses[-1] < losses[0] - 0.05
    run = _run(tmp_path / "run", settings, model)
    tuned = logits(model)
    assert (tuned - base).abs().max() > 0.1
    assert torch.allclose(logits(_plain(folder, run.adapter)), tuned, atol=1e-4)
    loaded = load_trained(settings, run, len(load_tokenizer(settings)))
    assert torch.allclose(logits(loaded), tuned, atol=1e-4)
    merged = _plain(folder, run.adapter).merge_and_unload()
    assert torch.allclose(logits(merged), tuned, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ({}, {}),
        ({"init": "gaussian"}, {"init_lora_weights": "gaussian"}),
        ({"init": "orthogonal"}, {"init_lora_weights": "orthogonal"}),
        ({"init": "pissa"}, {"init_lora_weights": "pissa"}),
        ({"init": "olora"}, {"init_lora_weights": "olora"}),
        ({"variant": "rslora"}, {"use_rslora": True}),
        ({"variant": "dora"}, {"use_dora": True}),
        ({"rank_pattern": {"v_proj": 2}}, {"rank_pattern": {"v_proj": 2}}),
        ({"alpha_pattern": {"v_proj": 64}}, {"alpha_pattern": {"v_proj": 64}}),
    ],
    ids=str,
)
def test_training_is_that_of_peft_s_own(folder: Path, kind: dict[str, Any], theirs: dict[str, Any]) -> None:
    """peft takes PiSSA's part out of the base weights, luthier keeps it beside them: the same losses."""
    ours = train(load(_settings(folder, kind)), 4)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **theirs)
    assert ours == pytest.approx(train(get_peft_model(base, config), 4), rel=1e-4)
    assert kind == {} or ours != pytest.approx(train(load(_settings(folder)), 4), rel=1e-4)


def test_pissa_takes_the_leading_singular_vectors(folder: Path) -> None:
    model = load(_settings(folder, {"init": "pissa", "alpha": 12}))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    u, s, v = torch.linalg.svd(layer.base_layer.weight.detach())
    leading = u[:, :4] @ s[:4].diag() @ v[:4]
    assert torch.allclose(layer.get_delta_weight("default"), leading, atol=1e-5)
    assert torch.allclose(layer.get_delta_weight("held"), -leading, atol=1e-5)


def test_the_held_part_stays_when_adapters_are_switched_off_and_on(folder: Path) -> None:
    model = load(_settings(folder, {"init": "pissa"}))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if ".held" in n}
    with model.disable_adapter():
        pass
    train(model)
    assert before and all(torch.equal(before[n], dict(model.named_parameters())[n]) for n in before)


@pytest.mark.parametrize(
    ("kind", "fast"),
    [
        ({"variant": "rslora"}, 14),
        ({"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 64}}, 14),
        ({"variant": "dora"}, 0),
        ({"init": "pissa"}, 0),
    ],
    ids=str,
)
def test_the_fused_product_is_right_for_each_kind_or_leaves_it(
    folder: Path, kind: dict[str, Any], fast: int
) -> None:
    slow, quick = load(_settings(folder, kind)), load(_settings(folder, kind))
    assert fused.fuse_lora(quick) == fast
    assert train(quick, 4) == pytest.approx(train(slow, 4), rel=1e-5)


def test_freezing_takes_parts_of_an_adapter(folder: Path) -> None:
    for kind in ({"init": "pissa"}, {"variant": "dora"}):
        model = load(
            _settings(folder, kind, freeze=["lora_A", "magnitude"] if "variant" in kind else ["lora_A"])
        )
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        train(model)
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert changed and all("lora_B.default" in name for name in changed)
    with pytest.raises(UserError, match="matches no parameter that would be trained"):
        load(_settings(folder, freeze=["embed_tokens"]))


# What cannot be.


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({"variant": "dora", "init": "pissa"}, "variant=dora holds"),
        ({"init": "orthogonal", "rank": 3}, "needs even ranks, not 3"),
        ({"init": "orthogonal", "rank_pattern": {"q": 5}}, "needs even ranks, not 5"),
    ],
)
def test_settings_that_exclude_each_other(kind: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Adapter(**kind)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantisation": "nf4", "adapter": None}, "cannot be trained themselves"),
        ({"start_from": "x", "adapter": None}, "start_mode=continue needs model.adapter"),
        ({"start_from": "x", "adapter": {"init": "pissa"}}, "init=pissa would do nothing"),
        ({"start_from": "x", "start_mode": "stack", "adapter": {"variant": "dora"}}, "cannot be stacked"),
        ({"start_from": "x", "start_mode": "stack", "new_tokens": ["<|a|>"]}, "stacked on another"),
    ],
)
def test_model_settings_that_exclude_each_other(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Model(**settings)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({"rank_pattern": {"q_prj": 2}}, "'q_prj' decides about no adapted layer"),
        ({"rank_pattern": {".*_proj": 2, "q_proj": 8}}, "'q_proj' decides about no"),
        ({"alpha_pattern": {"lm_head": 2}}, "'lm_head' decides about no"),
        ({"rank_pattern": {"(": 2}}, "cannot be made"),
        ({"init": "pissa", "rank": 20}, "takes 20 directions out of .*k_proj, which has 16"),
    ],
    ids=str,
)
def test_patterns_and_ranks_that_do_not_fit(folder: Path, kind: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(_settings(folder, kind))


def test_transposed_layers_have_pissa_but_no_olora() -> None:
    model = tiny_trainer.model("gpt2")
    with pytest.raises(UserError, match="transposed"):
        add_adapter(model, Adapter(**SMALL, init="olora"), [])
    model = tiny_trainer.model("gpt2")
    before = model(input_ids=IDS).logits
    adapted = add_adapter(model, Adapter(**SMALL, init="pissa"), [])
    assert torch.allclose(adapted(input_ids=IDS).logits, before, atol=1e-4)
    layer = adapted.get_base_model().transformer.h[0].attn.c_attn
    u, s, v = torch.linalg.svd(layer.base_layer.weight.detach(), full_matrices=False)
    principal = u[:, :4] @ s[:4].diag() @ v[:4]
    assert torch.allclose(layer.get_delta_weight("default"), principal, atol=1e-5)


# Going on from an earlier adapter.


@pytest.fixture(scope="module")
def earlier(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, torch.Tensor]:
    """A run with an adapter, and what its model says."""
    settings = _settings(folder)
    model = load(settings)
    train(model)
    run = _run(tmp_path_factory.mktemp("runs") / "run", settings, model)
    run.recipe.write_text(json.dumps({"model": settings.model_dump(mode="json")}))
    return run, logits(model)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ({}, "continue"),
        ({"dropout": 0.1}, "continue"),
        ({}, "stack"),
        ({"rank": 2, "targets": ["q_proj"]}, "stack"),
        ({"init": "gaussian", "variant": "rslora", "dropout": 0.1}, "stack"),
        ({"variant": "dora"}, "merge"),
        ({"init": "pissa"}, "merge"),
        (None, "merge"),
    ],
    ids=str,
)
def test_training_goes_on_from_an_adapter_and_saves_what_plain_peft_loads(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    earlier: tuple[RunFolder, torch.Tensor],
    kind: dict[str, Any] | None,
    mode: Any,
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    run, before = earlier
    files = load_file(run.adapter / "adapter_model.safetensors")
    settings = _settings(folder, kind, start_from=str(run.path), start_mode=mode)
    if kind is None:
        settings = settings.model_copy(update={"adapter": None})
    tokenizer = load_tokenizer(settings)
    untrained = load_untrained(settings, len(tokenizer))
    assert torch.allclose(logits(untrained), before, atol=1e-4)  # what base figures are of
    model = load(settings)
    assert torch.allclose(logits(model), before, atol=1e-4)
    losses = train(model)
    assert losses[-1] < losses[0]
    after = _run(tmp_path / "after", settings, model)
    tuned = logits(model)
    assert not torch.allclose(tuned, before, atol=1e-2)
    assert torch.allclose(logits(load_trained(settings, after, len(tokenizer))), tuned, atol=1e-4)
    if kind is None:
        plain: Any = AutoModelForCausalLM.from_pretrained(after.model)
    else:
        config = json.loads((after.adapter / "adapter_config.json").read_text())
        base = config["base_model_name_or_path"]
        assert (base == str(folder)) == (mode != "merge")
        plain = _plain(Path(base), after.adapter)
    assert torch.allclose(logits(plain), tuned, atol=1e-4)
    now = load_file(run.adapter / "adapter_model.safetensors")
    assert all(torch.equal(files[name], now[name]) for name in files)


def test_a_stack_can_be_stacked_on_and_a_merged_start_merged_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: tuple[RunFolder, torch.Tensor]
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    place = earlier[0].path
    for number, mode in enumerate(("stack", "stack", "merge", "merge")):
        settings = _settings(folder, {"rank": 2}, start_from=str(place), start_mode=mode)
        model = load(settings)
        train(model, 2)
        run = _run(tmp_path / f"{number}", settings, model)
        run.recipe.write_text(json.dumps({"model": settings.model_dump(mode="json")}))
        config = json.loads((run.adapter / "adapter_config.json").read_text())
        assert config["r"] == {0: 6, 1: 8, 2: 2, 3: 2}[number]
        tuned, place = logits(model), run.path
        assert torch.allclose(
            logits(load_untrained(_settings(folder, start_from=str(place), start_mode="merge"), 300)),
            tuned,
            atol=1e-3,
        )
    assert len(list((tmp_path / "cache" / "merged").iterdir())) >= 4


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "changes", "said"),
    [
        (lambda a: a.rename(a.parent / "model"), {}, "trained whole"),
        (lambda a: a.rename(a.parent / "gone"), {}, "holds no adapter"),
        (lambda a: (a / "adapter_model.safetensors").rename(a / "adapter_model.bin"), {}, "only safetensors"),
        (
            lambda a: _edit(a / "adapter_config.json", base_model_name_or_path="owner/other"),
            {},
            "trained on owner/other",
        ),
        (lambda a: _edit(a / "adapter_config.json", init_lora_weights="pissa_niter_4"), {}, "changes"),
        (lambda a: (a / "adapter_config.json").write_text("{"), {}, "damaged"),
        (lambda a: (a / "adapter_config.json").write_text("[]"), {}, "damaged: no object, but list"),
        (lambda a: _edit(a / "tokenizer_config.json", eos_token="<|endoftext|>"), {}, "another tokenizer"),
        (lambda a: (a / "chat_template.jinja").write_text("{{ messages }}"), {}, "another chat template"),
        (lambda a: None, {"new_tokens": ["<|open|>"]}, "another tokenizer"),
        (
            lambda a: None,
            {"quantisation": "nf4"},
            "trained on weights in full precision, this recipe has nf4",
        ),
        (lambda a: None, {"adapter": Adapter(rank=8, alpha=8)}, r"its rank is 4(.|\n)*model.adapter.rank=4"),
        (lambda a: None, {"adapter": Adapter(**SMALL, targets=["q_proj"])}, "its targets is"),
    ],
)
def test_an_adapter_that_does_not_belong_is_refused(
    folder: Path,
    tmp_path: Path,
    earlier: tuple[RunFolder, torch.Tensor],
    spoil: Any,
    changes: dict[str, Any],
    said: str,
) -> None:
    if "quantisation" in changes:
        pytest.importorskip("bitsandbytes")
    run = Path(shutil.copytree(earlier[0].path, tmp_path / "run"))
    spoil(run / "adapter")
    with pytest.raises(UserError, match=said):
        load(_settings(folder, **{"start_from": str(run), **changes}))


def test_a_copy_of_the_base_is_the_base_and_other_weights_are_not(
    folder: Path, tmp_path: Path, earlier: tuple[RunFolder, torch.Tensor]
) -> None:
    twin = Path(shutil.copytree(folder, tmp_path / "twin"))
    for mode in ("continue", "stack"):
        model = load(_settings(twin, start_from=str(earlier[0].adapter), start_mode=mode))
        assert torch.allclose(logits(model), earlier[1], atol=1e-4)
    make_model(seed=1).save_pretrained(twin)
    with pytest.raises(UserError, match=r"trained on .*, not on .*twin"):
        load(_settings(twin, start_from=str(earlier[0].adapter)))


def test_only_plain_lora_is_stacked_on(folder: Path, tmp_path: Path) -> None:
    settings = _settings(folder, {"variant": "dora"})
    run = _run(tmp_path / "run", settings, load(settings))
    with pytest.raises(UserError, match="lora_magnitude_vector"):
        load(_settings(folder, start_from=str(run.path), start_mode="stack"))
