"""Verbs of the pipeline over a recipe with training stages: one after the other, each in a run folder of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from luthier import recipe as recipes
from luthier import recipe_file, stages
from luthier.finished import keys_of, refuse_other_recipe
from luthier.opening import AnyRecipe, log_in, log_to, read, writes
from luthier.recipe import Recipe
from luthier.records import Progress
from luthier.run_folder import (
    RunFolder,
    hash_value,
    logger,
    read_json,
    user_disk_errors,
    write_json,
    write_text,
)
from luthier.stages import settled

Verb = TypeVar("Verb", bound=Callable[..., RunFolder])


def by_stage(verb: Verb) -> Verb:
    """A verb that does a recipe with ``stages`` stage by stage, in order, each in a run folder of its own."""

    @functools.wraps(verb)
    def each(
        recipe: AnyRecipe, *overrides: str, folder: str | Path | None = None, **options: Any
    ) -> RunFolder:
        whole = read(recipe, *overrides)
        if not whole.stages:
            return verb(whole, folder=folder, **options)
        place = RunFolder(folder or Path("runs") / whole.name)
        _begin(whole, place)
        for name, own in place.trainings().items():
            logger.info("stage %s", name)
            with log_in(own):
                verb(recipes.stage(whole, name), folder=own.path, **options)
            if verb.__name__ == "evaluate" and writes():
                _measure_forgetting(place, name, options.get("progress"))
        if verb.__name__ == "report" and writes():
            from luthier.report import stages as page

            with user_disk_errors(place.path):
                page.write(place, whole)
        return place

    return cast(Verb, each)


def _begin(whole: Recipe, place: RunFolder) -> None:
    """Writes the recipe with its stages, and what changes from one to the next."""
    place.create()
    refuse_other_recipe(place, whole)
    with user_disk_errors(place.path):
        log_to(place)
        write_text(place.recipe, recipe_file.dump(whole))
        write_json(place.changes, stages.changes(whole))


def _measure_forgetting(place: RunFolder, name: str, progress: Progress | None) -> None:
    """Adds to ``forgetting.json`` what a stage's model scores on the test rows of each stage before it."""
    from luthier.evaluate import forgetting

    folders = place.trainings()
    later = folders[name]
    known = read_json(place.forgetting, list) if place.forgetting.is_file() else []
    for earlier in list(folders)[: list(folders).index(name)]:
        own = folders[earlier]
        if not own.scores.is_file():  # it has no test rows
            continue
        key = hash_value([keys_of(own)["evaluate"], keys_of(later)["train"]])
        pair = {"stage": earlier, "after": name}
        if any(entry["key"] == key for entry in known if pair.items() <= entry.items()):
            continue
        sides = [(settled(recipe_file.load(one.recipe), one), one) for one in (own, later)]
        with user_disk_errors(place.path):
            found = forgetting.measure(*sides[0], *sides[1], progress)
            known = [entry for entry in known if not pair.items() <= entry.items()]
            known.append({**pair, "key": key, **found})
            write_json(place.forgetting, known)
