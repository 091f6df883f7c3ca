"""Loading by recipe: what is found, what is refused, what is trained, in which number format."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_model import save_model
from transformers import AutoModelForCausalLM

from luthier.errors import UserError
from luthier.models.coverage import coverage
from luthier.models.forward import base_model
from luthier.models.load import (
    choose_precision,
    load_model,
    load_tokenizer,
    load_trained,
    resolve,
    save_trained,
)
from luthier.recipe import Adapter, Model
from luthier.run_folder import RunFolder

NEW = ["<|open|>", "<|close|>"]
TEXT = "def add(a, b):\n    return a + b"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Model folders with and without tied embeddings."""
    place = tmp_path_factory.mktemp("models")
    return {tied: save_model(place / f"tied-{tied}", tie_word_embeddings=tied) for tied in (False, True)}


def _settings(folder: Path, **changes: Any) -> Model:
    return Model(**{"name": str(folder), "precision": "fp32", "adapter": Adapter(rank=4), **changes})


def _load(settings: Model, *, training: bool = True, seed: int = 0) -> Any:
    return load_model(settings, len(load_tokenizer(settings)), training=training, seed=seed)


def _trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _logits(model: Any, settings: Model) -> torch.Tensor:
    tokenizer = load_tokenizer(settings)
    ids = tokenizer.encode(TEXT + "".join(settings.new_tokens), first=True, control=True)
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids])).logits


def _train(model: Any, settings: Model, steps: int = 3) -> None:
    tokenizer = load_tokenizer(settings)
    ids = torch.tensor([tokenizer.encode(TEXT + "".join(settings.new_tokens) * 2, first=True, control=True)])
    optimizer = torch.optim.AdamW(_trained(model).values(), lr=1e-2)
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


# What a name means.


def test_a_registered_model_a_file_and_a_hub_name(
    folders: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from pathlib import Path\nfrom luthier.registry import model\n"
        f"@model('test-load-mine')\ndef mine():\n    '''Mine.'''\n    return Path({str(folders[True])!r})\n"
    )
    assert resolve(Model(name=f"{file}@test-load-mine")) == str(folders[True])
    assert resolve(Model(name="owner/some-model")) == "owner/some-model"
    monkeypatch.chdir(folders[True].parent)
    assert resolve(Model(name="tied-True")) == str(folders[True])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: f.rename(f.parent / "gone"), "there is no folder"),
        (lambda f: (shutil.rmtree(f), f.write_text("x")), "is a file"),
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "holds an adapter"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "pytorch_model.bin; only safetensors",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})
            ),
            "1 of 2 files of weights are not there, first model-2.safetensors",
        ),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "index.json is damaged"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "weights.bin"}}'),
            "names weights.bin; only safetensors",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"cut"), "cannot be loaded: SafetensorError"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "no-such"}'),
            "cannot be loaded: ValueError",
        ),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}'),
            "cannot be loaded: StrictDataclassFieldValidationError",
        ),
    ],
)
def test_a_folder_without_a_usable_model_is_named(
    folders: dict[bool, Path], tmp_path: Path, make: Any, said: str
) -> None:
    settings = _settings(Path(shutil.copytree(folders[True], tmp_path / "model")))
    size = len(load_tokenizer(settings))
    make(tmp_path / "model")
    with pytest.raises(UserError, match=said):
        load_model(settings, size, training=False, seed=0)


def test_an_unknown_embedded_model_and_an_unreachable_hub_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as error:
        resolve(Model(name="embedded:smollm2-135"))
    assert "did you mean 'embedded:smollm2-135m'" in error.value.fix
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        load_model(Model(name="no-such-owner/no-such-model"), 1, training=False, seed=0)
    assert "without a network" in error.value.fix


@pytest.mark.parametrize(
    ("key", "added", "said"),
    [
        ("model.norm.weight", None, "1 weights of the model are not in its files .* model.norm.weight"),
        (None, "model.extra.weight", "1 weights of the model in its files fit nowhere .* model.extra.weight"),
    ],
)
def test_weights_that_are_lacking_or_left_over_are_named(
    folders: dict[bool, Path], tmp_path: Path, key: str | None, added: str | None, said: str
) -> None:
    folder = Path(shutil.copytree(folders[False], tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights = {name: w for name, w in weights.items() if name != key} | (
        {added: torch.ones(2)} if added else {}
    )
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=said):
        _load(_settings(folder))


def test_a_tokenizer_of_another_model_is_refused(folders: dict[bool, Path]) -> None:
    settings = _settings(folders[True])
    with pytest.raises(UserError, match="knows 9999 tokens"):
        load_model(settings, 9999, training=True, seed=0)


# Adapters and freezing.


def test_adapter_covers_all_linear_layers_but_the_head(folders: dict[bool, Path]) -> None:
    model = _load(_settings(folders[False]))
    rows = {row.name: row for row in coverage(model)}
    assert {name for name, row in rows.items() if row.trained} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "all")
    }
    assert (rows["q_proj"].trained_layers, rows["q_proj"].layers) == (2, 2)
    assert rows["q_proj"].trained == 2 * 4 * (32 + 32) and rows["q_proj"].total == 2 * 32 * 32
    plain = AutoModelForCausalLM.from_pretrained(folders[False])
    assert rows["all"].total == sum(p.numel() for p in plain.parameters())
    assert rows["all"].trained == sum(p.numel() for p in _trained(model).values())


def test_named_targets_and_their_mistakes(folders: dict[bool, Path]) -> None:
    rows = coverage(
        _load(_settings(folders[True], adapter=Adapter(targets=["q_proj", "layers.1.mlp.up_proj"])))
    )
    assert {row.name: row.trained_layers for row in rows if row.trained} == {
        "q_proj": 2,
        "up_proj": 1,
        "all": 3,
    }
    for targets, said in (
        (["q_proj", "v_prj"], "'v_prj' matches no linear layer.*\n.*\n.*did you mean 'v_proj'"),
        (["self_attn"], "'self_attn' matches no linear layer"),
        (["lm_head"], "shares its weights"),
        ([], "no targets"),
    ):
        with pytest.raises(UserError, match=said):
            _load(_settings(folders[True], adapter=Adapter(targets=targets)))


def test_seed_decides_the_adapter(folders: dict[bool, Path]) -> None:
    first, same, other = (_trained(_load(_settings(folders[True]), seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_freezing(folders: dict[bool, Path]) -> None:
    model = _load(_settings(folders[True], adapter=None, freeze=["embed_tokens", r"layers\.0\."]))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all("embed_tokens" in name or "layers.0." in name for name in frozen)
    adapted = _load(_settings(folders[True], freeze=[r"layers\.0\."]))
    assert all("layers.1." in name for name in _trained(adapted))
    for changes, said in (
        ({"adapter": None, "freeze": ["embed", "layers.9"]}, "'layers.9' matches no parameter"),
        ({"adapter": None, "freeze": ["("]}, "no regular expression"),
        ({"adapter": None, "freeze": [""]}, "everything is frozen"),
        ({"adapter": None, "freeze": ["embed"], "new_tokens": NEW}, "never be trained"),
    ):
        with pytest.raises(UserError, match=said):
            _load(_settings(folders[True], **changes))


# Number formats.


def test_bf16_computes_in_bf16_and_trains_in_fp32(folders: dict[bool, Path]) -> None:
    settings = _settings(folders[True], precision="bf16")
    adapted, whole = _load(settings), _load(settings.model_copy(update={"adapter": None}))
    for model in (adapted, whole):
        assert {p.dtype for p in _trained(model).values()} == {torch.float32}
    assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {torch.bfloat16}
    exact = _logits(_load(_settings(folders[True]), training=False), settings)
    for model in (adapted, whole, _load(settings, training=False)):
        rough = _logits(model, settings)
        assert rough.dtype == torch.bfloat16  # the head, too
        error = float((rough - exact).norm() / exact.norm())
        assert 0 < error < 0.02
    # The decoder alone, as training calls it, computes alike; and a copy computes with its own weights.
    ids = torch.tensor([[5, 6, 7]])
    base = base_model(adapted)
    hidden = base.base_model(input_ids=ids).last_hidden_state
    assert torch.equal(base.get_output_embeddings()(hidden), base(input_ids=ids).logits)
    twin = copy.deepcopy(base)
    twin.get_input_embeddings().weight.data.zero_()
    assert not torch.equal(twin(input_ids=ids).logits, base(input_ids=ids).logits)


def test_auto_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for capabilities, expected in (
        ({"amx_bf16": True}, "bf16"),
        ({"avx512_bf16": True}, "bf16"),
        ({"avx2": True}, "fp32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert choose_precision(Model()) == expected
        assert choose_precision(Model(precision="fp32")) == "fp32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native in (True, False):
        emulated = lambda including_emulation=True, native=native: native or including_emulation  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", emulated)
        assert choose_precision(Model()) == ("bf16" if native else "fp32")


# New tokens.


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated"
)  # peft's, loaded without luthier
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("adapter", [Adapter(rank=4), None])
def test_new_tokens_are_trained_saved_and_loaded(
    folders: dict[bool, Path], tmp_path: Path, tied: bool, adapter: Adapter | None
) -> None:
    settings = _settings(folders[tied], new_tokens=NEW, adapter=adapter)
    tokenizer, run = load_tokenizer(settings), RunFolder(tmp_path / "run")
    run.create()
    model = _load(settings)
    old = len(tokenizer) - len(NEW)
    untrained = _load(settings, training=False)
    for layer in (untrained.get_input_embeddings(), untrained.get_output_embeddings()):
        assert torch.allclose(layer.weight[old:], layer.weight[:old].mean(0).expand(2, -1), atol=1e-6)
    before = _logits(model, settings)
    _train(model.train(), settings)
    after = _logits(model, settings)
    assert (after - before)[0, :, old:].abs().max() > 0.01
    save_trained(model, tokenizer, run, settings)
    assert torch.equal(_logits(load_trained(settings, run, len(tokenizer)), settings), after)
    # Elsewhere, without luthier.
    if adapter is None:
        plain: Any = AutoModelForCausalLM.from_pretrained(run.model)
    else:
        base = AutoModelForCausalLM.from_pretrained(folders[tied])
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        plain = PeftModel.from_pretrained(base, str(run.adapter))
        assert (run.adapter / "adapter_model.safetensors").stat().st_size < 60_000  # not the whole embedding
    assert torch.equal(_logits(plain, settings), after)


def test_tokens_that_are_not_new(folders: dict[bool, Path]) -> None:
    for tokens in (["<|im_end|>"], [*NEW, NEW[0]]):
        with pytest.raises(UserError, match="already, or that are given twice"):
            load_tokenizer(_settings(folders[True], new_tokens=tokens))


# Results.


def test_an_adapter_of_another_model_is_refused(folders: dict[bool, Path], tmp_path: Path) -> None:
    settings, run = _settings(folders[True]), RunFolder(tmp_path / "run")
    run.create()
    tokenizer = load_tokenizer(settings)
    with pytest.raises(UserError, match="no adapter or model yet"):
        load_trained(settings, run, len(tokenizer))
    save_trained(_load(settings), tokenizer, run, settings)
    shallower = str(save_model(tmp_path / "shallower", num_hidden_layers=1))
    with pytest.raises(UserError, match="14 tensors of the adapter fit nothing in the model"):
        load_trained(settings.model_copy(update={"name": shallower}), run, len(tokenizer))
    (run.adapter / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="adapter cannot be loaded"):
        load_trained(settings, run, len(tokenizer))


def test_adapters_of_mamba_leave_out_the_layers_that_would_never_use_them(tmp_path: Path) -> None:
    folder = tiny_trainer.save_folder(tmp_path / "mamba", tiny_trainer.model("mamba"))
    rows = coverage(_load(_settings(folder)))
    assert {row.name for row in rows if row.trained} == {"in_proj", "x_proj", "all"}
    with pytest.raises(UserError, match=r"the adapter cannot be made: .*out_proj"):
        _load(_settings(folder, adapter=Adapter(targets=["out_proj"])))


def test_the_head_gets_hidden_states_without_gaps(folders: dict[bool, Path]) -> None:
    """Of the last two places of two rows torch would copy the weights for each row: a pass through 86 places took twice as long."""
    model = _load(_settings(folders[False]), training=False)
    seen: list[bool] = []
    model.get_output_embeddings().register_forward_pre_hook(
        lambda _, given: seen.append(given[0].is_contiguous())
    )
    model(torch.ones(2, 5, dtype=torch.int64), logits_to_keep=2)
    assert seen == [True]
