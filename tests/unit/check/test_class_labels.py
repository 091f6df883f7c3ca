import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fixtures.given_rows import GivenRows, row
from transformers import PreTrainedConfig
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from luthier import registry
from luthier.check.context import Skip
from luthier.records import Finding


def module() -> Any:
    registry.lookup("check", "class-labels", "test")
    return sys.modules["luthier.check.checks.class_labels"]


def check(
    folder: Path,
    labels: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    num_labels: int | None = None,
    problem_type: str | None = None,
    names: list[str] | None = None,
    **others: list[Any],
) -> list[Finding]:
    splits = {"train": labels, **others}
    context = GivenRows(
        folder,
        **{n: [row(i, [1, 2, i], label=label) for i, label in enumerate(of)] for n, of in splits.items()},
    )
    context.objective = "classes"
    names = names or [f"LABEL_{i}" for i in range(num_labels or 0)]
    head = None if num_labels is None else module()._Head(num_labels, problem_type, names, "config")
    monkeypatch.setattr(module(), "_head", lambda context: head)
    return list(module().class_labels(context))


@pytest.mark.parametrize(
    ("label", "num_labels", "taken"),
    [
        (torch.tensor([1, 0]), 3, "single_label_classification"),
        (torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), 3, "multi_label_classification"),
        (torch.tensor([1.0, 0.0]), 1, "regression"),
    ],
)
def test_transformers_takes_the_losses_that_the_check_says(
    label: torch.Tensor, num_labels: int, taken: str
) -> None:
    config = PreTrainedConfig(num_labels=num_labels)
    ForSequenceClassificationLoss(label, torch.zeros(2, num_labels), config)
    assert config.problem_type == taken


def test_transformers_fails_on_floats_for_several_classes() -> None:
    with pytest.raises(ValueError, match="same as input size"):
        ForSequenceClassificationLoss(
            torch.tensor([1.0, 0.0]), torch.zeros(2, 3), PreTrainedConfig(num_labels=3)
        )


@pytest.mark.parametrize(
    ("labels", "num_labels"),
    [
        ([0, 1, 2] * 20, 3),
        ([0, 1, 2] * 20, None),
        ([True, False] * 20, 2),
        ([i * 97 % 280 for i in range(100)], 280),  # most of 280 classes cannot have one of 100 rows
        ([0] * 70 + [1] * 30, 2),
        ([i / 7 for i in range(60)], 1),  # a scale
        ([float(i) for i in range(60)], 1),  # a scale of whole numbers
        ([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]] * 20, 3),  # several labels a row
        ([[1, 0, 0], [0, 1, 0]] * 20, 3),  # integers: torch says that they do not fit
    ],
)
def test_labels_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: list[Any], num_labels: int | None
) -> None:
    assert check(tmp_path, labels, monkeypatch, num_labels) == []


@pytest.mark.parametrize(
    ("labels", "num_labels", "severity", "said", "measured"),
    [
        ([1, 2, 3] * 20, 3, "error", "20 of 60 rows (33.33%) have labels outside of 0 to 2: labels run from 1 to 3", 3),
        ([0, 1, 5] * 20, 3, "error", "set num_labels=6", 5),
        ([0, 1, -1] * 20, 3, "error", "labels run from -1 to 1", -1),
        ([0, -1, 1] * 20, None, "error", "outside of 0 to num_labels - 1", -1),
        ([1, 2, 3] * 80, 4, "warning", "1 of 4 classes have none of 240 training rows: 0; labels begin at 1", 1),
        ([0, 1, 3] * 80, 4, "warning", "1 of 4 classes have none of 240 training rows: 2", 1),
        ([0, 1, 3] * 80, None, "warning", "1 of 4 classes have none", 1),
        ([0, 1, 2, -100] * 20, 3, "warning", "20 of 80 rows (25.00%) have the label -100", 20),
        ([0] * 97 + [1] * 3, 2, "warning", "class 0 has 97 of 100 training rows: an accuracy of 97.00%", 0.97),
        ([0] * 85 + [1] * 15, 2, "note", "an accuracy of 85.00% takes no more than always answering it", 0.85),
        ([0] * 60 + [1, 2] * 20, 3, "note", "an accuracy of 60.00%", 0.6),
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]] * 20, 3, "warning", "takes 3 binary losses", 3),
        ([0.0, 1.0, 2.0] * 20, 3, "error", "labels are floats, such as 0.0, and the head has 3 outputs", "0.0"),
        ([0.0, 1.0, 2.0] * 20, 1, "warning", "labels are 3 whole numbers from 0 to 2, and num_labels is 1", 3),
        ([0, 1, 2] * 20, 1, "warning", "the squared error", 3),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labels: list[Any],
    num_labels: int | None,
    severity: str,
    said: str,
    measured: Any,
) -> None:
    (found,) = check(tmp_path, labels, monkeypatch, num_labels)
    assert (found.severity, found.measured) == (severity, measured)
    assert said in found.what + found.fix


def test_a_label_that_only_the_evaluation_has_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = check(tmp_path, [0, 1, 2] * 20, monkeypatch, 3, eval=[0, 4])
    assert "1 of 62 rows" in found.what and "labels run from 0 to 4" in found.what
    assert (found.fix.startswith("set num_labels=5"), found.measured) == (True, 4)


@pytest.mark.parametrize(
    ("labels", "num_labels", "problem_type"),
    [
        ([[1.0, 0.0], [0.0, 1.0]] * 20, 2, "multi_label_classification"),
        ([0.0, 1.0, 2.0] * 20, 1, "regression"),
    ],
)
def test_who_sets_the_problem_type_means_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: list[Any], num_labels: int, problem_type: str
) -> None:
    assert check(tmp_path, labels, monkeypatch, num_labels, problem_type) == []


@pytest.mark.parametrize(
    ("data", "model", "severity"),
    [
        (["neg", "pos"], ["neg", "pos"], None),
        (["neg", "pos"], ["NEG", "POS"], None),
        (["neg", "pos"], ["pos", "neg"], "warning"),
        (["neg", "pos"], ["LABEL_0", "LABEL_1"], "note"),
    ],
)
def test_names_of_classes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: list[str],
    model: list[str],
    severity: str | None,
) -> None:
    monkeypatch.setattr(module(), "_names_in_data", lambda context: data)
    found = check(tmp_path, [0, 1] * 20, monkeypatch, 2, names=model)
    assert [f.severity for f in found] == ([severity] if severity else [])


def test_what_has_no_labels_of_rows_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Skip, match="tokens"):
        list(module().class_labels(GivenRows(tmp_path, train=[row(0, [1, 2, 3])])))
    for labels, why in (
        ([0, None] * 20, "no label"),
        ([[0.0, 1.0], [1.0]] * 20, "different numbers of labels"),
    ):
        with pytest.raises(Skip, match=why):
            check(tmp_path, labels, monkeypatch, 2)


def test_rows_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros(40, int).tolist()
    labels[7] = 2
    found = check(tmp_path, [i % 2 if i != 7 else 2 for i in range(40)], monkeypatch, 2)
    assert found[0].where == "data/train.arrow: 7"


@pytest.mark.parametrize(
    ("labels", "fix"),
    [([1, 2, 3] * 20, "label - 1"), ([1, 2, 3, 4, 5] * 20, "num_labels=6")],
    ids=["of as many classes", "of more classes than the head has"],
)
def test_labels_from_one_are_moved_only_where_that_brings_them_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: list[int], fix: str
) -> None:
    (finding,) = (f for f in check(tmp_path, labels, monkeypatch, 3) if "outside of 0 to 2" in f.what)
    assert fix in finding.fix
