"""The adapter of an earlier run that a recipe goes on from: where it is, and whether it belongs to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftModel

from luthier import recipe_file, stages
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.models.adapter import WEIGHTS, lora_layers
from luthier.recipe import FROM_WEIGHTS, Adapter, Model
from luthier.run_folder import RunFolder, hash_folder, hash_value

_KEY = "recipe key model.start_from"


def find(settings: Model) -> tuple[Path, Model]:
    """The folder of the adapter, and the model section that it was trained with: its run's, or else this recipe's.

    Raises:
        UserError: There is no adapter.
    """
    assert settings.start_from is not None
    place = Path(settings.start_from).expanduser()
    run = RunFolder(place.parent if place.name == "adapter" else place)
    adapter = place if (place / "adapter_config.json").is_file() else run.adapter
    if not (adapter / "adapter_config.json").is_file():
        whole = run.model.is_dir()
        raise UserError(
            f"{place} was trained whole: it has no adapter" if whole else f"{place} holds no adapter",
            _KEY,
            f"set model.name={run.model} and leave start_from out"
            if whole
            else "name the folder of a run that trained an adapter, or a folder with adapter_config.json",
        )
    if not (adapter / WEIGHTS).is_file():
        raise UserError(
            f"{adapter} holds no {WEIGHTS}; only safetensors are loaded, since pickles can run code",
            _KEY,
            "save the adapter again with peft's save_pretrained",
        )
    if adapter == run.adapter and run.recipe.is_file():
        return adapter, stages.settled(recipe_file.load(run.recipe), run).model
    return adapter, settings.model_copy(update={"start_from": None})


def start_hash(settings: Model) -> str:
    """SHA-256 of the adapter that training goes on from; nothing if it begins anew."""
    return hash_folder(find(settings)[0], (WEIGHTS, "adapter_config.json")) if settings.start_from else ""


def adapter_folder(settings: Model, base: str, tokenizer: TextTokenizer) -> Path:
    """The folder of the adapter, proven to be made for this model.

    Args:
        settings: Of this run.
        base: Folder or Hub name of its base model.
        tokenizer: Its own.

    Raises:
        UserError: It belongs to another base model, other weights of it, or another tokenizer.
    """
    adapter, earlier = find(settings)
    config = _config(adapter)
    own = config.get("base_model_name_or_path")
    if not _same_base(own, base):
        raise UserError(
            f"the adapter was trained on {own}, not on {base}",
            _KEY,
            f"set model.name={own}; if both are the same model, say so in {adapter / 'adapter_config.json'}",
        )
    if earlier.quantisation != settings.quantisation:
        raise UserError(
            f"the adapter was trained on weights in {earlier.quantisation or 'full precision'}, this recipe has "
            f"{settings.quantisation or 'full precision'}",
            _KEY,
            f"set model.quantisation={earlier.quantisation or 'null'}, or model.start_mode=merge",
        )
    if (adapter / "tokenizer.json").is_file() and not _same_tokenizer(adapter, settings, tokenizer):
        raise UserError(
            "the adapter was trained with another tokenizer, other added tokens or another chat template",
            _KEY,
            f"take the same model.new_tokens and chat template as it did ({adapter / 'tokenizer_config.json'})",
        )
    begins = config.get("init_lora_weights", True)
    if isinstance(begins, str) and begins.partition("_")[0] in (*FROM_WEIGHTS, "corda", "loftq", "lora_ga"):
        raise UserError(
            f"the adapter was saved for base weights that init_lora_weights={begins!r} changes",
            _KEY,
            "save it with peft's path_initial_model_for_weight_conversion, for the base model as it is",
        )
    return adapter


def _same_tokenizer(adapter: Path, settings: Model, tokenizer: TextTokenizer) -> bool:
    """Whether texts get the same ids; what ends a generation, which adapters of others do not say, is the base model's."""
    saved = TextTokenizer.load(adapter, trust_remote_code=settings.trust_remote_code)
    return TextTokenizer(saved.hf, sorted(tokenizer.stop_ids)).hash() == tokenizer.hash()


def check_same(model: PeftModel, adapter: Path, settings: Adapter, targets: set[str]) -> None:
    """An adapter that is trained on is what the recipe says.

    Args:
        model: With the adapter.
        adapter: Its folder.
        settings: The recipe's.
        targets: Layers that these settings adapt.

    Raises:
        UserError: The recipe describes another one.
    """
    has = _config(adapter)
    saved = {
        "variant": "dora" if has.get("use_dora") else "rslora" if has.get("use_rslora") else "lora",
        "rank": has.get("r"),
        "alpha": has.get("lora_alpha"),
        "rank_pattern": has.get("rank_pattern") or {},
        "alpha_pattern": has.get("alpha_pattern") or {},
    }
    wrong = {key: value for key, value in saved.items() if value != getattr(settings, key)}
    if (layers := set(lora_layers(model))) != targets:
        wrong["targets"] = sorted({name.rpartition(".")[2] for name in layers})
    if wrong:
        said = "; ".join(f"its {key} is {json.dumps(value)}" for key, value in wrong.items())
        raise UserError(
            f"the adapter is not what the recipe says: {said}",
            "recipe key model.adapter",
            " ".join(f"model.adapter.{key}={json.dumps(value)}" for key, value in wrong.items())
            + ", or model.start_mode=stack for a new one beside it",
        )


def identity(settings: Model) -> str:
    """SHA-256 of an earlier adapter and of the model that it was trained with: what a merged model is made of."""
    _, earlier = find(settings)
    return hash_value([start_hash(settings), earlier.model_dump(mode="json")])


def _same_base(own: Any, base: str) -> bool:
    if own == base:
        return True
    if not own or not (Path(own).is_dir() and Path(base).is_dir()):
        return False
    return hash_folder(Path(own), ("*.safetensors",)) == hash_folder(Path(base), ("*.safetensors",))


def _config(adapter: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"no object, but {type(config).__name__}")
        return config
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"adapter_config.json is damaged: {error}", str(adapter), "copy the adapter again"
        ) from error
