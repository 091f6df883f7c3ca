"""Rejection sampling: a model repairs bugs in rounds, is trained on its patches that pass, and repairs again.

Source: Zelikman et al. 2022, STaR, arXiv:2203.14465, with tests in the place of known answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier import pipeline, recipe_file
from luthier.errors import Refused, UserError
from luthier.recipe import Recipe
from luthier.records import Progress, Record
from luthier.run_folder import RunFolder, logger, read_json, write_json
from luthier.sources.repair_rounds import RepairRounds


def learn(
    recipe: Recipe, place: RunFolder, iterations: int, *, base: bool = False, progress: Progress | None = None
) -> Path:
    """Writes ``rejection/iteration-N``, each a run of its own, and ``rejection/iterations.json``, whose path is returned.

    Every stage of every iteration is skipped where it is done, so that the loop goes on where it was stopped.

    Args:
        recipe: With ``repair.bugs`` and ``repair.rounds``; its training settings are those of each iteration.
        place: The run whose model begins.
        iterations: How often patches that passed are learned.
        base: Whether the model as it was before training begins.
        progress: Called with a label, what is done and the total (or None).

    Raises:
        UserError: A server is to write them, which learns nothing here.
        Refused: No patch passed.
    """
    if recipe.repair.rounds.server is not None:
        raise UserError(
            "a server's model is not trained here", "recipe key repair.rounds.server", "leave the server out"
        )
    root = place.path / "rejection"
    writer = place
    folders = [pipeline.repair(recipe, folder=place.path, base=base, rounds=True, progress=progress)]
    path = root / "iterations.json"
    entries = [_entry(0, writer, folders)]
    write_json(path, {"iterations": entries})
    for number in range(1, iterations + 1):
        if not entries[-1]["num_patches"]:
            raise Refused(
                "no patch passed, so that there is nothing to learn from",
                str(folders[-1] / "rounds.json"),
                "take easier bugs, or raise repair.num_candidates or --rounds",
            )
        started = writer if number > 1 or not base else None
        own = _with_patches(recipe, folders, started)
        writer = RunFolder(root / f"iteration-{number}")
        pipeline.train(own, folder=writer.path, progress=progress)
        folders.append(pipeline.repair(own, folder=writer.path, rounds=True, progress=progress))
        entries.append(_entry(number, writer, folders))
        write_json(path, {"iterations": entries})
        logger.info("repair: iteration %d: %d patches to learn from", number, entries[-1]["num_patches"])
    return path


def _entry(number: int, writer: RunFolder, folders: Sequence[Path]) -> dict[str, Any]:
    """What an iteration came to: its share of bugs repaired, and the patches of it and all before it."""
    results = read_json(folders[-1] / "rounds.json")
    num_patches = _patches(folders)
    return {
        "iteration": number,
        "model": str(writer.path),
        "results": str(folders[-1]),
        "num_patches": num_patches,
        "num_new": num_patches - _patches(folders[:-1]),
        "plausible": results["metrics"][f"plausible by round {results['max_rounds']}"],
    }


def _patches(folders: Sequence[Path]) -> int:
    if not folders:
        return 0
    records = RepairRounds(path=[str(folder) for folder in folders]).records()
    return sum(isinstance(record, Record) for record in records)


def _with_patches(recipe: Recipe, folders: Sequence[Path], start: RunFolder | None) -> Recipe:
    """The recipe with the patches as its data, going on from the weights of a run."""
    tree = recipe.model_dump(mode="json")
    tree["data"]["source"] = {"type": "repair-rounds", "path": [str(folder.resolve()) for folder in folders]}
    if start is not None and start.adapter.is_dir():
        tree["model"] |= {"start_from": str(start.path.resolve()), "start_mode": "continue"}
        if tree["model"]["adapter"]:
            tree["model"]["adapter"]["init"] = "default"  # it has its weights
    elif start is not None and start.model.is_dir():  # new tokens are in it
        tree["model"] |= {
            "name": str(start.model.resolve()),
            "revision": None,
            "scratch": None,
            "new_tokens": [],
        }
    return recipe_file.with_overrides(tree, ())
