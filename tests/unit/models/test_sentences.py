"""Sentence embeddings: the mean over a text's own tokens, whatever stands beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fixtures.tiny_encoder import write_encoder
from transformers import AutoModel, AutoTokenizer

from luthier.errors import UserError
from luthier.models.sentences import SentenceEncoder

TEXTS = ["import os", "for name in names: print(name) class Row", "def"]


def test_embeddings_are_means_over_tokens(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    found = SentenceEncoder(str(folder)).embed([*TEXTS, TEXTS[0]])
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        expected = [
            model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].mean(0).numpy() for t in TEXTS
        ]
    assert found == pytest.approx(np.array([*expected, expected[0]]), abs=1e-5)
    assert SentenceEncoder(str(folder)).embed([]).shape == (0, 16)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        SentenceEncoder(str(tmp_path))
    (tmp_path / "model.safetensors").write_text("no weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        SentenceEncoder(str(tmp_path))


def test_code_that_comes_with_an_encoder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_encoder(tmp_path)
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import BertConfig as C, BertModel as M\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *asked: "y")  # transformers asks where nothing is said
    with pytest.raises(UserError, match="cannot be loaded"):
        SentenceEncoder(str(folder))
    assert not (tmp_path / "ran").exists()
