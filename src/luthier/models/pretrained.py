"""A pretrained model as it came, proven to be whole; its weights in 4 bits if wanted, and room for new tokens."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from luthier.errors import UserError, one_line
from luthier.models import mamba, rope
from luthier.models.classifier import HEAD
from luthier.recipe import Classifier, Head, Model
from luthier.run_folder import logger

WHERE = "recipe key model.name"
# What transformers raises over a model that is not there, damaged, or not for this machine.
UNLOADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError),
    *(SafetensorError, StrictDataclassError),
)


@functools.cache
def warn_of_code(name: str) -> None:
    """Says, once a process, that code which comes with a model or its tokenizer is run."""
    logger.warning("model.trust_remote_code: code that comes with %s is run", name)


def pretrained(name: str, settings: Model, dtype: torch.dtype) -> tuple[PreTrainedModel, bool]:
    """The model as it came, and whether its head for classes is not in its files.

    Args:
        name: Folder or Hub name, as ``load.resolve`` gives it.
        settings: The recipe's.
        dtype: Of its weights; of those in 4 bits the one that products are computed in.

    Raises:
        UserError: It cannot be loaded, or its files hold fewer weights than it has, or others.
    """
    where = f"{WHERE} ({name})"
    attention = {} if settings.attention == "auto" else {"attn_implementation": settings.attention}
    quantised = _quantised(dtype) if settings.quantisation else {}
    head = settings.head if isinstance(settings, Classifier) else None
    kind: Any = AutoModelForCausalLM if head is None else AutoModelForSequenceClassification
    if settings.trust_remote_code:
        warn_of_code(name)
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
    except UNLOADABLE as error:
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
def fit_to_tokenizer(model: PreTrainedModel, tokenizer_size: int, num_new: int) -> None:
    """Makes room for new tokens, whose rows become the mean of all others.

    The mean leaves what the model predicts nearly as it was; a random row would not.

    Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models".
    """
    rows = _matrix(model.get_input_embeddings()).shape[0]
    if tokenizer_size - num_new > rows:
        raise UserError(
            f"the tokenizer knows {tokenizer_size - num_new} tokens, but the model's embedding has {rows} rows",
            WHERE,
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
