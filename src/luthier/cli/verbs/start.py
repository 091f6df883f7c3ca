"""Verbs to begin with: what a recipe can say, one to start from, and what it would need."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from luthier.cli import screen
from luthier.cli.frame import START, Overrides, RecipeArgument, RunOption, app, opened
from luthier.display.text import safe
from luthier.errors import UserError
from luthier.run_folder import user_disk_errors, write_text


@app.command(rich_help_panel=START)
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    gpus: Annotated[
        str, typer.Option(metavar="COUNTxNAME", help="Such as 8xA100-80G; CPU is this machine, measured.")
    ] = "CPU",
    rows: Annotated[
        int | None, typer.Option(min=1, help="Training rows, where none are prepared.", show_default=False)
    ] = None,
    tokens_per_row: Annotated[
        float | None, typer.Option(min=1, help="Their average length.", show_default=False)
    ] = None,
    run: RunOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Estimate what a recipe needs and how long it takes on GPUs that need not be here. Exit code 1 if nothing makes it fit.

    [dim]$[/] luthier plan large/codellama-7b-lora --gpus 8xA100-80G

    [dim]$[/] luthier plan my.yaml --gpus 4090 --rows 100000 --tokens-per-row 700 --json
    """
    from json import dumps

    from luthier.cli import plan_view
    from luthier.estimate.outlook import outlook

    read, place = opened(recipe, overrides, run)
    made = outlook(read, gpus, run=place.path, rows=rows, tokens_per_row=tokens_per_row)
    if json:
        sys.stdout.write(dumps(made.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        plan_view.show(made, screen.out())
    if not made.fits:
        raise typer.Exit(1)


class _Kinds(StrEnum):
    tasks = "tasks"
    sources = "sources"
    metrics = "metrics"
    checks = "checks"
    models = "models"
    recipes = "recipes"


@app.command("list", rich_help_panel=START)
def list_(
    kind: Annotated[_Kinds | None, typer.Argument(help="Only these.", show_default=False)] = None,
) -> None:
    """List what a recipe can name, plug-ins included, with a line each.

    [dim]$[/] luthier list

    [dim]$[/] luthier list checks
    """
    from luthier import recipe_file, registry
    from luthier.cli import tables

    rows: list[tuple[str, str, str]] = []
    for one in [kind] if kind else _Kinds:
        name = one.value.removesuffix("s")
        if one is _Kinds.recipes:
            rows += [
                (name, known, recipe_file.load(file).description)
                for known, file in recipe_file.shipped_recipes().items()
            ]
        else:
            rows += [
                (name, known, registry.summary(entry)) for known, entry in registry.registered(name).items()
            ]
    tables.listing(rows, screen.out())


@app.command(rich_help_panel=START)
def init(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="A task (`luthier list tasks`).")
    ] = "line-completion",
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The recipe; TASK.yaml if not given.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Your own: a folder of code, for line-completion, language-modelling and repair, or a file of rows.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a commented recipe for a task, with every key, and the schema for editors beside it.

    [dim]$[/] luthier init line-completion --data ../our-project

    [dim]$[/] luthier init instruction recipes/chat.yaml --data chats.jsonl
    """
    import json

    from luthier.cli import starter
    from luthier.recipe import schema

    path = file or Path(f"{task.rpartition('@')[2]}.yaml")
    text = starter.recipe_for(task, str(path), data)
    if path.exists() or path.is_symlink():
        raise UserError(
            f"{path} exists, and is not overwritten", str(path), f"name another: luthier init {task} FILE"
        )
    with user_disk_errors(path):
        write_text(
            path.parent / starter.SCHEMA_FILE, json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
        )
        write_text(path, text)
    screen.err().print(Text(safe(f"{path} is written; edit it, then: luthier check {path}")), soft_wrap=True)


@app.command(rich_help_panel=START)
def schema() -> None:
    """Print the JSON schema of recipes, for editors.

    [dim]$[/] luthier schema > luthier-schema.json
    """
    import json

    from luthier import recipe

    typer.echo(json.dumps(recipe.schema(), indent=1, ensure_ascii=False))


@app.command(rich_help_panel=START)
def explain(
    check: Annotated[str, typer.Argument(metavar="CHECK", help="A check (`luthier list checks`).")],
) -> None:
    """Explain a check, or a watcher of training: what it looks at, why, and what to do.

    [dim]$[/] luthier explain prompt-parity

    [dim]$[/] luthier explain watch-overfitting
    """
    from luthier import registry
    from luthier.cli import explained
    from luthier.train.watchers import DOCUMENTED

    entry = DOCUMENTED.get(check) or registry.lookup("check", check, "luthier explain")
    console = screen.out()
    width = console.width if console.is_terminal else None
    for line in explained.lines(check.rpartition("@")[2], entry, width):
        console.print(line, soft_wrap=True)
