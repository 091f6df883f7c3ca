"""A sweep: one recipe with every combination of some settings, each a run of its own in one folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from luthier import recipe_file
from luthier.errors import UserError, UserErrors
from luthier.evaluate import significance
from luthier.finished import TRAINING, refuse_other_recipe
from luthier.launch import torchrun
from luthier.recipe import Recipe
from luthier.report import sweep as report
from luthier.run_folder import SWEEP, RunFolder, hash_value, logger, read_json, write_json

_LONGEST_NAME = 100
_MOST_RUNS = 1000  # more is a mistake rather than a wish


@dataclass(frozen=True, slots=True)
class Planned:
    """A run of a sweep before it has begun.

    Attributes:
        run: Its folder.
        settings: What it has instead of the recipe's, as written, by recipe key.
        overrides: The same as ``key=value`` of the command line, behind those of the whole sweep.
    """

    run: RunFolder
    settings: dict[str, str]
    overrides: list[str]


def axes(given: Sequence[str]) -> dict[str, list[str]]:
    """``train.learning_rate=1e-4,2e-4`` as values by key.

    Raises:
        UserErrors: What is no ``key=value,value``, a key twice, or a value twice.
    """
    found: dict[str, list[str]] = {}
    errors = []
    for text in given:
        key, equals, values = text.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
            fix = "write for example --sweep train.learning_rate=1e-4,2e-4"
            errors.append(UserError(f"{text!r} is not key=value,value", "option --sweep", fix))
            continue
        try:
            parts = _split(values)
        except (yaml.YAMLError, RecursionError):
            errors.append(
                UserError(f"the values of {text!r} are not valid YAML", "option --sweep", "quote them")
            )
            continue
        if key in found:
            fix = f"write all values behind one: --sweep {key}={','.join([*found[key], *parts])}"
            errors.append(UserError(f"{key} is swept twice", "option --sweep", fix))
        elif not parts or len(set(parts)) < len(parts):
            what = f"{key} has the same value twice: {values}" if parts else f"{key} has no values"
            errors.append(UserError(what, "option --sweep", "name each value once, with commas between"))
        found.setdefault(key, parts)
    if errors:
        raise UserErrors(errors)
    return found


def _split(values: str) -> list[str]:
    """The parts of a list as they are written, cut at its own commas, not at those in brackets or quotes."""
    text = f"[{values}]"
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.SequenceNode) or node.end_mark.index != len(text):
        raise yaml.YAMLError(f"no list: {values}")
    return [text[item.start_mark.index : item.end_mark.index].strip() for item in node.value]


def plan(
    target: str | Path, overrides: Sequence[str], given: Sequence[str], folder: Path | None
) -> tuple[Path, Recipe, list[Planned]]:
    """The sweep's folder with ``sweep.json`` in it, the recipe without the sweep, and the runs in order.

    Every recipe is validated before anything is written.

    Args:
        target: Recipe file or shipped name.
        overrides: ``key=value`` of all runs.
        given: ``key=value,value`` of the sweep.
        folder: Of the sweep; ``runs/NAME-sweep`` if not given.

    Raises:
        UserError: A recipe that is not valid, or a folder that holds something else, runs with other settings included.
    """
    swept = axes(given)
    if fixed := [key for key in swept if any(override.startswith(f"{key}=") for override in overrides)]:
        raise UserError(f"{fixed[0]} is both set and swept", "command line", f"leave out {fixed[0]}=...")
    count = 1
    for values in swept.values():
        count *= len(values)
    if count > _MOST_RUNS:
        raise UserError(
            f"the sweep has {count:,} runs", "option --sweep", f"name at most {_MOST_RUNS:,} combinations"
        )
    base = recipe_file.load(target, overrides)
    if base.stages:
        raise UserError(
            "a sweep compares single trainings, and this recipe has stages",
            "recipe key stages",
            "sweep over a recipe of one stage, with model.start_from where it goes on from another",
        )
    top = folder or Path("runs") / f"{base.name}-sweep"
    if (top / "recipe.yaml").is_file():
        raise UserError(f"{top} holds a single run", str(top), "name another folder for the sweep with --run")
    runs = []
    for combination in itertools.product(*swept.values()):
        settings = dict(zip(swept, combination, strict=True))
        own = [f"{key}={value}" for key, value in settings.items()]
        planned = Planned(RunFolder(top / _folder(settings)), settings, own)
        refuse_other_recipe(planned.run, recipe_file.load(target, [*overrides, *own]))
        runs.append(planned)
    RunFolder(top).create()
    before = read_json(top / SWEEP) if (top / SWEEP).is_file() else {"runs": []}
    known = before["runs"]
    settings_hash = hash_value(base.model_dump(mode="json", include=set(TRAINING)))
    if before.get("settings_hash", settings_hash) != settings_hash:
        raise UserError(
            f"{top} holds runs of {' '.join([before['recipe'], *before['overrides']])} that had other settings",
            str(top / SWEEP),
            "name another folder with --run: runs of one table differ in nothing but what is swept",
        )
    mine = [{"folder": planned.run.path.name, "settings": planned.settings} for planned in runs]
    kept = [each for each in known if each["folder"] not in {one["folder"] for one in mine}]
    told = {"recipe": str(target), "overrides": list(overrides), "settings_hash": settings_hash}
    write_json(top / SWEEP, told | {"runs": [*mine, *kept]})
    return top, base, runs


def _folder(settings: Mapping[str, str]) -> str:
    """A name for people that is the same whatever other values are swept, so that a sweep can be widened."""
    name = report.name_of(settings).replace(", ", "_")
    plain = re.sub(r"[^\w.=-]+", "-", name)
    if plain == name and len(plain) <= _LONGEST_NAME:
        return plain
    return f"{plain[:_LONGEST_NAME]}-{hash_value(dict(settings))[:8]}"


def run(
    target: str | Path,
    overrides: Sequence[str],
    runs: Sequence[Planned],
    *,
    processes: int = 1,
) -> Iterator[Planned]:
    """Does the runs one after the other, each in processes of its own, and yields each when it has ended.

    One that fails does not stop the others; its reason is in its ``stopped.json``. What is finished is not done again.

    Args:
        target: Recipe file or shipped name.
        overrides: ``key=value`` of all runs.
        runs: As planned.
        processes: Of each run.

    Raises:
        Interrupted: A signal came; the run under way has saved a checkpoint.
    """
    for number, planned in enumerate(runs, 1):
        logger.info("sweep: run %d of %d: %s", number, len(runs), planned.run.path.name)
        command = torchrun.line(arguments(target, overrides, planned), nodes=1, processes=processes)
        planned.run.create()
        script = torchrun.keep(
            planned.run, torchrun.script(command, planned.run, torchrun.threads_each(processes))
        )
        planned.run.stopped.unlink(missing_ok=True)
        torchrun.start(script, planned.run, quiet=True)
        yield planned


def arguments(target: str | Path, overrides: Sequence[str], planned: Planned) -> list[str]:
    """What ``luthier`` is called with for a run of a sweep."""
    return ["run", str(target), *overrides, *planned.overrides]


def collect(folder: Path) -> list[report.Setting]:
    """What the runs of a sweep have come to by now; ``table.json`` and the page say the same.

    Raises:
        UserError: The folder holds no sweep.
    """
    with RunFolder(
        folder / "any"
    ).alone_in_sweep():  # jobs that end at the same time write one after the other
        settings = report.collect(folder, significance.compare)
        report.write(folder, folder.resolve().name, settings)
    return settings
