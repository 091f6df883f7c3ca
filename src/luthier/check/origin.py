"""Where a model's parameters come from: read from the files that it names, or drawn at random when it was made.

transformers fills what it does not find in a model's files with random numbers, and leaves out what fits nowhere.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from luthier.models.forward import base_model

# Numbers of a parameter that are looked at, spread over all of it; the standard error of their kurtosis is 0.015.
_MOST_NUMBERS = 100_000
# Fewer numbers have no shape that could be told from another: the standard error of their kurtosis is above 0.15.
_FEWEST_NUMBERS = 1_000
# Standard errors by which the kurtosis of random numbers may be off; one matrix of 2 million would be, by chance.
_MOST_ERRORS = 5

_NORMAL, _UNIFORM = 0.0, -1.2


def plain_name(name: str) -> str:
    """A parameter's name in the base model's own files, without what peft puts around it."""
    name = re.sub(r"^base_model\.model\.", "", name)
    return re.sub(r"\.(base_layer|original_module|modules_to_save\.[^.]+|token_adapter)(?=\.|$)", "", name)


def is_added(name: str) -> bool:
    """Whether a parameter is an adapter's own, so that it lies in none of the model's files."""
    return (
        re.search(r"\.(lora_\w+|trainable_tokens_\w+|ia3_\w+|vera_\w+|hada_\w+|oft_\w+|prompt_\w+)", name)
        is not None
    )


def files(model: PreTrainedModel | PeftModel) -> list[Path]:
    """The safetensors files in the local folder that the model names as its origin; none if it names no such folder."""
    folder = base_model(model).config.name_or_path
    return sorted(Path(folder).glob("model*.safetensors")) if folder and Path(folder).is_dir() else []


def stored(model: PreTrainedModel | PeftModel) -> dict[str, Path]:
    """The names of all tensors in these files, and where each one lies."""
    found: dict[str, Path] = {}
    for path in files(model):
        try:
            with safe_open(path, "pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError):  # what is damaged says nothing of where parameters come from
            continue
    return found


def unloaded(model: PreTrainedModel | PeftModel) -> tuple[list[str], list[str]]:
    """Parameters that no file has and that look as if they had just been drawn, and tensors that fit nowhere.

    Both signs are needed: transformers renames and joins some tensors as it reads them.

    Returns:
        Names of the model's parameters, and names in the files; both empty if there are no files to compare with.
    """
    there = {_bare(name, model) for name in stored(model)}
    if not there:
        return [], []
    own = {name: p for name, p in model.named_parameters(remove_duplicate=False) if not is_added(name)}
    loaded = {
        p for n, p in own.items() if _bare(plain_name(n), model) in there
    }  # tied weights by one of their names
    lacking = [n for n, p in own.items() if p not in loaded and looks_fresh(p)]
    known = {_bare(plain_name(name), model) for name in own} | {
        _bare(n, model) for n, _ in model.named_buffers()
    }
    return list(dict.fromkeys(map(plain_name, lacking))), sorted(there - known)


def _bare(name: str, model: PreTrainedModel | PeftModel) -> str:
    """A name without the prefix of the decoder, which files of a bare decoder lack."""
    return name.removeprefix(f"{base_model(model).base_model_prefix}.")


@torch.no_grad()
def looks_fresh(parameter: Tensor) -> bool:
    """Whether the numbers are as they are drawn: normal or uniform about 0 by their kurtosis, or all the same.

    Training makes a few numbers large, which the kurtosis of many shows; ones and zeros of norms and biases it makes
    differ. Of few numbers no shape can be told, and they are taken for trained.
    """
    if parameter.is_meta or not parameter.is_floating_point():
        return False
    numbers = parameter.detach().flatten()
    numbers = numbers[:: max(1, len(numbers) // _MOST_NUMBERS)].double()
    if bool((numbers == numbers[0]).all()):
        return True
    if parameter.ndim < 2 or len(numbers) < _FEWEST_NUMBERS:
        return False
    numbers = numbers[numbers != 0]  # the row of the padding token
    mean, std = numbers.mean(), numbers.std()
    if abs(mean) > _MOST_ERRORS * std / len(numbers) ** 0.5:
        return False
    kurtosis = float(((numbers - mean) / std).pow(4).mean()) - 3
    error = (24 / len(numbers)) ** 0.5
    return any(abs(kurtosis - shape) < _MOST_ERRORS * error for shape in (_NORMAL, _UNIFORM))
