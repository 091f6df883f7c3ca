"""Whole runs of the task classification on a tiny model: a head, label words, several labels."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.tiny_run import write_recipe
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from luthier import pipeline
from luthier.cli import app
from luthier.errors import UserError
from luthier.evaluate.prompt import complete
from luthier.models.merge import merge
from luthier.run_folder import read_json, read_jsonl

WORDS = {
    "fruit": ["apple", "pear", "plum", "cherry", "grape", "melon", "fig", "peach"],
    "tools": ["hammer", "saw", "drill", "chisel", "plane", "wrench", "file", "vice"],
    "birds": ["crow", "robin", "finch", "heron", "swift", "owl", "wren", "kite"],
    "metal": ["iron", "copper", "zinc", "silver", "lead", "nickel", "tin", "gold"],
}


def write_rows(path: Path, count: int = 200, *, several: bool = False, seed: int = 0, new: int = 0) -> Path:
    """Texts of words of their classes; ``new`` of them have a label of their own."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for number in range(count):
            names = draw.sample(sorted(WORDS), draw.choice((0, 1, 2)) if several else 1)
            pool = [word for name in names for word in WORDS[name]] or ["sky", "day", "rain"]
            text = " ".join(draw.choice(pool) for _ in range(draw.randrange(4, 16))) + f" {number}"
            label = "new" if number < new else names if several else names[0]
            file.write(json.dumps({"text": text, "label": label}) + "\n")
    return path


def recipe(folder: Path, task: dict[str, Any], **train: Any) -> Path:
    rows = write_rows(folder / "rows.jsonl", several=bool(task.get("several")))
    data: dict[str, Any] = {"source": {"type": "files", "path": str(rows)}, "near_duplicates": "off"}
    if not task.get("several"):
        test = write_rows(folder / "test.jsonl", 40, seed=1, new=3)
        data |= {
            "test_source": {"type": "files", "path": str(test)},
            "splits": {"train": 0.8, "eval": 0.2, "test": 0},
        }
    return write_recipe(
        folder,
        task={"type": "classification", **task},
        data=data,
        train={"max_steps": 30, "batch_size": 8, "learning_rate": 0.02, "eval_every_steps": 15, **train},
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "head": {"hierarchy": "i", "class_weights": "balanced", "label_smoothing": 0.05},
    "words": {"way": "words"},
    "several": {"several": True},
}


@pytest.mark.parametrize("way", OPTIONS)
def test_tiny_run_learns_and_reports(tmp_path: Path, way: str) -> None:
    by_class = {"balance_classes": 0.5, "best_metric": "macro_f1"}
    path = recipe(tmp_path, OPTIONS[way], **(by_class if way == "head" else {}))
    place = pipeline.run(path, folder=tmp_path / "run")
    assert read_json(place.labels)["names"] == sorted(WORDS)
    scores = read_json(place.scores)
    entry, found = scores["metrics"]["accuracy"], scores["classification"]
    assert entry["tuned"] > (0.15 if way == "several" else 0.5)
    told = read_jsonl(place.predictions)
    assert len(told) == scores["num_rows"] > 20
    right = [row["tuned"]["scores"]["accuracy"] for row in told]
    assert (
        sum(right) / len(right)
        == pytest.approx(entry["tuned"])
        == pytest.approx(found["figures"]["tuned"]["accuracy"])
    )
    assert found["unknown_labels"] == (0 if way == "several" else 3)
    assert "n-gram baseline" in place.report.read_text()
    compared = CliRunner().invoke(app, ["compare", str(place.path), str(place.path)])
    assert (
        compared.exit_code == 0 and "Macro F1" in compared.output and "no clear difference" in compared.output
    )
    history = read_jsonl(place.history)
    if way == "words":
        assert "bits_per_byte" in history[0]["eval"]
    else:
        assert history[0]["eval"]["loss"] == pytest.approx(found["uniform_loss"], rel=0.03)
        assert history[0]["eval"]["samples"][0]["output"]
    assert read_json(place.environment)["engine"]["packed"]

    settled = pipeline.settled(pipeline.read(path), place)
    lines = complete(settled, place, "apple pear plum apple fig 5").text.splitlines()
    if way != "several":
        shares = [float(line.split()[0]) for line in lines]
        assert {line.split()[1] for line in lines} == set(WORDS) and shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-3)
    if way != "words":  # which has learned too little to be sure of a single text
        assert lines[0].split()[1] == "fruit"
    if way == "words":
        return
    with pytest.raises(UserError, match="no head for these classes"):
        complete(settled, place, "apple", base=True)
    if way == "head":
        proof = merge(settled.model, place, tmp_path / "merged")
        assert proof.adapter_kl_nats > 0.01
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
        ids = AutoTokenizer.from_pretrained(tmp_path / "merged")(
            "apple pear plum apple fig 5", return_tensors="pt"
        )
        best = int(model(**ids).logits.argmax())
        assert model.config.id2label[best] == lines[0].split()[1]
    stages = read_json(place.stages)
    pipeline.run(path, folder=tmp_path / "run")
    assert read_json(place.stages) == stages  # nothing was made again
