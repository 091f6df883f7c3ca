"""Embeddings of short texts from a sentence encoder, by which titles are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from luthier import registry
from luthier.errors import UserError, one_line
from luthier.run_folder import hash_file

_BATCH = 256
_MOST_TOKENS = 256
_WHERE = "recipe key evaluate.ontology.embedding_model"


class SentenceEncoder:
    """A BERT-like encoder whose embedding is the mean over its tokens' last hidden states, padding left out.

    Attributes:
        name: As given.
        sha256: Of its weights, so that scores can say by what they were measured.

    Args:
        name: A registered model, or a folder as ``save_pretrained`` or sentence-transformers writes it.

    Raises:
        UserError: There is no such folder, or it cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        known = name in registry.registered("model") or ".py@" in name
        folder = Path(registry.lookup("model", name, _WHERE)()) if known else Path(name).expanduser()
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise UserError(
                f"{folder} holds no model.safetensors",
                _WHERE,
                "name embedded:all-minilm-l6-v2, or the folder of a sentence encoder",
            )
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
            self._model: Any = AutoModel.from_pretrained(
                str(folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            ).eval()
        except Exception as error:  # transformers raises anything at all over damaged files
            raise UserError(
                f"the sentence encoder cannot be loaded: {one_line(error)}",
                str(folder),
                "name the folder of an encoder that transformers knows",
            ) from error
        self.name, self.sha256 = name, hash_file(weights)
        self._known: dict[str, NDArray[np.float32]] = {}

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The embedding of each text, shape (text, width); a text is computed once, whatever stands beside it."""
        new = sorted({text for text in texts if text not in self._known}, key=lambda text: (len(text), text))
        for start in range(0, len(new), _BATCH):
            part = new[start : start + _BATCH]
            inputs = self._tokenizer(
                part, padding=True, truncation=True, max_length=_MOST_TOKENS, return_tensors="pt"
            )
            hidden_BTD = self._model(**inputs).last_hidden_state
            mask_BT1 = inputs["attention_mask"][..., None].to(hidden_BTD.dtype)
            means_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
            self._known |= dict(zip(part, means_BD.numpy(), strict=True))
        width = self._model.config.hidden_size
        return (
            np.stack([self._known[text] for text in texts])
            if len(texts)
            else np.empty((0, width), np.float32)
        )
