"""Weights of the published PyTorch BiGS (jxiw/BiGS, ``BiGSForMaskedLM``) under the names of this package."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from luthier.errors import UserError, one_line
from luthier.models.bigs.model import BigsConfig, BigsForMaskedLM

# Each pattern matches a whole name; the first that does counts. None: not needed here.
KEY_MAP: dict[str, str | None] = {
    r"bigs\.embeddings\.word_embeddings\.weight": "bigs.embeddings.tokens.weight",
    r"bigs\.embeddings\.position_embeddings\.weight": "bigs.embeddings.positions.weight",
    r"bigs\.embeddings\.token_type_embeddings\.weight": "bigs.embeddings.token_types.weight",
    r"bigs\.embeddings\.LayerNorm\.(weight|bias)": r"bigs.embeddings.norm.\1",
    r"bigs\.embeddings\.position_ids": None,
    r"bigs\.encoder\.layer\.(\d+)\.LayerNorm\.(weight|bias)": r"bigs.layers.\1.norm.\2",
    r"bigs\.encoder\.layer\.(\d+)\.dv\.(weight|bias)": r"bigs.layers.\1.value.\2",
    r"bigs\.encoder\.layer\.(\d+)\.dol\.(weight|bias)": r"bigs.layers.\1.gate.\2",
    r"bigs\.encoder\.layer\.(\d+)\.do\.(weight|bias)": r"bigs.layers.\1.out.\2",
    r"bigs\.encoder\.layer\.(\d+)\.du_forward\.(weight|bias)": r"bigs.layers.\1.first.inner.\2",
    r"bigs\.encoder\.layer\.(\d+)\.du_backward\.(weight|bias)": r"bigs.layers.\1.second.inner.\2",
    r"bigs\.encoder\.layer\.(\d+)\.duc_forward\.(weight|bias)": r"bigs.layers.\1.first.outer.\2",
    r"bigs\.encoder\.layer\.(\d+)\.duc_backward\.(weight|bias)": r"bigs.layers.\1.second.outer.\2",
    r"bigs\.encoder\.layer\.(\d+)\.fs4\.D": r"bigs.layers.\1.first.ssm.d",
    r"bigs\.encoder\.layer\.(\d+)\.fs4\.kernel\.C": r"bigs.layers.\1.first.ssm.c",
    r"bigs\.encoder\.layer\.(\d+)\.fs4\.kernel\.log_step": r"bigs.layers.\1.first.ssm.log_step",
    r"bigs\.encoder\.layer\.(\d+)\.fs4\.kernel\.A_re": r"bigs.layers.\1.first.ssm.a_real",
    r"bigs\.encoder\.layer\.(\d+)\.fs4\.kernel\.A_im": r"bigs.layers.\1.first.ssm.a_imag",
    r"bigs\.encoder\.layer\.(\d+)\.bs4\.D": r"bigs.layers.\1.second.ssm.d",
    r"bigs\.encoder\.layer\.(\d+)\.bs4\.kernel\.C": r"bigs.layers.\1.second.ssm.c",
    r"bigs\.encoder\.layer\.(\d+)\.bs4\.kernel\.log_step": r"bigs.layers.\1.second.ssm.log_step",
    r"bigs\.encoder\.layer\.(\d+)\.bs4\.kernel\.A_re": r"bigs.layers.\1.second.ssm.a_real",
    r"bigs\.encoder\.layer\.(\d+)\.bs4\.kernel\.A_im": r"bigs.layers.\1.second.ssm.a_imag",
    r"bigs\.pooler\..*": None,  # of the classifiers
    r"cls\.predictions\.transform\.dense\.(weight|bias)": r"dense.\1",
    r"cls\.predictions\.transform\.LayerNorm\.(weight|bias)": r"norm.\1",
    r"cls\.predictions\.decoder\.weight": "decoder.weight",
    r"cls\.predictions\.decoder\.bias": None,  # the next one under a second name
    r"cls\.predictions\.bias": "decoder.bias",
}
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_ssm": "state_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "hidden_dropout_prob": "hidden_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}
_FIX = "give the folder of a BiGSForMaskedLM as the published code saves it"


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of this package.

    Args:
        state: Of the published ``BiGSForMaskedLM``.

    Raises:
        UserError: A name that is none of its.
    """
    found = {}
    for name, value in state.items():
        pattern = next((p for p in KEY_MAP if re.fullmatch(p, name)), None)
        if pattern is None:
            raise UserError(f"{name} is no weight of the published BiGS", "its weights", _FIX)
        target = KEY_MAP[pattern]
        if target is not None:
            found[re.fullmatch(pattern, name).expand(target)] = value  # type: ignore[union-attr]  # it matched
    return found


def load_original(folder: str | Path) -> BigsForMaskedLM:
    """A published model, to go on with or to save with ``save_pretrained``.

    Args:
        folder: With ``config.json`` and ``model.safetensors`` or ``pytorch_model.bin`` (read as weights only: no code
            in it is run).

    Raises:
        UserError: Files are missing, or hold another model.
    """
    folder = Path(folder)
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        safe = folder / "model.safetensors"
        state = (
            load_file(safe)
            if safe.is_file()
            else torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        )
    except (OSError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise UserError(f"no BiGS can be read: {one_line(error)}", str(folder), _FIX) from error
    for name, only in (("pre_norm", True), ("position_embedding_type", "absolute"), ("hidden_act", "gelu")):
        if settings.get(name, only) != only:
            raise UserError(f"{name} is {settings[name]!r}; only {only!r} is known", str(folder), _FIX)
    sizes = {ours: settings[theirs] for theirs, ours in _SIZES.items() if theirs in settings}
    model = BigsForMaskedLM(BigsConfig(form="bidirectional", **sizes))
    weights = renamed(state)
    weights.setdefault("decoder.weight", weights.get("bigs.embeddings.tokens.weight", torch.empty(0)))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit the config: {one_line(error)}", str(folder), _FIX) from error
    model.train(False)
    return model
