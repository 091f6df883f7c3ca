"""A model to pretrain: random weights of a given shape, and a tokenizer trained on the corpus."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from luthier import registry
from luthier.errors import UserError, one_line
from luthier.recipe import Scratch
from luthier.run_folder import logger, new_folder

END_OF_TEXT = "<|endoftext|>"
_CONFIG = "recipe key model.scratch.config"


def make(settings: Scratch, texts: Iterable[str], folder: Path, seed: int) -> Path:
    """Writes a model folder that loads like any other.

    Args:
        settings: The recipe's.
        texts: The corpus; only its first ``corpus_bytes`` are read.
        folder: Where to write; there whole or not at all.
        seed: Of the weights.

    Raises:
        UserError: A shape that no model can have, or a corpus too small for the vocabulary.
    """
    _check(settings.config)
    tokenizer = train_tokenizer(texts, settings.vocab_size, settings.corpus_bytes)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = config_of(settings.config, len(tokenizer), **ids)
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise UserError(
            f"no model can be made: {one_line(error)}",
            _CONFIG,
            "mend the sizes, or take another model_type",
        ) from error
    with new_folder(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
    logger.info(
        "made a %s of %s random parameters and %s tokens",
        config.model_type,
        f"{model.num_parameters():,}",
        f"{len(tokenizer):,}",
    )
    return folder


def train_tokenizer(texts: Iterable[str], vocab_size: int, corpus_bytes: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of texts, which no text can be lost in; digits stand alone.

    Args:
        texts: The corpus.
        vocab_size: Tokens, the end-of-text token and the 256 bytes included.
        corpus_bytes: UTF-8 bytes of the corpus that are read.

    Raises:
        UserError: The corpus gives fewer tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_bytes(texts, corpus_bytes), trainer)
    if (found := tokenizer.get_vocab_size()) < vocab_size:
        raise UserError(
            f"the corpus gives {found:,} tokens, not {vocab_size:,}",
            "recipe key model.scratch.vocab_size",
            f"take more text, or set model.scratch.vocab_size={found}",
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, model_max_length=1 << 30
    )


def _first_bytes(texts: Iterable[str], most: int) -> Iterator[str]:
    left = most
    for text in texts:
        if left <= 0:
            return
        left -= len(text.encode("utf-8", "surrogatepass"))
        yield text


def _check(given: dict[str, Any]) -> None:
    registry.registered("model")  # models of our own register their types when they are imported
    kind = str(given.get("model_type"))
    try:
        known = AutoConfig.for_model(kind).to_dict()
    except (ValueError, KeyError) as error:
        raise UserError(
            f"there is no model_type {kind!r}", _CONFIG, "name one of transformers', such as llama or mamba2"
        ) from error
    if unknown := sorted(set(given) - set(known)):  # transformers would keep it and never read it
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise UserError(
            f"{kind} has no size {', '.join(unknown)}",
            _CONFIG,
            f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(sorted(known))}",
        )


def config_of(given: dict[str, Any], vocab_size: int, **ids: int | None) -> PreTrainedConfig:
    """The config of a model of these sizes.

    Raises:
        UserError: They do not go together.
    """
    _check(given)
    sizes = {key: value for key, value in given.items() if key != "model_type"}
    ids = {"vocab_size": vocab_size, "bos_token_id": None} | ids
    try:
        return AutoConfig.for_model(given["model_type"], **sizes, **ids)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"these sizes do not go together: {one_line(error)}", _CONFIG, "mend them") from error
