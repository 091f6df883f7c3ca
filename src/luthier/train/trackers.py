"""Experiment trackers that get each line of the history as well, through accelerate; one that fails never stops a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from luthier.errors import one_line
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder, hash_value, logger, read_json, write_json, write_text

FOLDER = "trackers"
# Holds the run id that MLflow has drawn, so that a resumed run goes on under it.
_MLFLOW_RUN = "mlflow-run-id"
_set_here: dict[str, str] = {}  # environment variables


class Trackers:
    """The recipe's trackers. What becomes of each is noted under ``trackers`` in ``environment.json``.

    Args:
        recipe: Its settings are stored with the run.
        run: What trackers write to the disk lies in its folder ``trackers/``.
        step: Where a resumed run goes on; 0 at the beginning.
        writes: Whether this process tells them, of several.
    """

    def __init__(self, recipe: Recipe, run: RunFolder, step: int, *, writes: bool) -> None:
        self._run = run
        self._running: dict[str, Any] = {}
        self._status: dict[str, str] = {}
        for name in dict.fromkeys(recipe.train.trackers if writes else ()):
            self._try(name, "start", partial(self._start, name, recipe, step))
        self._note()

    def log(self, row: Mapping[str, Any]) -> None:
        """Hands on the numbers of an object of the history."""
        values = _numbers(row)
        for name, tracker in [*self._running.items()]:
            self._try(name, f"step {row['step']}", partial(tracker.log, values, step=row["step"]))

    def close(self) -> None:
        """Ends them all."""
        for name, tracker in [*self._running.items()]:
            self._try(name, "the end", tracker.finish)
        self._running.clear()

    def _start(self, name: str, recipe: Recipe, step: int) -> None:
        folder = self._run.path / FOLDER
        folder.mkdir(exist_ok=True)
        tracker = LOGGER_TYPE_TO_CLASS[name](**_options(name, recipe, self._run, step))
        tracker.start()
        self._running[name], self._status[name] = tracker, "told of every step"
        if name == "mlflow":
            write_text(folder / _MLFLOW_RUN, tracker.tracker.info.run_id)
        if not step:
            tracker.store_init_configuration(_settings(recipe.model_dump(mode="json")))

    def _try(self, name: str, when: str, do: Callable[[], Any]) -> None:
        try:
            do()
        except Exception as error:  # whatever a missing package, a full disk or a server raises
            self._running.pop(name, None)
            self._status[name] = f"left out since {when}: {one_line(error)}"
            logger.warning("train: the tracker %s is %s", name, self._status[name])
            self._note()

    def _note(self) -> None:
        if self._status:
            write_json(self._run.environment, read_json(self._run.environment) | {"trackers": self._status})


def _options(name: str, recipe: Recipe, run: RunFolder, step: int) -> dict[str, Any]:
    """What accelerate's class of a tracker takes: a project is the recipe's name, a run in it the run folder's."""
    folder = (run.path / FOLDER).resolve()
    if name == "tensorboard":
        # Steps behind the checkpoint are made again; what was said of them goes.
        return {"run_name": name, "logging_dir": folder, "purge_step": step + 1 if step else None}
    if name == "wandb":
        unique = hash_value([str(run.path.resolve()), read_json(run.environment)["started"]])[:16]
        return {
            "run_name": recipe.name,
            "name": run.path.name,
            "dir": folder,
            "id": unique,
            "resume": "allow",
        }
    if name == "mlflow":
        _unless_given("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        known = folder / _MLFLOW_RUN
        return {
            "experiment_name": recipe.name,
            "run_name": run.path.name,
            "logging_dir": str(folder / "mlflow"),
            "run_id": known.read_text() if step and known.is_file() else None,
        }
    _unless_given("TRACKIO_DIR", str(folder / "trackio"))
    return {"run_name": recipe.name, "name": run.path.name, "resume": "allow"}


def _unless_given(variable: str, value: str) -> None:
    """Sets what the environment does not say; what an earlier run of this process set is not the user's."""
    if os.environ.get(variable) == _set_here.get(variable):
        os.environ[variable] = _set_here[variable] = value


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """``train/loss`` and the like, and ``eval/loss`` and the like."""
    parts = {"train": row, "eval": row.get("eval", {})}
    return {
        f"{part}/{name}": value
        for part, values in parts.items()
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
    }


def _settings(tree: Any, path: str = "") -> dict[str, bool | int | float | str]:
    """The recipe's values by dotted key, as the plain values that trackers take."""
    if not isinstance(tree, dict):
        return {path: tree if isinstance(tree, bool | int | float | str) else repr(tree)}
    return {
        key: value
        for name, part in tree.items()
        for key, value in _settings(part, f"{path}.{name}" if path else name).items()
    }
