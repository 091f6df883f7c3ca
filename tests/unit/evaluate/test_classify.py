import itertools
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from tests.fixtures.tiny_classifier import classifier, labelled_rows, load, save_base

from luthier.encoding.batches import collate
from luthier.evaluate import classify, ngrams, significance
from luthier.evaluate.ngrams import NGrams, features
from luthier.evaluate.significance import paired_bootstrap, paired_macro_f1
from luthier.models.forward import base_model, row_logits
from luthier.recipe import Recipe, Train
from luthier.run_folder import RunFolder, write_json
from luthier.tasks.classification import Classification


def hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return labels[:, None] == np.arange(num_classes)


def test_macro_f1_and_its_interval() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 5, 300)
    base = np.where(draw.random(300) < 0.5, labels, draw.integers(0, 5, 300))
    tuned = np.where(draw.random(300) < 0.8, labels, draw.integers(0, 5, 300))
    groups = [f"g{i // 3}" for i in range(300)]
    found = paired_macro_f1(hot(labels, 5), hot(base, 5), hot(tuned, 5), groups, num_resamples=500, seed=1)
    assert found.base == pytest.approx(f1_score(labels, base, average="macro"))
    assert found.tuned == pytest.approx(f1_score(labels, tuned, average="macro"))
    assert found.interval is not None
    low, high = found.interval
    assert 0 < low < found.difference < high < 1
    # The same by resampling groups by hand.
    generator = np.random.default_rng(9)
    by_hand = []
    for _ in range(500):
        rows = (generator.integers(0, 100, 100)[:, None] * 3 + np.arange(3)).ravel()
        by_hand.append(
            f1_score(labels[rows], tuned[rows], average="macro") - f1_score(labels[rows], base[rows], average="macro")
        )  # fmt: skip
    assert (low, high) == pytest.approx(tuple(np.quantile(by_hand, [0.025, 0.975])), abs=0.02)


def test_macro_f1_of_one_group_has_no_interval_and_equal_answers_none_to_speak_of() -> None:
    labels = np.array([0, 1, 1, 2])
    same = hot(labels, 3)
    assert paired_macro_f1(same, same, same, ["g"] * 4, num_resamples=50).interval is None
    assert paired_macro_f1(same, same, same, list("abcd"), num_resamples=50).interval == (0.0, 0.0)
    assert paired_bootstrap([], []) == []


def test_macro_f1_of_many_classes_needs_memory_for_what_is_there_alone() -> None:
    draw = np.random.default_rng(0)
    names = [[[str(draw.integers(0, 3000))] for _ in range(3)] for _ in range(3000)]
    groups = [f"g{i // 2}" for i in range(3000)]
    tracemalloc.start()
    sides = significance.hot(names)
    found = paired_macro_f1(*sides, groups, num_resamples=2)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 60e6  # 3000 x 15,000 numbers would be 360 MB
    dense = paired_macro_f1(*(side.toarray() for side in sides), groups, num_resamples=2)
    assert found == dense and found.interval is not None
    several = significance.hot([[["b", "a"], [], ["b"]], [["c"], ["c", "a"], []]])
    assert [side.toarray().astype(int).tolist() for side in several] == [
        [[1, 1, 0], [0, 0, 1]], [[0, 0, 0], [1, 0, 1]], [[0, 1, 0], [0, 0, 0]],
    ]  # fmt: skip


def planted_rows(count: int, num_classes: int, seed: int):
    """Rows in which the order of three tokens, never one alone, gives the class away."""
    draw = np.random.default_rng(seed)
    orders = list(itertools.permutations([400, 401, 402]))
    rows = labelled_rows(count, num_classes, seed=seed, longest=25)
    for row in rows:
        if len(row.input_ids) > 2:
            place = int(draw.integers(0, len(row.input_ids) - 2))
            row.input_ids[place : place + 3] = orders[row.meta["label"]]
    return rows, np.array([row.meta["label"] for row in rows])


def test_baseline_learns_what_scikit_learn_learns() -> None:
    train, labels = planted_rows(400, 4, 0)
    held, held_labels = planted_rows(200, 4, 1)
    ours = NGrams(4, several=False).fit(train, labels, held, held_labels, seed=0)
    logits = ours.logits(held)
    accuracy = (logits.argmax(1) == held_labels).mean()
    theirs = LogisticRegression(C=10, max_iter=300).fit(ours._select(features(train)), labels)
    assert accuracy > 0.8
    assert accuracy == pytest.approx(theirs.score(ours._select(features(held)), held_labels), abs=0.05)
    again = NGrams(4, several=False).fit(train, labels, held, held_labels, seed=0)
    np.testing.assert_array_equal(again.logits(held), logits)
    assert ours.num_rows == 400


def test_many_classes_leave_the_baseline_fewer_features(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = planted_rows(400, 4, 0)
    monkeypatch.setattr(ngrams, "MOST_WEIGHTS", 41)
    ours = NGrams(4, several=False).fit(train, labels, train, labels, seed=0)
    assert len(ours._kept_F) == 10
    having = np.bincount(features(train).indices)
    assert having[ours._kept_F].min() >= np.sort(having)[-10]  # those that most rows have


def test_baseline_of_several_labels() -> None:
    train, labels = planted_rows(400, 4, 0)
    held, held_labels = planted_rows(200, 4, 1)
    ours = NGrams(4, several=True).fit(
        train, hot(labels, 4).astype(int), held, hot(held_labels, 4).astype(int), 0
    )
    assert ((ours.logits(held) > 0) == hot(held_labels, 4)).mean() > 0.9


def test_features_count_n_grams_of_the_prompt() -> None:
    rows = labelled_rows(3, 3, longest=20)
    found = features(rows)
    norms = np.sqrt(np.asarray(found.multiply(found).sum(axis=1)).ravel())
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    ids = rows[0].input_ids  # all different, as are their n-grams: no two share a place
    assert found[[0]].nnz == len(ids) + len(ids) - 1 + max(0, len(ids) - 2)
    twice = features([replace(rows[0], input_ids=np.array([5, 5, 6, 9], np.int32), num_prompt_tokens=3)])
    assert twice.nnz == 2 + 2 + 1, "9 is not of the prompt"
    assert twice.data.max() / twice.data.min() == pytest.approx(1 + np.log(2))


def test_rows_are_judged_by_length_and_answered_in_their_order(tmp_path: Path) -> None:
    class Given(list):
        row = list.__getitem__

        def lengths(self) -> np.ndarray:
            return np.array([len(row.input_ids) for row in self])

    model = load(classifier(save_base(tmp_path / "base", "llama"), 5))
    rows = Given(labelled_rows(40, 5, seed=2))
    recipe, told = Recipe(train=Train(micro_batch_tokens=64)), []
    names = [f"class{i}" for i in range(5)]
    judge = classify._judge(recipe, Classification(), model, None, names, lambda *said: told.append(said))
    found = judge(rows)
    assert len(told) > 5 and told[-1] == ("classifying", 40, 40)
    with torch.no_grad():
        alone = [row_logits(base_model(model), collate([row], 0))[0].numpy() for row in rows]
    np.testing.assert_allclose(found, alone, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3  # or the test could not fail


def test_rows_of_no_class_have_figures_that_are_json() -> None:
    none = np.zeros((3, 2), np.int64)
    answers = classify.Answers(np.full((3, 2), -5.0), 1.0, np.full(2, 0.5), 0.0)
    found = classify.described(["a", "b"], {"base": answers, "tuned": answers}, {"test": none, "train": none}, ["x"] * 3, ["1", "2", "3"])  # fmt: skip
    json.dumps(found, allow_nan=False)
    figures = found["figures"]["tuned"]
    assert [figures[f"{kind}_f1"] for kind in ("macro", "micro", "weighted")] == [None] * 3
    assert figures["accuracy"] == 1 and found["errors"] == []


@pytest.mark.parametrize("several", [False, True])
def test_the_tuned_models_calibration_is_not_the_base_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    run = RunFolder(tmp_path)
    write_json(run.labels, {"names": ["a", "b"]})
    classes = [{"threshold": 0.9}, {"threshold": 0.1}]
    write_json(
        run.scores, {"classification": {"classes": classes, "figures": {"tuned": {"temperature": 2.0}}}}
    )
    monkeypatch.setattr(classify, "_tree", lambda *_: None)
    monkeypatch.setattr(classify, "_scores", lambda *_: np.array([[2.0, -2.0]]))
    model: Any = torch.nn.Linear(1, 1)
    said = [
        classify.label_text(Recipe(), run, Classification(several=several), None, model, [1, 2], base=base)
        for base in (False, True)
    ]
    if several:
        assert said == ["0.1192 b", "0.8808 a"]
    else:
        assert said == ["0.8808 a\n0.1192 b", "0.9820 a\n0.0180 b"]
