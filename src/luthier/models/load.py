"""Models and tokenizers by recipe: where they come from, in which number format, and what of them is trained.

Number formats. ``fp32`` is fp32 throughout. With ``bf16``, matrix products run in bf16 (autocast) and whatever is
trained is kept in fp32, so that small updates are never rounded away; weights that nothing trains are kept in bf16.
Figures: docs/decisions/precision.md.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from luthier import registry
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError, one_line
from luthier.models import bigs as bigs  # so that transformers' Auto classes know it
from luthier.models import mamba, rope, start
from luthier.models.adapter import (
    add_adapter,
    save_adapter,
    stack_adapter,
    target_names,
    with_adapter,
)
from luthier.models.classifier import HEAD, head_of, pad_id, settle_head
from luthier.models.forward import base_model
from luthier.recipe import Classifier, Head, Model
from luthier.run_folder import RunFolder, logger, new_folder, write_json

Precision = Literal["fp32", "bf16"]

_NAME = "recipe key model.name"


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
        return str(_checked(Path(registry.lookup("model", name, _NAME)())))
    folder = Path(name).expanduser()
    if folder.exists():
        return str(_checked(folder.resolve()))
    if ":" in name:
        registry.lookup("model", name, _NAME)  # no Hub name has a colon: this fails, with the nearest name
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        known = ", ".join(registry.registered("model"))
        raise UserError(
            f"there is no folder {name}",
            _NAME,
            f"name a folder that exists, a Hub model (owner/name), or one of: {known}",
        )
    return name


def _checked(folder: Path) -> Path:
    """The folder, if a causal language model can be loaded from it without running a pickle."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is a file", _NAME, "name the folder that holds config.json and the weights"
        )
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds an adapter, not a model",
            _NAME,
            "name the model that it was made for, or write both as one model with `luthier merge RUN OUT`",
        )
    if not (folder / "config.json").is_file():
        found = ", ".join(sorted(f.name for f in folder.iterdir())[:5]) or "nothing"
        raise UserError(
            f"{folder} holds no config.json, but {found}", _NAME, "name a folder that save_pretrained wrote"
        )
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(f.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for f in folder.glob(kind))
        holds = ", ".join(pickles[:3]) or "no weights"
        raise UserError(
            f"{folder} holds {holds}; only safetensors are loaded, since pickles can run code",
            _NAME,
            "convert it once, where you trust it: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)",
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{index.name} is damaged: {error}", str(index), "copy or download the model again"
            ) from error
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
    tokenizer = TextTokenizer.load(
        resolve(settings), revision=settings.revision, trust_remote_code=settings.trust_remote_code
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
    base, fresh_head = _pretrained(settings, torch.bfloat16 if bf16 and not masters else torch.float32)
    if torch.cuda.is_available() and not on_cpu and settings.quantisation is None:
        base.to("cuda")  # type: ignore[arg-type] # its decorator hides the argument
    torch.manual_seed(seed)
    _fit_to_tokenizer(base, tokenizer_size, len(settings.new_tokens))
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
        _fit_to_tokenizer(model, size, new)
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
    earlier = start.adapter_folder(settings, resolve(settings), load_tokenizer(settings).hash())
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
    earlier = start.adapter_folder(settings, resolve(settings), load_tokenizer(settings).hash())
    return _with_adapter(model, earlier, settings)


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
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(
            f"the model cannot be loaded: {one_line(error)}",
            f"{_NAME} ({name})",
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
        tokenizer.hf.save_pretrained(folder)
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


@dataclass(frozen=True, slots=True)
class Coverage:
    """What of all layers of one name is trained.

    Attributes:
        name: Last part of the layers' names, such as ``q_proj``.
        trained_layers, layers: How many of them have anything that is trained, and how many there are.
        trained: Parameters that are trained, the adapter's own included.
        total: Parameters of the layers themselves, without an adapter's.
    """

    name: str
    trained_layers: int
    layers: int
    trained: int
    total: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.trained_layers} of {self.layers} layers, "
            f"{self.trained:,} trained parameters for {self.total:,} weights"
        )


def coverage(model: PreTrainedModel | PeftModel) -> list[Coverage]:
    """One line for each name of a layer, and a last one (``all``) for the whole model; tied weights count once."""
    layers: dict[str, dict[str, list[int]]] = {}
    for name, parameter in model.named_parameters():
        adapters = re.search(r"\.(lora_|trainable_tokens_|modules_to_save\.)", name)
        layer = name[: adapters.start()] if adapters else name.rpartition(".")[0]
        layer = re.sub(r"(\.(base_layer|token_adapter|original_module))+$", "", layer)  # peft's wrappers
        sums = layers.setdefault(layer.rpartition(".")[2], {}).setdefault(layer, [0, 0])
        sums[0] += parameter.numel() if parameter.requires_grad else 0
        sums[1] += 0 if adapters else num_weights(parameter)
    rows = [
        Coverage(
            name, sum(t > 0 for t, _ in sums.values()), len(sums), *map(sum, zip(*sums.values(), strict=True))
        )
        for name, sums in sorted(layers.items())
    ]
    sums = [
        sum(getattr(row, key) for row in rows) for key in ("trained_layers", "layers", "trained", "total")
    ]
    return [*rows, Coverage("all", *sums)]


def num_weights(parameter: Tensor) -> int:
    """Weights that a parameter stands for; of those in 4 bits a byte holds two."""
    quantised = getattr(parameter, "quant_state", None)
    return quantised.shape.numel() if quantised is not None else parameter.numel()


def _pretrained(settings: Model, dtype: torch.dtype) -> tuple[PreTrainedModel, bool]:
    """The model as it came, and whether its head for classes is not in its files."""
    name = resolve(settings)
    where = f"{_NAME} ({name})"
    attention = {} if settings.attention == "auto" else {"attn_implementation": settings.attention}
    quantised = _quantised(dtype) if settings.quantisation else {}
    head = settings.head if isinstance(settings, Classifier) else None
    kind: Any = AutoModelForCausalLM if head is None else AutoModelForSequenceClassification
    if settings.trust_remote_code:
        logger.warning("model.trust_remote_code: code that comes with %s is run", name)
    try:
        config: dict[str, Any] = {}
        if settings.rope is not None:
            config["config"] = AutoConfig.from_pretrained(
                name, revision=settings.revision, trust_remote_code=settings.trust_remote_code
            )
            rope.scale(config["config"], settings.rope)
        loaded: Any = kind.from_pretrained(
            name,
            **config,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **attention,
            **({"dtype": dtype} | quantised),
            **(_classes(head) if head else {}),
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        fix = "copy or download it again, or name another model"
        if not Path(name).is_dir():
            fix = (
                "check the name; without a network (or behind HF_HUB_OFFLINE), name a local folder or embedded:smollm2-135m; "
                "gated models need `hf auth login`"
            )
        elif isinstance(error, ImportError):
            fix = "install what it names, or set model.attention=auto"
        raise UserError(f"the model cannot be loaded: {one_line(error)}", where, fix) from error
    model: PreTrainedModel
    model, info = loaded
    # A language model's own head makes room for the one that gives classes.
    expected = {"missing_keys": {f"{HEAD}.weight"}, "unexpected_keys": {"lm_head.weight"}} if head else {}
    # transformers fills what is missing with random numbers and leaves out what it does not know, with a warning.
    for kind_of_key, meaning in (
        ("missing_keys", "are not in its files and would be random"),
        ("mismatched_keys", "have another shape in its files and would be random"),
        ("unexpected_keys", "in its files fit nowhere and would be left out"),
        ("error_msgs", "could not be read"),
    ):
        if keys := sorted(set(map(str, info.get(kind_of_key) or ())) - expected.get(kind_of_key, set())):
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(
                f"{len(keys)} weights of the model {meaning}: {', '.join(keys[:3])}{more}",
                where,
                f"name a causal language model whose weights belong to {type(model).__name__}",
            )
    if quantised:
        _settle_quantised(model, dtype)
    mamba.speed_up(model)
    return model, bool(info["missing_keys"])


def _classes(head: Head) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for a head of these classes."""
    return {
        "id2label": dict(enumerate(head.names)),
        "label2id": {name: number for number, name in enumerate(head.names)},
        "problem_type": "multi_label_classification" if head.several else "single_label_classification",
    }


def _quantised(dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for nf4 with double quantisation; weights are rounded from fp32, whatever computes.

    Source: QLoRA, Dettmers et al. 2023, arXiv:2305.14314; bitsandbytes.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "weights in 4 bits need bitsandbytes, which is not installed",
            "recipe key model.quantisation",
            "pip install 'luthier[quantised]'",
        )
    return {
        "dtype": torch.float32,
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # Mamba's own code multiplies with the weight of dt_proj, past the layer.
            llm_int8_skip_modules=["lm_head", HEAD, "dt_proj"],
        ),
        "device_map": {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"},
    }


def _settle_quantised(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Weights that are not in 4 bits get the format of all others; those that are keep theirs.

    On processors with AVX-512 bf16 bitsandbytes (0.50) repacks a layer's weights at its first forward pass in evaluation
    mode, for a product without gradients, and takes that one in training from then on: nothing below it would learn.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def _fit_to_tokenizer(model: PreTrainedModel, tokenizer_size: int, num_new: int) -> None:
    """Makes room for new tokens, whose rows become the mean of all others.

    The mean leaves what the model predicts nearly as it was; a random row would not.

    Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models".
    """
    rows = _matrix(model.get_input_embeddings()).shape[0]
    if tokenizer_size - num_new > rows:
        raise UserError(
            f"the tokenizer knows {tokenizer_size - num_new} tokens, but the model's embedding has {rows} rows",
            _NAME,
            "take the tokenizer that belongs to the model, or list the added tokens under model.new_tokens",
        )
    if not num_new:
        return
    if tokenizer_size > rows:
        model.resize_token_embeddings(tokenizer_size, mean_resizing=False)
    old = tokenizer_size - num_new
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None:  # tied layers share one tensor: written twice, with the same mean
            weight = _matrix(layer)
            weight[old:tokenizer_size] = weight[:old].float().mean(0).to(weight.dtype)


def _matrix(layer: nn.Module) -> Tensor:
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight matrix")
    return weight


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
