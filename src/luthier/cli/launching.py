"""Runs in processes of their own: several at once, as Slurm jobs, or one after the other as a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.syntax import Syntax
from rich.text import Text
from typer import Exit

from luthier import sweep
from luthier.cli import failures, screen
from luthier.cli.frame import is_run
from luthier.display.text import counted, safe
from luthier.errors import UserError
from luthier.finished import refuse_other_recipe
from luthier.launch import slurm, torchrun
from luthier.recipe import Recipe
from luthier.report import sweep as report
from luthier.run_folder import RunFolder, user_disk_errors


def told_apart(slurm: Sequence[str] | None, given: Sequence[str]) -> tuple[list[str] | None, list[str]]:
    """Options of sbatch (none without ``--slurm``) and recipe keys, of ``--slurm partition=gpu time=1:00:00 seed=1``."""
    if slurm is None:
        return None, list(given)
    keys = [
        text
        for text in given
        if "." in text.partition("=")[0] or text.partition("=")[0] in Recipe.model_fields
    ]
    return [*slurm, *(text for text in given if text not in keys)], keys


def launch(
    target: str,
    overrides: Sequence[str],
    recipe: Recipe,
    place: RunFolder,
    *,
    nodes: int,
    processes: int,
    endpoint: str | None,
    slurm_options: Sequence[str] | None,
) -> None:
    """A single run: its script is shown, kept in the run folder, and then run or submitted."""
    arguments = ["run", target, *overrides]
    torchrun.refuse_odd(Path.cwd(), place.path, *arguments)
    refuse_other_recipe(place, recipe)
    if slurm_options is not None:
        options = slurm.options(slurm_options)
        text = slurm.script(
            place, arguments, nodes=nodes, processes=processes, options=options, name=recipe.name
        )
        _submit(place, text)
        return
    command = torchrun.line(arguments, nodes=nodes, processes=processes, endpoint=endpoint)
    text = torchrun.script(command, place, torchrun.threads_each(processes))
    place.create()
    with user_disk_errors(place.path):
        script = torchrun.keep(place, text)
        place.stopped.unlink(missing_ok=True)
    _show(text, script)
    stopped = torchrun.start(script, place)
    if stopped:
        # The process that failed may be one whose words nobody saw, and torchrun's own stand below those of the others.
        failures.show(stopped["what"], stopped["where"], stopped["fix"], screen.err())
        raise Exit(stopped["exit_code"])


def launch_sweep(
    target: str,
    overrides: Sequence[str],
    given: Sequence[str],
    folder: Path | None,
    *,
    nodes: int,
    processes: int,
    slurm_options: Sequence[str] | None,
) -> None:
    """A sweep: one run after the other on this machine, or all as an array job."""
    if is_run(target):
        target = str(Path(target) / "recipe.yaml")
    if nodes > 1 and slurm_options is None:
        raise UserError(
            "a sweep over several machines needs Slurm", "option --nodes", "add --slurm, or leave out --nodes"
        )
    options = slurm.options(slurm_options or ())
    torchrun.refuse_odd(Path.cwd(), target, folder, *overrides, *given)
    top, recipe, runs = sweep.plan(target, overrides, given, folder)
    if slurm_options is not None:
        array = [(planned.run, sweep.arguments(target, overrides, planned)) for planned in runs]
        name = f"{recipe.name}-sweep"
        _submit(
            RunFolder(top),
            slurm.script(
                RunFolder(top), [], nodes=nodes, processes=processes, options=options, name=name, array=array
            ),
        )
        return
    try:
        for planned in sweep.run(target, overrides, runs, processes=processes):
            del planned  # all are collected below
    finally:
        settings = show_sweep(top)
    failed = [m.run.path.name for s in settings for m in s.members if m.state == "failed"]
    if failed:
        text = f"{counted(len(failed), 'run')} did not end well: {', '.join(failed)}; the same command tries again"
        screen.err().print(Text(safe(text), "yellow"), soft_wrap=True)
        raise Exit(1)


def show_sweep(folder: Path) -> list[report.Setting]:
    """Prints and writes table and page of a sweep, whatever has become of its runs by now."""
    with user_disk_errors(folder):
        settings = sweep.collect(folder)
    console = screen.out()
    console.print(report.table(settings))
    for setting in settings:
        failed = [f"{m.run.path.name}: {m.reason}" for m in setting.members if m.reason]
        for line in [*failed, *setting.notes]:
            console.print(Text(safe(line), "yellow"), soft_wrap=True)
    console.print(Text(safe(f"report: {folder / 'report.html'}")), soft_wrap=True)
    return settings


def _submit(place: RunFolder, text: str) -> None:
    place.create()
    _show(text, place.launch / slurm.SCRIPT)
    with user_disk_errors(place.path):
        number = slurm.submit(place, text)
    console = screen.out()
    console.print(Text(safe(f"submitted as job {number}; luthier status {place.path}")), soft_wrap=True)


def _show(text: str, path: Path) -> None:
    """The script on standard error, with the place where it is kept."""
    console = screen.err()
    console.print(Text(safe(f"{path}:"), "dim"), soft_wrap=True)
    shown = (
        Syntax(safe(text), "bash", background_color="default", word_wrap=True)
        if console.is_terminal
        else Text(safe(text))
    )
    console.print(shown, soft_wrap=True)
