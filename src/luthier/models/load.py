"""Models and tokenizers by recipe: where they come from, in which number format, and what of them is trained.

Number formats. ``fp32`` is fp32 throughout. With ``bf16``, matrix products run in bf16 (autocast) and whatever is
trained is kept in fp32, so that small updates are never rounded away; weights that nothing trains are kept in bf16.
Figures: docs/decisions/precision.md.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from luthier import registry
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError, one_line
from luthier.models import bigs as bigs  # so that transformers' Auto classes know it
from luthier.models import start
from luthier.models.adapter import (
    add_adapter,
    save_adapter,
    stack_adapter,
    target_names,
    with_adapter,
)
from luthier.models.classifier import head_of, pad_id, settle_head
from luthier.models.forward import base_model
from luthier.models.pretrained import UNLOADABLE, WHERE, fit_to_tokenizer, pretrained, warn_of_code
from luthier.recipe import Classifier, Model
from luthier.run_folder import RunFolder, new_folder, write_json

Precision = Literal["fp32", "bf16"]


def resolve(settings: Model) -> str:
    """The folder or Hub name that transformers loads: of a registered model, a local folder, or the name itself.

    With ``start_mode=merge`` it is the folder of the model with the earlier adapter in it, written when first asked for.

    Raises:
        UserError: A name that is not known, or a folder that holds no model, or weights that are not safetensors.
    """
    if settings.start_mode == "merge" and settings.start_from:
        from luthier.models.merge import merged_start  # loads models itself

        return str(merged_start(settings))
    if settings.start_from:
        # An adapter that was trained on a merged start needs that one as its base.
        _, earlier = start.find(settings)
        if earlier.start_from and earlier.name == settings.name:
            return resolve(earlier)
    name = settings.name
    if name in registry.registered("model") or ".py@" in name:
        return str(_checked(Path(registry.lookup("model", name, WHERE)())))
    folder = Path(name).expanduser()
    if folder.exists():
        return str(_checked(folder.resolve()))
    if ":" in name:
        registry.lookup("model", name, WHERE)  # no Hub name has a colon: this fails, with the nearest name
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        known = ", ".join(registry.registered("model"))
        raise UserError(
            f"there is no folder {name}",
            WHERE,
            f"name a folder that exists, a Hub model (owner/name), or one of: {known}",
        )
    return name


def _checked(folder: Path) -> Path:
    """The folder, if a causal language model can be loaded from it without running a pickle."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is a file", WHERE, "name the folder that holds config.json and the weights"
        )
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds an adapter, not a model",
            WHERE,
            "name the model that it was made for, or write both as one model with `luthier merge RUN OUT`",
        )
    if not (folder / "config.json").is_file():
        found = ", ".join(sorted(f.name for f in folder.iterdir())[:5]) or "nothing"
        raise UserError(
            f"{folder} holds no config.json, but {found}", WHERE, "name a folder that save_pretrained wrote"
        )
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(f.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for f in folder.glob(kind))
        holds = ", ".join(pickles[:3]) or "no weights"
        raise UserError(
            f"{folder} holds {holds}; only safetensors are loaded, since pickles can run code",
            WHERE,
            "convert it once, where you trust it: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)",
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{index.name} is damaged: {error}", str(index), "copy or download the model again"
            ) from error
        if others := sorted(shard for shard in shards if not shard.endswith(".safetensors")):
            raise UserError(
                f"{index.name} names {others[0]}; only safetensors are loaded, since pickles can run code",
                str(index),
                "copy or download the model again",
            )
        if lacking := sorted(shard for shard in shards if not (folder / shard).is_file()):
            raise UserError(
                f"{len(lacking)} of {len(shards)} files of weights are not there, first {lacking[0]}",
                str(folder),
                "copy or download the model again",
            )
    return folder


def load_tokenizer(settings: Model) -> TextTokenizer:
    """The model's tokenizer, with the recipe's new tokens behind all others.

    Raises:
        UserError: No tokenizer, or a new token that it has already.
    """
    name = resolve(settings)
    if settings.trust_remote_code:
        warn_of_code(name)
    tokenizer = TextTokenizer.load(
        name, revision=settings.revision, trust_remote_code=settings.trust_remote_code
    )
    new = settings.new_tokens
    if not new:
        return tokenizer
    where = "recipe key model.new_tokens"
    if known := sorted({token for token in new if token in tokenizer.hf.get_vocab() or new.count(token) > 1}):
        raise UserError(
            f"tokens that the tokenizer has already, or that are given twice: {', '.join(map(repr, known))}",
            where,
            "leave them out: only new ones are added and trained",
        )
    size = len(tokenizer)
    tokenizer = tokenizer.add_tokens(new)
    ids = [tokenizer.hf.convert_tokens_to_ids(token) for token in new]
    if ids != list(range(size, size + len(new))):
        raise UserError(
            f"the new tokens get the ids {ids}, not those behind the {size} known ones",
            where,
            "this tokenizer has gaps between its ids; add the tokens to the model folder itself",
        )
    return tokenizer


def choose_precision(settings: Model) -> Precision:
    """``bf16`` or ``fp32``: as told, or bf16 where the processor multiplies it natively."""
    if settings.precision != "auto":
        return settings.precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # torch before 2.10 does not say what the processor can do.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"


def load_model(
    settings: Model, tokenizer_size: int, *, training: bool, seed: int, on_cpu: bool = False
) -> PreTrainedModel | PeftModel:
    """The model as training starts with it (``training``), or as it came.

    Args:
        settings: The recipe's.
        tokenizer_size: Tokens that the tokenizer knows, new ones included, which are the last.
        training: Whether to add the adapter and freeze what is frozen.
        seed: Set as torch's own, from which the adapter's first weights and later dropout are drawn.
        on_cpu: Leave it on the processor, GPU or not.

    Raises:
        UserError: A model that cannot be loaded whole, or names that match nothing in it.
    """
    bf16 = choose_precision(settings) == "bf16"
    masters = training and settings.adapter is None
    base, fresh_head = pretrained(
        resolve(settings), settings, torch.bfloat16 if bf16 and not masters else torch.float32
    )
    if torch.cuda.is_available() and not on_cpu and settings.quantisation is None:
        base.to("cuda")  # type: ignore[arg-type] # its decorator hides the argument
    torch.manual_seed(seed)
    fit_to_tokenizer(base, tokenizer_size, len(settings.new_tokens))
    if isinstance(head := base.get_output_embeddings(), nn.Module):
        head.register_forward_pre_hook(_contiguous)
    if isinstance(settings, Classifier):
        settle_head(base, settings.head, load_tokenizer(settings), fresh=fresh_head)
    model: PreTrainedModel | PeftModel = base
    if training:
        if settings.adapter is not None:
            model = _adapted(base, settings, range(tokenizer_size - len(settings.new_tokens), tokenizer_size))
        _freeze(model, settings)
    if bf16:
        _compute_in_bf16(model)
    return model.train(training)


def without_weights(
    settings: Model, config: PreTrainedConfig, precision: Precision
) -> PreTrainedModel | PeftModel:
    """The model as training starts with it, on torch's meta device: its shapes, formats and what is trained, no values.

    Raises:
        UserError: Names that match nothing in it.
    """
    new = len(settings.new_tokens)
    low = precision == "bf16" and settings.adapter is not None
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config,
            dtype=torch.bfloat16 if low else torch.float32,
            trust_remote_code=settings.trust_remote_code,
        )
        size = config.get_text_config().vocab_size + new
        fit_to_tokenizer(model, size, new)
        if settings.adapter is not None:
            model = add_adapter(model, settings.adapter, list(range(size - new, size)))
    _freeze(model, settings)
    made: PreTrainedModel | PeftModel = model.train()
    return made


def _adapted(base: PreTrainedModel, settings: Model, new_ids: range) -> PeftModel:
    """The base with the adapter that is trained: a new one, an earlier one, or a new one beside an earlier one."""
    assert settings.adapter is not None
    if not settings.start_from or settings.start_mode == "merge":
        return add_adapter(base, settings.adapter, list(new_ids))
    earlier = earlier_adapter(settings)
    if settings.start_mode == "continue":
        targets = target_names(base, settings.adapter)
        model = with_adapter(base, earlier, dropout=settings.adapter.dropout, trained=True)
        start.check_same(model, earlier, settings.adapter, targets)
        return model
    return stack_adapter(with_adapter(base, earlier), settings.adapter)


def load_untrained(settings: Model, tokenizer_size: int) -> PreTrainedModel | PeftModel:
    """The model that training starts from: what base figures are of. An earlier adapter that is gone on from belongs to it.

    Raises:
        UserError: It cannot be loaded.
    """
    model = load_model(settings, tokenizer_size, training=False, seed=0)
    if not starts_adapted(settings):
        return model
    assert isinstance(model, PreTrainedModel)
    return _with_adapter(model, earlier_adapter(settings), settings)


def earlier_adapter(settings: Model) -> Path:
    """The folder of the adapter that training goes on from, proven to be made for this model and tokenizer.

    Raises:
        UserError: It belongs to others.
    """
    return start.adapter_folder(settings, resolve(settings), load_tokenizer(settings))


def starts_adapted(settings: Model) -> bool:
    """Whether training starts from a base model and an earlier adapter, so that the base alone is no comparison."""
    return bool(settings.start_from) and settings.start_mode != "merge"


def _with_adapter(base: PreTrainedModel, adapter: Path, settings: Model) -> PeftModel:
    model = with_adapter(base, adapter)
    if choose_precision(settings) == "bf16":
        _compute_in_bf16(model)
    return model


def load_classifier(settings: Model) -> PreTrainedModel:
    """A model with a head that labels rows, in fp32, to look at.

    Raises:
        UserError: It cannot be loaded.
    """
    name = resolve(settings)
    try:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            name, revision=settings.revision, trust_remote_code=settings.trust_remote_code,
            dtype=torch.float32, use_safetensors=True,
        )  # fmt: skip
    except UNLOADABLE as error:
        raise UserError(
            f"the model cannot be loaded: {one_line(error)}",
            f"{WHERE} ({name})",
            "name a model that labels rows",
        ) from error
    return model


def load_trained(settings: Model, run: RunFolder, tokenizer_size: int) -> PreTrainedModel | PeftModel:
    """The result of a run, for evaluation: its base with the adapter, or the model that it trained whole.

    Raises:
        UserError: Nothing was trained, or the adapter was made for another model.
    """
    result = run.result()
    if result is None:
        raise UserError(
            "this run has no adapter or model yet", str(run.path), "run `luthier train` with its recipe"
        )
    if result == run.model:
        plain = settings.model_copy(
            update={"name": str(result), "revision": None, "new_tokens": [], "start_from": None}
        )
        return load_model(plain, tokenizer_size, training=False, seed=0)
    base = load_model(settings, tokenizer_size, training=False, seed=0)
    assert isinstance(base, PreTrainedModel)
    return _with_adapter(base, result, settings)


def save_trained(
    model: PreTrainedModel | PeftModel,
    tokenizer: TextTokenizer,
    run: RunFolder,
    settings: Model,
    state: dict[str, Tensor] | None = None,
) -> Path:
    """Writes ``adapter/`` or ``model/``, which transformers and peft load as it is.

    ``state`` holds the tensors of a model whose own are in shards.

    New tokens are in the adapter as rows of the embedding: before it is loaded elsewhere, the base model needs
    ``resize_token_embeddings(len(tokenizer))``. ``luthier merge`` writes a folder that needs nothing.
    """
    path = run.adapter if isinstance(model, PeftModel) else run.model
    with new_folder(path) as folder:
        if isinstance(model, PeftModel):
            save_adapter(model, folder, resolve(settings), state)
        else:
            model.save_pretrained(folder, state_dict=state)
        head = head_of(base_model(model))
        if head is not None:  # an adapter's base does not know the names, nor perhaps what pads
            tokenizer.hf.pad_token = tokenizer.hf.convert_ids_to_tokens(pad_id(tokenizer))
            write_json(folder / "labels.json", {"names": list(head.names), "several": head.several})
        tokenizer.save(folder)
    return path


def chosen(model: PreTrainedModel | PeftModel, settings: Model) -> dict[str, Any]:
    """What ``auto`` became, for ``environment.json``."""
    base = base_model(model)
    return {
        "model": resolve(settings),
        "precision": choose_precision(settings),
        "attention": base.config._attn_implementation,
        "threads": torch.get_num_threads(),
        "device": str(base.device),
    }


def _freeze(model: PreTrainedModel | PeftModel, settings: Model) -> None:
    where = "recipe key model.freeze"
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for pattern in settings.freeze:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UserError(f"{pattern!r} is no regular expression: {error}", where, "mend it") from error
        matches = [name for name in trained if expression.search(name)]
        if not matches:
            raise UserError(
                f"{pattern!r} matches no parameter that would be trained",
                where,
                f"names look like {next(iter(trained))}; search is anywhere in the name",
            )
        for name in matches:
            trained[name].requires_grad_(False)
    if not any(p.requires_grad for p in trained.values()):
        raise UserError("everything is frozen", where, "leave something to train")
    embedding = base_model(model).get_input_embeddings()
    if settings.new_tokens and not any(p.requires_grad for p in embedding.parameters()):
        raise UserError(
            "the embedding is frozen, so that the new tokens would never be trained",
            where,
            "leave the embedding out",
        )


def _contiguous(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Hidden states without gaps: of the last places of several rows torch makes a product for each row, with a copy of all weights."""
    return (given[0].contiguous(), *given[1:])


def _compute_in_bf16(model: PreTrainedModel | PeftModel) -> None:
    """Puts the forward passes of the model, its decoder and its head under autocast, whoever calls them."""
    base = base_model(model)
    base.product_dtype = torch.bfloat16  # type: ignore[assignment] # typed as a tensor or layer
    for module in (base, base.base_model, base.get_output_embeddings()):
        if isinstance(module, nn.Module):
            # Bound to the module, so that a copy of it calls itself and not the original.
            module.forward = MethodType(_autocast(type(module)), module)


def _autocast(kind: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(self.parameters()).device.type, torch.bfloat16):
            return kind.forward(self, *args, **kwargs)

    return forward
