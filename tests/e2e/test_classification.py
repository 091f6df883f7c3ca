"""Whole runs of the task classification on a tiny model: a head, label words, several labels."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.tiny_run import write_recipe

from luthier import pipeline
from luthier.run_folder import read_json, read_jsonl

WORDS = {
    "fruit": "apple pear plum cherry grape melon fig peach".split(),
    "tools": "hammer saw drill chisel plane wrench file vice".split(),
    "birds": "crow robin finch heron swift owl wren kite".split(),
    "metal": "iron copper zinc silver lead nickel tin gold".split(),
}


def write_rows(path: Path, count: int = 240, *, several: bool = False) -> Path:
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            names = draw.sample(sorted(WORDS), draw.choice((0, 1, 2)) if several else 1)
            pool = [word for name in names for word in WORDS[name]] or ["sky", "day", "rain"]
            text = " ".join(draw.choice(pool) for _ in range(draw.randrange(4, 24))) + f" {number}"
            label = names if several else names[0]
            file.write(json.dumps({"text": text, "label": label}) + "\n")
    return path


def recipe(folder: Path, task: dict[str, Any], **train: Any) -> Path:
    rows = write_rows(folder / "rows.jsonl", several=bool(task.get("several")))
    return write_recipe(
        folder,
        task={"type": "classification", **task},
        data={"source": {"type": "files", "path": str(rows)}, "near_duplicates": "off"},
        train={"max_steps": 40, "batch_size": 8, "learning_rate": 0.02, "eval_every_steps": 10, **train},
    )


@pytest.mark.parametrize("way", ["head", "words", "several"])
def test_tiny_run_learns_and_reports(tmp_path: Path, way: str) -> None:
    task = {"head": {"hierarchy": "i"}, "words": {"way": "words"}, "several": {"several": True}}[way]
    extra = {"balance_classes": 0.5, "best_metric": "macro_f1", "best_direction": "max"} if way == "head" else {}
    path = recipe(tmp_path, task, **extra)
    place = pipeline.run(path, folder=tmp_path / "run")
    assert read_json(place.labels)["names"] == sorted(WORDS)
    scores = read_json(place.scores)
    entry = scores["metrics"]["accuracy"]
    assert entry["tuned"] > 0.5
    told = read_jsonl(place.predictions)
    assert len(told) == scores["num_rows"] > 20
    right = [row["tuned"]["scores"]["accuracy"] for row in told]
    assert sum(right) / len(right) == pytest.approx(entry["tuned"])
    page = place.report.read_text()
    assert "baseline" in page
    if way != "words":
        first = read_jsonl(place.history)[0]["eval"]
        assert first["loss"] == pytest.approx(scores["classification"]["uniform_loss"], rel=0.03)
