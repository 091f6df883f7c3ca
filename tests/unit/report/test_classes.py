import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.evaluate.classify import Answers, described
from luthier.recipe import Recipe
from luthier.report import classes, history, page
from luthier.run_folder import RunFolder, write_json

HOSTILE = "</pre><script>alert(1)</script>"


def write_scores(run: RunFolder, num_classes: int, *, several: bool = False) -> dict[str, Any]:
    """``scores.json`` of drawn answers over so many classes, of which some are taken for their neighbours."""
    draw = np.random.default_rng(0)
    num_rows = 12 * num_classes
    labels = draw.choice(num_classes, num_rows, p=(p := 1 / np.arange(1, num_classes + 1)) / p.sum())
    names = [f"package{i // 8}.module{i}" for i in range(num_classes)]
    names[1] = HOSTILE
    near = labels ^ (draw.random(num_rows) < 0.25)
    hot = np.eye(num_classes, dtype=np.int64)
    logits = draw.normal(size=(num_rows, num_classes)) + 4 * hot[near % num_classes] + 3 * hot[labels]
    train = draw.choice(num_classes, 8 * num_rows, p=p / p.sum())
    thresholds = np.full(num_classes, 0.5) if several else None
    sides = {
        "base": Answers(logits + draw.normal(size=logits.shape) * 2, 1.3, thresholds, 0.21),
        "tuned": Answers(logits - (4 if several else 0), 1.1, thresholds, 0.09),
    }
    of = {"train": hot[train] if several else train, "test": hot[labels] if several else labels}
    texts = [f"def f{i}({HOSTILE if i % 7 == 0 else ''}):\n    return {i}" for i in range(num_rows)]
    entry = {
        "base": 0.4,
        "tuned": 0.6,
        "difference": 0.2,
        "interval": [0.15, 0.25],
        "better": "higher",
        "unit": "share",
    }
    scores = {
        "split": "test", "num_rows": num_rows, "num_groups": num_rows, "base_is": "baseline",
        "metrics": {"macro_f1": entry, "accuracy": entry}, "mcnemar": {},
        "classification": {
            "way": "head", "several": several, "uniform_loss": float(np.log(num_classes)), "unknown_labels": 3,
            "baseline": {"is": "n-grams", "num_rows": 99, "epochs": 4},
            **described(names, sides, of, texts, [f"row{i}" for i in range(num_rows)]),
        },
    }  # fmt: skip
    run.create()
    write_json(run.scores, scores)
    run.history.write_text(json.dumps({"step": 0, "tokens": 0, "epoch": 0.0, "eval": {"loss": 5.64}}) + "\n")
    return scores


@pytest.mark.parametrize("several", [False, True])
def test_page_and_pictures_of_many_classes(tmp_path: Path, several: bool) -> None:
    run = RunFolder(tmp_path / "run")
    scores = write_scores(run, 280 if not several else 12, several=several)
    drawn = classes.draw(run)
    assert [path.stem for path in drawn] == ["classes", "calibration", *([] if several else ["confusion"])]
    text = page.write(run, Recipe()).read_text()
    assert "<script>alert" not in text
    assert text.count("data:image/png;base64") >= len(drawn)
    assert "n-gram baseline" in text
    assert "5.640" in text  # the loss at step 0, beside ln C
    assert ("ln 280" in text) is not several
    assert "Confusions" in text and "Most confident errors" in text
    view = classes.view(scores, history.read(run))
    assert view is not None
    f1 = [c["f1"] for c in view["worst"] if c["test_rows"]]
    assert f1 == sorted(f1)
    assert view["num_classes"] == len(scores["classification"]["classes"])


def test_worst_confusions_and_surest_errors_come_first(tmp_path: Path) -> None:
    found = write_scores(RunFolder(tmp_path / "run"), 16)["classification"]
    counts = [entry["count"] for entry in found["confusions"]]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 1
    sure = [row["confidence"] for row in found["errors"]]
    assert sure == sorted(sure, reverse=True)
    assert all(row["label"] != row["answer"] for row in found["errors"])
    table = {(i, j): count for i, j, count in found["confusion"]}
    names = [c["name"] for c in found["classes"]]
    first = found["confusions"][0]
    assert table[names.index(first["label"]), names.index(first["answer"])] == counts[0]
    assert sum(table.values()) == sum(c["test_rows"] for c in found["classes"])


def test_errors_of_several_labels() -> None:
    labels = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
    chances = np.array([[0.1, 0.2, 0.7], [0.2, 0.1, 0.95], [0.1, 0.9, 0.3], [0.6, 0.1, 0.2]])
    answers = Answers(np.log(chances / (1 - chances)), 1.0, np.full(3, 0.5), 0.0)
    of = {"train": labels, "test": labels}
    found = described(
        list("abc"),
        {"base": answers, "tuned": answers},
        of,
        ["t0", "t1", "t2", "t3"],
        ["r0", "r1", "r2", "r3"],
    )
    shown = {
        "r1": {"id": "r1", "label": "a", "answer": "c", "confidence": 0.95, "text": "t1"},
        "r0": {
            "id": "r0",
            "label": "a",
            "answer": "c",
            "confidence": 0.9,
            "text": "t0",
        },  # sure that it is not a
        "r3": {"id": "r3", "label": "(none)", "answer": "a", "confidence": 0.6, "text": "t3"},
    }
    assert found["errors"] == list(shown.values())
    confusion = {
        "label": "a",
        "answer": "c",
        "count": 2,
        "share": 1.0,
        "examples": [shown["r0"], shown["r1"]],
    }
    assert found["confusions"] == [confusion]


def test_a_name_between_dollar_signs_is_no_formula(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    scores = write_scores(run, 5)
    scores["classification"]["classes"][2]["name"] = r"$\foo$"
    write_json(run.scores, scores)
    assert len(classes.draw(run)) == 3


def test_run_that_classified_nothing_has_no_such_pictures(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert classes.draw(run) == []
    assert classes.view({"metrics": {}}, history.from_rows([])) is None
