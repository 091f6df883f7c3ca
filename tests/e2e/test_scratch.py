"""Pretraining from random weights, from the corpus to the page."""

from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.tiny_run import write_recipe
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from luthier import pipeline
from luthier.cli import app
from luthier.errors import UserError, UserErrors
from luthier.models.load import load_tokenizer
from luthier.models.scratch import make
from luthier.recipe import Scratch
from luthier.rows import Rows
from luthier.run_folder import read_json, read_jsonl

SMALL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def recipe(folder: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "task": {"type": "language-modelling", "infill": {"rate": 0.5, "order": "mixed", "loss": "all"}},
        "model": {
            "name": "embedded:smollm2-135m",
            "adapter": None,
            "scratch": {"config": SMALL, "vocab_size": 340, "corpus_bytes": 100_000},
            "new_tokens": ["<|prefix|>", "<|suffix|>", "<|middle|>", "<|end_of_middle|>"],
        },
        "check": {"waive": []},
        "train": {"max_tokens": 6_000, "max_steps": None, "num_samples": 0},
        "evaluate": {"generate": False},
        **changes,
    }
    return write_recipe(folder, **settings)


def test_a_model_is_made_trained_and_compared(tmp_path: Path) -> None:
    place = pipeline.run(recipe(tmp_path), folder=tmp_path / "run")
    findings = read_json(place.findings)
    assert findings["ok"], findings
    rows, history = Rows(place.rows("train")), read_jsonl(place.history)
    tokens_per_step = 4 * rows.lengths().mean()
    assert abs(history[-1]["tokens"] - 6_000) < 1.5 * tokens_per_step
    scores = read_json(place.scores)["metrics"]
    assert scores["loss"]["tuned"] < scores["loss"]["base"] - 0.5
    assert 5.6 < scores["loss"]["base"] < 6.1  # ln 344 is 5.84
    settled = pipeline.settled(pipeline.read(place.recipe), place)
    assert len(load_tokenizer(settled.model)) == 344
    assert 0.2 < read_json(place.ledger)["splits"]["train"]["infill"]["rate"] < 0.8
    assert place.model.is_dir() and (place.start / "config.json").is_file()

    # The folder may move, and its stages are not done again.
    moved = tmp_path / "elsewhere"
    place.path.rename(moved)
    before = (moved / "start" / "model.safetensors").stat().st_mtime_ns
    again = pipeline.run(moved / "recipe.yaml", folder=moved)
    assert (moved / "start" / "model.safetensors").stat().st_mtime_ns == before
    assert len(read_jsonl(again.history)) == len(history)


def test_rows_of_a_recipe_are_shown_in_the_tokens_that_were_made_for_it(tmp_path: Path) -> None:
    rows = [str(recipe(tmp_path)), "--run", str(tmp_path / "run"), "--rows", "1"]
    of_recipe = CliRunner().invoke(app, ["show", *rows])
    of_run = CliRunner().invoke(app, ["show", str(tmp_path / "run"), "--rows", "1"])
    assert of_recipe.exit_code == 0 and of_recipe.stdout == of_run.stdout


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    texts = ["def f(a):\n    return a + 1\n", "class A:\n    pass\n"] * 50
    settings = Scratch(config=SMALL, vocab_size=270)
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = AutoModelForCausalLM.from_pretrained(make(settings, texts, tmp_path / name, seed))
        weights.append(model.get_input_embeddings().weight)
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    assert (tmp_path / "a" / "tokenizer.json").read_text() == (tmp_path / "b" / "tokenizer.json").read_text()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"config": SMALL | {"hiden_size": 3}, "vocab_size": 270}, "llama has no size hiden_size"),
        (
            {"config": SMALL | {"hidden_size": 33}, "vocab_size": 270},
            "do not go together|no model can be made",
        ),
        ({"config": {"model_type": "lama"}, "vocab_size": 270}, "no model_type 'lama'"),
        ({"config": SMALL, "vocab_size": 5000}, "tokens, not 5,000"),
    ],
)
def test_shapes_that_cannot_be_are_refused(tmp_path: Path, settings: Any, what: str) -> None:
    corpus = [f"def function_{i}(name_{i * 7}):\n    return value_{i * 13}\n" for i in range(200)]
    with pytest.raises(UserError, match=what):
        make(Scratch(**settings), corpus, tmp_path / "x", 0)
    assert not (tmp_path / "x").exists()


def test_an_adapter_on_random_weights_is_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path, model={"adapter": {"rank": 4}, "scratch": {"config": SMALL}})
    with pytest.raises(UserErrors, match="an adapter on random weights"):
        pipeline.read(path)


def test_random_weights_that_are_too_large_are_found(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        model={
            "name": "x",
            "adapter": None,
            "scratch": {"config": SMALL | {"initializer_range": 1.0}, "vocab_size": 340},
            "new_tokens": ["<|prefix|>", "<|suffix|>", "<|middle|>", "<|end_of_middle|>"],
        },
    )
    place = pipeline.check(path, folder=tmp_path / "run")
    [found] = [f for f in read_json(place.findings)["findings"] if f["check"] == "initial-loss"]
    assert found["severity"] == "error" and "random weights should guess" in found["what"]
