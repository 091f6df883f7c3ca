"""Checkpoints: complete or absent, safetensors only, with all that an exact resume needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import UserError
from luthier.models.sharded import like, put, whole
from luthier.run_folder import RunFolder, hash_file, hash_value, new_folder, read_json, write_json

# What a checkpoint holds beside the manifest, which is written last and has the hashes of the others.
_FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")
_MANIFEST = "manifest.json"


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
    run: RunFolder,
    progress: Progress,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    key: str,
    *,
    writes: bool = True,
) -> Path:
    """Writes ``checkpoints/step-N``; an interrupted write leaves nothing under that name.

    It holds whole tensors, whatever the number of processes and however they share the weights, so that any other number
    can go on from it.

    Args:
        run: The run's folder.
        progress: Where it stands.
        model: Only what is trained is saved.
        optimizer: Its state is saved by parameter name.
        key: Hash of what the run trains on; a checkpoint of other data or settings is not resumed from.
        writes: Whether this process writes, of several, all of which have to call this if weights are in shards.
    """
    path = run.checkpoints / f"step-{progress.step}"
    weights: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, parameter in trainable(model).items():
        entries = {f"{name}/{entry}": value for entry, value in optimizer.state.get(parameter, {}).items()}
        for found, values in ((weights, {name: parameter}), (state, entries)):
            for label, value in values.items():
                gathered = whole(value.detach())
                if writes:
                    found[label] = gathered.cpu().contiguous()
    if not writes:
        return path
    with new_folder(path) as folder:
        save_file(weights, folder / _FILES[0])
        save_file(state, folder / _FILES[1])
        write_json(folder / _FILES[2], {"key": key, "progress": asdict(progress)})
        hashes = {name: hash_file(folder / name) for name in _FILES}
        write_json(folder / _MANIFEST, {"files": hashes, "sha256": hash_value(hashes)})
    return path


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Puts a checkpoint's weights into the model's trainable parameters."""
    _check_whole(path)
    _copy(load_file(path / "weights.safetensors"), trainable(model), path)


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Puts weights and optimizer state back, of a checkpoint that ``latest`` has found whole.

    Raises:
        UserError: It was made for other parameters.
    """
    parameters = trainable(model)
    _copy(load_file(path / "weights.safetensors"), parameters, path)
    # The fused form counts its steps where the parameters are; bitsandbytes on the processor.
    fused = optimizer.defaults.get("fused")
    for name, value in load_file(path / "optimizer.safetensors").items():
        parameter, _, entry = name.rpartition("/")
        target = parameters[parameter]
        if value.ndim:
            value = like(target, value)
        elif fused:
            value = value.to(target.device)
        optimizer.state[target][entry] = value
    return Progress(**read_json(path / "state.json")["progress"])


def steps(run: RunFolder) -> list[int]:
    """Steps of the checkpoints on disk, in order."""
    return list(_folders(run.checkpoints))


def latest(run: RunFolder, key: str) -> Path | None:
    """The newest checkpoint, or None.

    Raises:
        UserError: It is damaged (the error names the newest whole one before it), or was made with other settings or data.
    """
    if not steps(run):
        return None
    path = run.checkpoints / f"step-{steps(run)[-1]}"
    _check_whole(path)
    if read_json(path / "state.json")["key"] != key:
        raise UserError(
            f"the checkpoint {path.name} was made with other settings or data",
            str(path),
            f"name another folder with --run, or delete {run.checkpoints} to start over",
        )
    return path


def remove_old(run: RunFolder, keep: int, best_step: int | None) -> None:
    """Deletes all but the newest ``keep`` checkpoints and the best one, and what interrupted writes have left."""
    for path in run.checkpoints.glob(".step-*"):
        shutil.rmtree(path)
    for step in steps(run)[:-keep]:
        if step != best_step:
            path = run.checkpoints / f"step-{step}"
            # Half of one never lies under its name.
            shutil.rmtree(path.rename(path.with_name(f".{path.name}-old")))


def _check_whole(path: Path) -> None:
    if damage := _damage(path):
        every = list(_folders(path.parent).values())
        earlier = every[: every.index(path)]
        kept = [p for p in earlier if not _damage(p)]
        damaged = [p.name for p in earlier[earlier.index(kept[-1]) + 1 if kept else 0 :]]
        folders = " and ".join(["that folder", *damaged])
        offer = f"to go on from {kept[-1].name}" if kept else "to start over"
        raise UserError(
            f"the checkpoint {path.name} is damaged: {damage}", str(path), f"delete {folders} {offer}"
        )


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if nothing is."""
    if not (path / _MANIFEST).is_file():
        return f"{_MANIFEST} is missing"
    try:
        manifest = read_json(path / _MANIFEST)
        if manifest["sha256"] != hash_value(manifest["files"]) or manifest["files"].keys() != set(_FILES):
            return f"{_MANIFEST} has changed since it was written"
    except (UserError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} has changed since it was written"
    for name, expected in manifest["files"].items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if hash_file(path / name) != expected:
            return f"{name} has changed since it was written"
    return None


def _folders(checkpoints: Path) -> dict[int, Path]:
    """The folder of each step, in order; of other names they are somebody's own."""
    named = {path.name.removeprefix("step-"): path for path in checkpoints.glob("step-*")}
    numbers = sorted(int(name) for name in named if name.isdecimal())
    return {step: named[str(step)] for step in numbers if str(step) in named}


def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, torch.nn.Parameter], path: Path) -> None:
    if values.keys() != parameters.keys():
        different = sorted(values.keys() ^ parameters.keys())
        raise UserError(
            f"{len(different)} parameters differ between checkpoint and model, first {different[0]}",
            str(path),
            "delete the checkpoints, or go back to the recipe that wrote them",
        )
    for name, value in values.items():
        put(parameters[name], value)
