"""A recipe, in whatever form it came, and its run folder, with what has to lie there before any stage begins."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier import recipe as recipes
from luthier import recipe_file
from luthier.environment import environment
from luthier.finished import holds_training, is_done, note_done, other_training, refuse_other_recipe
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder, hash_value, logger, user_disk_errors, write_json, write_text
from luthier.stages import settled

AnyRecipe = Recipe | str | Path | Mapping[str, Any]


def read(recipe: AnyRecipe, *overrides: str) -> Recipe:
    """The validated recipe, whatever form it came in."""
    if isinstance(recipe, Recipe) and not overrides:
        return recipe
    if isinstance(recipe, str | Path):
        return recipe_file.load(recipe, overrides)
    tree = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe
    return recipe_file.with_overrides(tree, overrides)


def open_run(
    recipe: AnyRecipe, overrides: Sequence[str], folder: str | Path | None
) -> tuple[Recipe, RunFolder]:
    """The recipe and its run folder, with the resolved recipe, environment and log in place."""
    given = read(recipe, *overrides)
    place = RunFolder(folder or Path("runs") / given.name)
    place.create()
    refuse_other_recipe(place, given)
    recipe = settled(given, place)
    with user_disk_errors(place.path):
        write_text(place.recipe, recipe_file.dump(given))
        if not place.environment.is_file():
            write_json(place.environment, environment(recipe.seed))
        log_to(place)
    return recipe, place


def make_start(recipe: Recipe, place: RunFolder) -> None:
    """Writes the random model that a run starts from, unless it lies there already.

    Raises:
        UserError: The folder holds training that began with another one.
    """
    from luthier.models import scratch
    from luthier.prepare.raw import read_records
    from luthier.records import Record

    if recipe.model.scratch is None:
        return
    source = recipes.build("source", recipe.data.source, "recipe key data.source")
    key = hash_value(
        [
            recipe.model.scratch.model_dump(mode="json"),
            recipe.data.source,
            source.fingerprint(),
            recipe.task,
            recipe.seed,
        ]
    )
    if is_done(place, "start", key, place.start):
        return
    if holds_training(place):
        raise other_training(place, "what its random start was made of")
    task = recipes.build("task", recipe.task, "recipe key task")
    records = read_records(recipe.data.source, "recipe key data.source")
    texts = (task.duplicate_text(record) for record in records if isinstance(record, Record))
    scratch.make(recipe.model.scratch, texts, place.start, recipe.seed)
    note_done(place, "start", key)


def log_to(place: RunFolder) -> None:
    """Adds the run's ``run.log`` to what is logged to, once."""
    if any(getattr(h, "baseFilename", "") == str(place.log.resolve()) for h in logger.handlers):
        return
    handler = logging.FileHandler(place.log.resolve(), encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    if writes():  # the others say only what is theirs
        logger.setLevel(logging.INFO)


@contextmanager
def log_in(place: RunFolder) -> Iterator[None]:
    """A block after which nothing more is logged in a stage's folder."""
    try:
        yield
    finally:
        for handler in list(logger.handlers):
            if getattr(handler, "baseFilename", "") == str(place.log.resolve()):
                logger.removeHandler(handler)
                handler.close()


def writes() -> bool:
    """Whether this is the process, of several that torchrun started, that does what needs doing once."""
    return os.environ.get("RANK", "0") == "0"
