"""The command line's frame: the app, what its verbs share, and how what they raise becomes words and an exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup
from typer.exceptions import Abort, Exit, TyperException

from luthier.cli import failures, screen
from luthier.errors import UserError
from luthier.run_folder import RunFolder, user_disk_errors

if TYPE_CHECKING:
    from luthier.recipe import Recipe

STAGES = "Stages"
LOOK = "Look at a run"
START = "Start"
# How one of these ended is left in its folder, for whoever comes back to it.
_TRAIN = ("run", "train", "evaluate")
_GREETING = """\
Luthier {version} fine-tunes code language models, and proves before any time is spent that the run can work.

  luthier run demo                              a whole run with a small model, in minutes; its last line names a page to open
  luthier init line-completion --data FOLDER    a recipe for your own code, then: luthier run line-completion.yaml
  luthier audit --model DIR --rows FILE         whether what another framework is about to train on can work
  luthier list                                  tasks, sources, metrics, checks, models and recipes there are
  luthier --help                                all verbs, each with examples of its own"""


class _Verbs(TyperGroup):
    """Turns what a verb raises into words and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb."""
        with screen.messages() as console:
            try:
                return super().invoke(ctx)
            except (TyperException, Exit, Abort):  # mistakes on the command line itself, and ends by choice
                raise
            except BaseException as error:
                code = failures.tell(error, console, debug=ctx.params.get("debug", False))
        raise typer.Exit(code)


app = typer.Typer(
    name="luthier",
    cls=_Verbs,
    help="Fine-tune code language models, and prove before any time is spent that the run can work.\n\n"
    "[dim]$[/] luthier run demo                        [dim]all of it, with the embedded model[/]\n\n"
    "[dim]$[/] luthier init line-completion            [dim]a recipe to start from[/]\n\n"
    "[dim]$[/] luthier check my.yaml train.epochs=2    [dim]can this run work?[/]",
    epilog="Exit codes: 0 done, 1 a finding or gate says no, 2 a mistake in the input, 3 a defect of luthier.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A YAML file, a shipped recipe (`luthier list recipes`), or a run folder."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Recipe keys to set: train.epochs=2", show_default=False),
]
RunOption = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="DIR",
        help="The run folder; runs/NAME if not given.",
        show_default=False,
        envvar="LUTHIER_RUN",
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
SweepOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="KEY=V1,V2",
        help="Values of a recipe key, each a run; can be repeated.",
        show_default=False,
    ),
]


def _version(value: bool) -> None:
    if value:
        import luthier

        typer.echo(f"luthier {luthier.__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _luthier(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", envvar="LUTHIER_DEBUG")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        import luthier

        screen.out().print(Text(_GREETING.format(version=luthier.__version__)), soft_wrap=True)


def is_run(target: str) -> bool:
    """Whether a verb is given a run folder, rather than a recipe."""
    return (Path(target) / "recipe.yaml").is_file()


def named(target: str, overrides: Sequence[str] | None, run: Path | None) -> tuple[Recipe, RunFolder]:
    """The recipe and the run folder that a verb is about; a run folder stands for the recipe in it."""
    from luthier import recipe_file

    place = Path(target)
    if is_run(target):
        return recipe_file.load(place / "recipe.yaml", overrides or ()), RunFolder(run or place)
    if place.is_dir() and target not in recipe_file.shipped_recipes():
        raise UserError(
            f"the folder {place} holds no recipe.yaml, so it is no run",
            str(place),
            "name a recipe or a run folder",
        )
    recipe = recipe_file.load(target, overrides or ())
    return recipe, RunFolder(run or Path("runs") / recipe.name)


def opened(target: str, overrides: Sequence[str] | None, run: Path | None) -> tuple[Recipe, RunFolder]:
    """The same for a verb that is about a single training, whose recipe is as its folder settles it."""
    recipe, folder = named(target, overrides, run)
    if recipe.stages:
        raise UserError(
            f"the recipe has {len(recipe.stages)} training stages, and this is about one",
            target,
            f"name the folder of a stage: {folder.training(next(iter(recipe.stages))).path}"
            + ("" if folder.trainings() else f", once `luthier prepare {target}` has made it"),
        )
    if not is_run(target):
        return recipe, folder
    from luthier.stages import settled

    return settled(recipe, folder), folder


def opened_run(run: Path) -> tuple[Recipe, RunFolder]:
    """The same for a verb that is about what a run has trained."""
    if not is_run(str(run)):
        known = ", ".join(str(path.parent) for path in sorted(Path("runs").glob("*/recipe.yaml"))[:10])
        raise UserError(
            f"{run} holds no run: there is no recipe.yaml in it",
            str(run),
            f"name a run folder: {known}" if known else "name a run folder, as --run did",
        )
    return opened(str(run), None, None)


def run_stage(
    name: str, target: str, overrides: Sequence[str] | None, run: Path | None, **options: Any
) -> RunFolder:
    """Runs a stage of the pipeline with progress; a failure says what is saved."""
    recipe, place = named(target, overrides, run)
    from luthier import opening, pipeline
    from luthier.finished import refuse_other_recipe

    stage: Callable[..., RunFolder] = getattr(pipeline, name)
    leaves_word = False
    try:
        if name in _TRAIN:
            refuse_other_recipe(place, recipe)  # before the run that the folder holds is marked in any way
            leaves_word = True
            if opening.writes():
                with user_disk_errors(place.path):
                    place.stopped.unlink(missing_ok=True)
        with screen.progress() as progress:
            return stage(recipe, folder=place.path, progress=progress, **options)
    except BaseException as error:
        if leaves_word:
            failures.note(error, place)
        if text := failures.saved(place):
            error.add_note(text)
        raise
