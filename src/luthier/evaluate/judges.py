"""Who judges the models of a task, each with a result of its own; and the models that are judged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.evaluate import classify, ontology, runner
from luthier.evaluate.runner import Judging, Models, without_adapter
from luthier.models.load import load_trained, load_untrained, starts_adapted
from luthier.recipe import Evaluate, Recipe
from luthier.run_folder import RunFolder
from luthier.tasks import Task
from luthier.tasks.classification import Classification
from luthier.tasks.ontology import Ontology


@dataclass(frozen=True, slots=True)
class Judge:
    """A part of a task's evaluation.

    Attributes:
        name: Under which ``stages.json`` notes that it is done.
        judge: Writes the result.
        result: Where that lies.
        unread: Keys of ``evaluate`` that change nothing of it.
    """

    name: str
    judge: Callable[[Judging], Any]
    result: Callable[[RunFolder], Path]
    unread: tuple[str, ...] = ("ontology",)

    def seen(self, recipe: Recipe) -> Recipe:
        """The recipe with the keys that are not read at their defaults."""
        defaults = {key: getattr(Evaluate(), key) for key in self.unread}
        return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=defaults)})


_ROWS = Judge("evaluate", runner.evaluate, lambda run: run.scores)
_BY_TASK: dict[type[Task], tuple[Judge, ...]] = {
    Classification: (Judge("evaluate", classify.evaluate, lambda run: run.scores),),
    Ontology: (
        _ROWS,
        Judge("ontology", ontology.evaluate_graph, lambda run: run.ontology / "scores.json", unread=()),
    ),
}


def of(task: Task) -> tuple[Judge, ...]:
    """A task's judges, in order."""
    return next((judges for kind, judges in _BY_TASK.items() if isinstance(task, kind)), (_ROWS,))


def models(recipe: Recipe, run: RunFolder, tokenizer: TextTokenizer) -> Models:
    """The model as training started with it, and as it ended, each loaded when first lent."""
    settings = recipe.model
    tuned = functools.cache(lambda: load_trained(settings, run, len(tokenizer)))
    base = functools.cache(lambda: load_untrained(settings, len(tokenizer)))
    apart = settings.adapter is None or starts_adapted(settings)
    return {
        "base": lambda: nullcontext(base()) if apart else without_adapter(tuned()),
        "tuned": lambda: nullcontext(tuned()),
    }
