"""Which stages of a run folder are finished, by the key of all that each depends on; and training that is not to be touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier import recipe_file, registry
from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder, hash_value, logger, read_json, write_json
from luthier.stages import settled

# Sections and keys of a recipe that make what is trained.
TRAINING = ("task", "model", "data", "train", "seed")
# Settings of training that may differ when it goes on.
_CHANGES_NO_STEP = ("stop_on", "sharding", "trackers", "num_samples", "keep_checkpoints")
# Those that change its speed, and what checks say of that.
_CHANGES_SPEED = ("micro_batch_tokens", "gradient_checkpointing", "packing", "compile")


def is_done(place: RunFolder, stage: str, key: str, result: Path | None) -> bool:
    """Whether a stage has run with this key and its result is there; says so."""
    done = keys_of(place).get(stage) == key and result is not None and result.exists()
    if done:
        logger.info("%s: skipped, nothing has changed", stage)
    return done


def note_done(place: RunFolder, stage: str, key: str) -> None:
    """Writes down that a stage has run with this key."""
    write_json(place.stages, keys_of(place) | {stage: key})


def keys_of(place: RunFolder) -> dict[str, str]:
    """The key with which each finished stage ran."""
    stages: dict[str, str] = read_json(place.stages) if place.stages.is_file() else {}
    return stages


def key_of(
    place: RunFolder, recipe: Recipe, *parts: str, code: Mapping[str, Any] | None = None, before: str = ""
) -> str:
    """Hash of all that a stage depends on: its rows, parts of the recipe, code, and what came before.

    Args:
        place: The run's folder, prepared.
        recipe: As its folder settles it.
        parts: Its sections, by key.
        code: Registered things whose files count.
        before: Key of the stage, or hash of the start, that this one goes on from.
    """
    tree = recipe.model_dump(mode="json")
    for name in (*_CHANGES_NO_STEP, *(() if "check" in parts else _CHANGES_SPEED)):
        tree["train"].pop(name)
    if recipe.model.scratch is not None or _trained_by(recipe) is not None:
        tree["model"].pop("name")  # wherever the run folder lies by now
    if recipe.model.start_from:
        tree["model"].pop("start_from")  # what is in it counts: `before`
    sources = {name: registry.code_hash(entry) for name, entry in (code or {}).items()}
    return hash_value(
        [read_json(place.manifest)["key"], {part: tree[part] for part in parts}, sources, before]
    )


def train_key(place: RunFolder, recipe: Recipe) -> str:
    """The key of training."""
    return key_of(place, recipe, "task", "model", "train", "seed", before=start_key(recipe))


def start_key(recipe: Recipe) -> str:
    """Hash of the training that this one goes on from; nothing if it begins anew."""
    if recipe.model.start_from:
        from luthier.models.start import start_hash

        return start_hash(recipe.model)
    earlier = _trained_by(recipe)
    return "" if earlier is None else keys_of(earlier).get("train", "")


def _trained_by(recipe: Recipe) -> RunFolder | None:
    """The run that has trained, as a whole, the model that this one begins with; None for any other model."""
    run = RunFolder(Path(recipe.model.name).parent)
    return run if recipe.model.name == str(run.model) and run.stages.is_file() else None


def refuse_other_recipe(place: RunFolder, recipe: Recipe) -> None:
    """A folder that holds training belongs to its recipe: nothing in it is replaced by what another one asks for."""
    if recipe.stages:
        if holds_training(place):
            raise other_training(place, "one training, and the recipe has stages")
        return
    if place.changes.is_file():
        raise UserError(
            "this run folder holds the training stages of another recipe",
            str(place.path),
            f"name another folder with --run, or delete {place.changes} and {place.path / 'stages'}",
        )
    if not place.recipe.is_file() or not holds_training(place):
        return
    old = settled(recipe_file.load(place.recipe), place).model_dump(mode="json")
    new = settled(recipe, place).model_dump(mode="json")
    for tree in (old, new):
        tree["data"].pop("num_workers")  # changes no row
        for name in (*_CHANGES_NO_STEP, *_CHANGES_SPEED):
            tree["train"].pop(name)
    differing = [part for part in TRAINING if old[part] != new[part]]
    if differing:
        raise other_training(place, ", ".join(differing))


def holds_training(place: RunFolder) -> bool:
    """Whether something in the folder was trained: a result, or checkpoints on the way to one."""
    return place.result() is not None or any(place.checkpoints.glob("step-*"))


def other_training(place: RunFolder, differing: str) -> UserError:
    """The mistake of asking for training in a folder that holds another one."""
    return UserError(
        f"this run folder holds training with other settings or data ({differing})",
        str(place.path),
        f"name another folder with --run, or delete {place.checkpoints} and {place.result() or place.adapter}",
    )
