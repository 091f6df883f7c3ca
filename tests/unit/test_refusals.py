"""What a recipe asks of its rows that they cannot give is said before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.given_rows import row

from luthier.check.tokenised import store
from luthier.errors import UserErrors
from luthier.recipe import Classifier, Head, Recipe
from luthier.refusals import refuse_impossible
from luthier.run_folder import RunFolder


def refused(folder: Path, tree: dict[str, Any], *, several: bool | None = None, **meta: Any) -> list[str]:
    """Where the problems are; a head of two classes if ``several`` is given."""
    recipe = Recipe.model_validate(tree)
    if several is not None:
        head = Head(names=("a", "b"), several=several)
        model = Classifier(**{**recipe.model.model_dump(), "head": head})
        recipe = recipe.model_copy(update={"model": model, "task": {"type": "classification"}})
    run = RunFolder(folder)
    for split in ("train", "test"):
        run.rows(split).parent.mkdir(parents=True, exist_ok=True)
        store([row(split, [1, 2, 3], target="x = 1", **meta)], run.rows(split))
    try:
        refuse_impossible(recipe, run)
    except UserErrors as errors:
        return [error.where.removeprefix("recipe key ") for error in errors.errors]
    return []


@pytest.mark.parametrize(
    ("metric", "several", "is_there"),
    [("loss", None, True), ("token_accuracy", None, True), ("macro_f1", None, False), ("accuracy", None, False),
     ("macro_f1", False, True), ("accuracy", False, True), ("token_accuracy", False, False),
     ("accuracy", True, True), ("macro_f1", True, False)],
)  # fmt: skip
def test_a_metric_of_training_that_its_evaluation_does_not_give(
    tmp_path: Path, metric: str, several: bool | None, is_there: bool
) -> None:
    tree = {"train": {"best_metric": metric}}
    assert refused(tmp_path, tree, several=several) == ([] if is_there else ["train.best_metric"])


def test_drawing_by_class_needs_one_class_a_row(tmp_path: Path) -> None:
    tree = {"train": {"balance_classes": 0.5}}
    assert refused(tmp_path / "none", tree) == ["train.balance_classes"]
    assert refused(tmp_path / "one", tree, several=False, label=1) == []
    assert refused(tmp_path / "more", tree, several=True, label=[0, 1]) == ["train.balance_classes"]


def test_metrics_that_rows_know_too_little_for(tmp_path: Path) -> None:
    def named(*names: str, **more: Any) -> dict[str, Any]:
        return {"evaluate": {"metrics": list(names), **more}}

    assert refused(tmp_path / "0", named("exact_match", "edit_similarity")) == []
    where = ["evaluate.metrics"]
    assert refused(tmp_path / "1", named("exact_match", "pass@1")) == where
    assert refused(tmp_path / "2", named("api_recall", "pass@1")) == where * 2  # all at once
    assert refused(tmp_path / "3", named("exact_match", generate=False)) == where
    assert refused(tmp_path / "4", named("pass@1"), before="def f():\n    ", behind="\n") == []
    assert refused(tmp_path / "5", named("exact_match"), several=False, label=1) == where
