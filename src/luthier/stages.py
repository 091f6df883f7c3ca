"""Training stages of a recipe on disk: what each goes on from, and what is different from one to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier import recipe_file
from luthier.errors import UserError
from luthier.recipe import STAGE, Classifier, Model, Recipe, build, stage
from luthier.run_folder import RunFolder, read_json


def settled(recipe: Recipe, place: RunFolder) -> Recipe:
    """The recipe of a run in its folder: that decides where its model lies, and which classes a head has."""
    model = in_run(recipe.model, place)
    if place.labels.is_file():
        head = build("task", recipe.task).head(read_json(place.labels)["names"])
        if head is not None:
            model = Classifier(**{**model.model_dump(), "head": head})
    return recipe.model_copy(update={"model": model})


def in_run(model: Model, run: RunFolder) -> Model:
    """A model section with the folders that its run's own place decides: a random start, or an earlier stage's result.

    Before that stage is trained, what it starts from stands in for its result: with it rows are made and checked.

    Args:
        model: As the recipe has it.
        run: The run's folder.

    Raises:
        UserError: The earlier stage has no recipe in its folder.
    """
    if model.scratch is not None:
        return model.model_copy(update={"name": str(run.start), "revision": None})
    if model.name.startswith(STAGE):
        earlier = _begun(model.name, run)
        if earlier.result() is not None:
            model = model.model_copy(update={"name": str(earlier.model)})
        else:
            model = _standing_in(model, earlier, {})
    if model.start_from and model.start_from.startswith(STAGE):
        earlier = _begun(model.start_from, run)
        if earlier.result() is not None:
            return model.model_copy(update={"start_from": str(earlier.path)})
        start = in_run(recipe_file.load(earlier.recipe).model, earlier).start_from
        if model.start_mode == "merge":
            return _standing_in(model, earlier, {"start_from": start})
        return model.model_copy(update={"start_from": start})
    return model


def _begun(name: str, run: RunFolder) -> RunFolder:
    """The folder of an earlier stage, with its recipe."""
    earlier = run.beside(name.removeprefix(STAGE))
    if not earlier.recipe.is_file():
        raise UserError(
            f"the stage {earlier.path.name!r} that this one goes on from has not begun",
            str(earlier.path),
            "run the whole recipe: its stages are done in order",
        )
    return earlier


def _standing_in(model: Model, earlier: RunFolder, update: dict[str, Any]) -> Model:
    """The model that an earlier stage starts from, with the tokens and positions that its result will have."""
    before = in_run(recipe_file.load(earlier.recipe).model, earlier)
    tokens, rope = [*before.new_tokens, *model.new_tokens], model.rope or before.rope
    update |= {"name": before.name, "revision": before.revision, "new_tokens": tokens, "rope": rope}
    return model.model_copy(update=update)


def waits_for(model: Model, run: RunFolder) -> str | None:
    """The earlier stage that has to be trained before this model can be; None if nothing is lacking."""
    names = [
        name.removeprefix(STAGE) for name in (model.name, model.start_from or "") if name.startswith(STAGE)
    ]
    return next((name for name in names if run.beside(name).result() is None), None)


def _named(model: Model) -> str | None:
    """The stage that a model section goes on from."""
    given = model.start_from or model.name
    return given.removeprefix(STAGE) if given.startswith(STAGE) else None


def changes(recipe: Recipe) -> list[dict[str, Any]]:
    """What each stage has otherwise than the one before it, as ``changes.json`` has it: by key of the resolved recipes."""
    told: list[dict[str, Any]] = []
    before: dict[str, Any] = {}
    for name in recipe.stages:
        own = stage(recipe, name)
        flat = _flat(own.model_dump(mode="json", exclude={"name", "stages"}))
        different = sorted(key for key in {*flat, *before} if flat.get(key) != before.get(key))
        told.append(
            {
                "stage": name,
                "goes_on_from": _named(own.model) or own.model.start_from,
                "changes": {key: [before.get(key), flat.get(key)] for key in different if before},
            }
        )
        before = flat
    return told


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; an empty section is a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": value}
        )
    return found
