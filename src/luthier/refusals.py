"""What a recipe asks of its rows that they cannot give, found before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator

from luthier import recipe as recipes
from luthier import registry
from luthier.errors import UserError, UserErrors
from luthier.metrics import scores_of
from luthier.recipe import Classifier, Recipe
from luthier.rows import Rows
from luthier.run_folder import RunFolder
from luthier.tasks.classification import Classification

_OF_TOKENS = ("loss", "bits_per_byte", "token_accuracy")
_OF_CLASSES = ("loss", "accuracy", "macro_f1")


def refuse_impossible(recipe: Recipe, run: RunFolder) -> None:
    """Refuses what would end a run after hours of training, or at its first step.

    Args:
        recipe: As its folder settles it.
        run: The folder, prepared.

    Raises:
        UserErrors: All such mistakes at once.
    """
    if found := [*_best_metric(recipe), *_balance(recipe, run), *_metrics(recipe, run)]:
        raise UserErrors(found)


def _best_metric(recipe: Recipe) -> Iterator[UserError]:
    model, wanted = recipe.model, recipe.train.best_metric
    given = list(_OF_CLASSES if isinstance(model, Classifier) else _OF_TOKENS)
    if isinstance(model, Classifier) and model.head.several:
        given.remove("macro_f1")
    if wanted not in given:
        yield UserError(
            f"an evaluation of this task gives no {wanted}",
            "recipe key train.best_metric",
            f"one of: {', '.join(given)}",
        )


def _balance(recipe: Recipe, run: RunFolder) -> Iterator[UserError]:
    if not recipe.train.balance_classes:
        return
    labels = Rows(run.rows("train")).labels()
    if labels is None or labels.ndim > 1:
        yield UserError(
            "rows are drawn by class, but have no class, or several",
            "recipe key train.balance_classes",
            "leave it out; it is for the task classification with one label a row",
        )


def _metrics(recipe: Recipe, run: RunFolder) -> Iterator[UserError]:
    """Metrics that cannot be taken of the first test row, were it answered with its own target."""
    named, path = recipe.evaluate.metrics, run.rows("test")
    if named == "auto":
        return
    if isinstance(recipes.build("task", recipe.task), Classification):
        yield UserError(
            "metrics of generated text say nothing about classes",
            "recipe key evaluate.metrics",
            "leave it out: a classifier's own are always measured",
        )
    elif not recipe.evaluate.generate:
        yield UserError(
            "metrics are of generated text, and none is generated",
            "recipe key evaluate.metrics",
            "leave it out, or set evaluate.generate=true",
        )
    elif path.is_file() and len(rows := Rows(path)):
        row = rows.row(0)
        for name in named:
            metric = registry.lookup("metric", name, "recipe key evaluate.metrics")
            try:
                scores_of(metric, [row.target], [row.target], [row])
            except UserError as error:
                yield error
