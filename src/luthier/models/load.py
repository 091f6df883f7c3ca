"""Models and tokenizers by recipe: where they come from, in which number format, and what of them is trained."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier import registry
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.recipe import Adapter, Model
from luthier.run_folder import RunFolder, logger, new_folder

Precision = str


def resolve(settings: Model) -> str:
    """The folder or Hub name that transformers loads: of a registered model, a local folder, or the name itself.

    Raises:
        UserError: A folder that holds no model, or weights that are not safetensors.
    """
    name = settings.name
    if name in registry.registered("model") or "@" in name:
        return str(registry.lookup("model", name, "recipe key model.name")())
    folder = Path(name)
    if not folder.exists() and (name.startswith((".", "/", "~")) or name.startswith("embedded:")):
        known = ", ".join(registry.registered("model"))
        raise UserError(
            f"there is no model {name}",
            "recipe key model.name",
            f"name a folder that exists, a Hub model, or one of: {known}",
        )
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{name} holds no config.json",
                "recipe key model.name",
                "name a folder that save_pretrained wrote",
            )
        if not list(folder.glob("*.safetensors")):
            found = ", ".join(sorted(f.name for f in folder.glob("*.bin"))) or "no weights"
            raise UserError(
                f"{name} holds {found}; only safetensors are loaded, since pickles can run code",
                "recipe key model.name",
                "convert it once: AutoModel.from_pretrained(...).save_pretrained(..., safe_serialization=True)",
            )
    return name


def load_tokenizer(settings: Model) -> TextTokenizer:
    """The model's tokenizer, with the recipe's new tokens."""
    tokenizer = TextTokenizer.load(
        resolve(settings), revision=settings.revision, trust_remote_code=settings.trust_remote_code
    )
    return tokenizer.add_tokens(settings.new_tokens) if settings.new_tokens else tokenizer


def choose_precision(settings: Model) -> Precision:
    """``bf16`` or ``fp32``: as told, or bf16 where the processor multiplies it natively."""
    if settings.precision != "auto":
        return settings.precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"


def load_model(
    settings: Model, tokenizer_size: int, *, training: bool, seed: int
) -> PreTrainedModel | PeftModel:
    """The model as training starts with it (``training``), or as it came.

    Weights are fp32 in either precision, so that small updates are never rounded away; ``bf16`` means that matrix
    products take bf16 inputs and add up in fp32.

    Args:
        settings: The recipe's.
        tokenizer_size: Tokens that the tokenizer knows; the embedding is enlarged when the recipe adds tokens.
        training: Whether to add the adapter and freeze what is frozen.
        seed: Decides the adapter's first weights.

    Raises:
        UserError: A model that cannot be loaded whole, or names that match nothing in it.
    """
    torch.set_float32_matmul_precision("medium" if choose_precision(settings) == "bf16" else "highest")
    torch.manual_seed(seed)
    model = _pretrained(settings)
    if settings.new_tokens and tokenizer_size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(tokenizer_size, mean_resizing=True)
    if not training:
        return model.eval()
    if settings.adapter is None:
        _freeze(model, settings.freeze)
        return model.train()
    added = (
        list(range(tokenizer_size - len(settings.new_tokens), tokenizer_size))
        if settings.new_tokens
        else None
    )
    torch.manual_seed(seed)
    adapted = get_peft_model(model, _lora(model, settings.adapter, added))
    adapted.train()
    return adapted


def load_trained(settings: Model, run: RunFolder, tokenizer_size: int) -> PreTrainedModel | PeftModel:
    """The result of a run: its base with the adapter, or the model that it trained whole."""
    result = run.result()
    if result is None:
        raise UserError(
            "this run has no adapter or model yet", str(run.path), "run `luthier train` with its recipe"
        )
    if result == run.model:
        return load_model(
            settings.model_copy(update={"name": str(result), "new_tokens": []}),
            tokenizer_size,
            training=False,
            seed=0,
        )
    base = load_model(settings, tokenizer_size, training=False, seed=0)
    return PeftModel.from_pretrained(base, str(result)).eval()


def save_trained(
    model: PreTrainedModel | PeftModel, tokenizer: TextTokenizer, run: RunFolder, settings: Model
) -> Path:
    """Writes ``adapter/`` or ``model/``, which transformers and peft load as it is."""
    path = run.adapter if isinstance(model, PeftModel) else run.model
    with new_folder(path) as folder:
        if isinstance(model, PeftModel):
            model.peft_config["default"].base_model_name_or_path = resolve(settings)
        model.save_pretrained(folder)
        tokenizer.hf.save_pretrained(folder)
    return path


def chosen(model: PreTrainedModel | PeftModel, settings: Model) -> dict[str, Any]:
    """What ``auto`` became, for ``environment.json``."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return {
        "model": resolve(settings),
        "precision": choose_precision(settings),
        "attention": base.config._attn_implementation,
        "threads": torch.get_num_threads(),
        "device": str(base.device),
    }


def coverage(model: PreTrainedModel | PeftModel) -> Iterator[str]:
    """Lines that say what is trained: matches per adapter target, and parameters."""
    if isinstance(model, PeftModel):
        targets = Counter(name.rpartition(".")[2] for name in model.targeted_module_names)
        for target, count in sorted(targets.items()):
            yield f"adapter on {target}: {count} layers"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    yield f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})"


def _pretrained(settings: Model) -> PreTrainedModel:
    name = resolve(settings)
    attention = {} if settings.attention == "auto" else {"attn_implementation": settings.attention}
    if settings.trust_remote_code:
        logger.warning("model.trust_remote_code: code that comes with %s is run", name)
    try:
        AutoConfig.from_pretrained(
            name, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **attention,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        ImportError,
        SafetensorError,
        json.JSONDecodeError,
    ) as error:
        raise UserError(
            f"the model cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            f"recipe key model.name ({name})",
            "name a folder that save_pretrained wrote, or a Hub model that can be reached",
        ) from error
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing:
        raise UserError(
            f"{len(missing)} weights of the model are not in its files and would be random, first {missing[0]}",
            f"recipe key model.name ({name})",
            "name a causal language model with all its weights",
        )
    if torch.cuda.is_available():
        model = model.to("cuda")
    return model


def _lora(model: PreTrainedModel, adapter: Adapter, added_tokens: list[int] | None) -> LoraConfig:
    if adapter.targets != "all-linear":
        names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        kinds = sorted({name.rpartition(".")[2] for name in names})
        for target in adapter.targets:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                near = difflib.get_close_matches(target, kinds, n=1)
                raise UserError(
                    f"the adapter target {target!r} matches no linear layer",
                    "recipe key model.adapter.targets",
                    f"did you mean {near[0]!r}?" if near else f"layers of this model: {', '.join(kinds)}",
                )
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets,
        task_type=TaskType.CAUSAL_LM,
        trainable_token_indices=added_tokens,
    )


def _freeze(model: PreTrainedModel, patterns: list[str]) -> None:
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"{pattern!r} is no regular expression: {error}", "recipe key model.freeze", "mend it"
            ) from error
        matches = [p for name, p in model.named_parameters() if expression.search(name)]
        if not matches:
            raise UserError(
                f"{pattern!r} matches no parameter",
                "recipe key model.freeze",
                "see the names with `luthier show`, or remove it",
            )
        for parameter in matches:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("everything is frozen", "recipe key model.freeze", "leave something to train")
