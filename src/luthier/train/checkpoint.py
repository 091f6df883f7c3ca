"""Checkpoints: complete or absent, safetensors only, with all that an exact resume needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import UserError
from luthier.run_folder import RunFolder, hash_file, new_folder, read_json, write_json


@dataclass(slots=True)
class Progress:
    """Where a run stands after a step.

    Attributes:
        step: Optimizer steps done.
        tokens: Real tokens seen; ``trained_tokens``: those with a loss.
        seconds: Time spent training, over resumes.
        best_step, best_value: Of the best evaluation so far.
        evals_without_better: For early stopping.
        next_eval_tokens: When evaluation goes by tokens, the count at which the next one is due.
    """

    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_value: float | None = None
    evals_without_better: int = 0
    next_eval_tokens: int = 0


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save(
    run: RunFolder, progress: Progress, model: torch.nn.Module, optimizer: torch.optim.Optimizer, key: str
) -> Path:
    """Writes ``checkpoints/step-N``; an interrupted write leaves nothing under that name.

    Args:
        run: The run's folder.
        progress: Where it stands.
        model: Only what is trained is saved.
        optimizer: Its state is saved by parameter name.
        key: Hash of what the run trains on; a checkpoint of other data or settings is not resumed from.
    """
    path = run.checkpoints / f"step-{progress.step}"
    parameters = trainable(model)
    names = {id(p): name for name, p in parameters.items()}
    state = {
        f"{names[id(p)]}/{entry}": value.contiguous()
        for p, entries in optimizer.state.items()
        for entry, value in entries.items()
    }
    with new_folder(path) as folder:
        save_file(
            {name: p.detach().contiguous() for name, p in parameters.items()}, folder / "weights.safetensors"
        )
        save_file(state, folder / "optimizer.safetensors")
        hashes = {file.name: hash_file(file) for file in sorted(folder.iterdir())}
        write_json(folder / "state.json", {"key": key, "progress": asdict(progress), "files": hashes})
    return path


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Puts a checkpoint's weights into the model's trainable parameters."""
    _check_whole(path)
    _copy(load_file(path / "weights.safetensors"), trainable(model), path)


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Puts weights and optimizer state back.

    Raises:
        UserError: The checkpoint is damaged, or made for other parameters.
    """
    load_weights(path, model)
    parameters = trainable(model)
    for name, value in load_file(path / "optimizer.safetensors").items():
        parameter, _, entry = name.rpartition("/")
        optimizer.state[parameters[parameter]][entry] = value.to(
            parameters[parameter].device if value.ndim else "cpu"
        )
    return Progress(**read_json(path / "state.json")["progress"])


def steps(run: RunFolder) -> list[int]:
    """Steps of the checkpoints on disk, in order."""
    return sorted(int(p.name.removeprefix("step-")) for p in run.checkpoints.glob("step-*"))


def latest(run: RunFolder, key: str) -> Path | None:
    """The newest checkpoint, or None.

    Raises:
        UserError: It is damaged (the error names the one before), or was made with other settings or data.
    """
    if not steps(run):
        return None
    path = run.checkpoints / f"step-{steps(run)[-1]}"
    if _check_whole(path)["key"] != key:
        raise UserError(
            f"the checkpoint {path.name} was made with other settings or data",
            str(path),
            f"name another folder with --run, or delete {run.checkpoints} to start over",
        )
    return path


def remove_old(run: RunFolder, keep: int, best_step: int | None) -> None:
    """Deletes all but the newest ``keep`` checkpoints and the best one."""
    for step in steps(run)[:-keep]:
        if step != best_step:
            shutil.rmtree(run.checkpoints / f"step-{step}")


def _check_whole(path: Path) -> dict[str, Any]:
    damage = None
    state: dict[str, Any] = {}
    try:
        state = read_json(path / "state.json")
        for name, expected in state["files"].items():
            if not (path / name).is_file():
                damage = f"{name} is missing"
            elif hash_file(path / name) != expected:
                damage = f"{name} has changed since it was written"
    except (UserError, KeyError, TypeError) as error:
        damage = f"state.json is damaged ({type(error).__name__})"
    if damage:
        earlier = sorted((p for p in path.parent.glob("step-*") if _step(p) < _step(path)), key=_step)
        offer = f" to go on from {earlier[-1].name}" if earlier else " to start over"
        raise UserError(
            f"the checkpoint {path.name} is damaged: {damage}", str(path), f"delete that folder{offer}"
        )
    return state


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, torch.nn.Parameter], path: Path) -> None:
    if values.keys() != parameters.keys():
        different = sorted(values.keys() ^ parameters.keys())
        raise UserError(
            f"{len(different)} parameters differ between checkpoint and model, first {different[0]}",
            str(path),
            "delete the checkpoints, or go back to the recipe that wrote them",
        )
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
