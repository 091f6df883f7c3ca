"""Verbs that do the stages of a run, or check another framework's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from luthier.cli import screen
from luthier.cli.frame import STAGES, Overrides, RecipeArgument, RunOption, SweepOption, app, named, run_stage
from luthier.display.text import safe
from luthier.errors import UserError
from luthier.run_folder import SWEEP, RunFolder, user_disk_errors


@app.command(rich_help_panel=STAGES)
def run(
    recipe: RecipeArgument, overrides: Overrides = None, run: RunOption = None, sweep: SweepOption = None
) -> None:
    """Do all of it: prepare, check, train, evaluate, report.

    What is finished and unchanged is not done again; after an interruption the same command goes on.

    With --sweep every combination of the values is a run of its own; runs/NAME-sweep holds all of them, and the table.

    [dim]$[/] luthier run demo --run runs/demo

    [dim]$[/] luthier run my.yaml train.epochs=2 data.max_length=256

    [dim]$[/] luthier run my.yaml --sweep train.learning_rate=1e-4,2e-4 --sweep seed=0,1,2
    """
    if sweep:
        from luthier.cli import launching

        launching.launch_sweep(recipe, overrides or (), sweep, run, nodes=1, processes=1, slurm_options=None)
        return
    from luthier.cli import tables
    from luthier.opening import writes

    place = run_stage("run", recipe, overrides, run)
    if not writes():
        return
    console = screen.out()
    for one in tables.each_training(place, console):
        tables.trained(one, console)
        tables.evaluated(one, console)
    tables.forgotten(place, console)
    _say_report(place)


@app.command(rich_help_panel=STAGES)
def prepare(recipe: RecipeArgument, overrides: Overrides = None, run: RunOption = None) -> None:
    """Make rows of the raw material, with a ledger of what was kept, dropped and trimmed.

    [dim]$[/] luthier prepare my.yaml
    """
    from luthier.cli import tables

    place = run_stage("prepare", recipe, overrides, run)
    console = screen.out()
    for one in tables.each_training(place, console):
        tables.prepared(one, console)


JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object: ok, findings, passed, skipped; or ok, and these by stage."
    ),
]


QuickOption = Annotated[bool, typer.Option("--quick", help="Only what needs no model: the data checks.")]


VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also what each check looked at and what it cost.")
]


@app.command(rich_help_panel=STAGES)
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: RunOption = None,
    quick: QuickOption = False,
    verbose: VerboseOption = False,
    json: JsonOption = False,
) -> None:
    """Say before any training whether the run can work. Exit code 1 if not.

    [dim]$[/] luthier check my.yaml

    [dim]$[/] luthier check my.yaml --json | jq .findings
    """
    from json import dumps

    from luthier.cli import tables
    from luthier.run_folder import read_json

    place = run_stage("check", recipe, overrides, run, **({"quick": True} if quick else {}))
    found = {name: read_json(one.findings) for name, one in (place.trainings() or {"": place}).items()}
    ok = all(findings["ok"] for findings in found.values())
    console = screen.out()
    if json and place.trainings():
        sys.stdout.write(dumps({"ok": ok, "stages": found}, indent=1, ensure_ascii=False) + "\n")
    elif json:
        sys.stdout.write(place.findings.read_text(encoding="utf-8"))
    else:
        for one in tables.each_training(place, console):
            tables.checked(one, console, verbose=verbose)
    if not ok:
        raise typer.Exit(1)


@app.command(rich_help_panel=STAGES)
def audit(
    model: Annotated[
        str, typer.Option(metavar="DIR", help="Folder or Hub name of the model, with its tokenizer.")
    ],
    rows: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Tokenised rows: JSON lines, Parquet, or the prepared folder of axolotl or LLaMA-Factory.",
        ),
    ],
    eval_rows: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Those evaluated on.", show_default=False)
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK", help="Run this check alone; can be repeated.", show_default=False),
    ] = None,
    quick: QuickOption = False,
    verbose: VerboseOption = False,
    json: JsonOption = False,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page (HTML) besides.", show_default=False),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Check a model and tokenised rows that another framework will train on. Exit code 1 if it should not.

    [dim]$[/] luthier audit --model Qwen/Qwen3-0.6B --rows last_run_prepared/3f2a

    [dim]$[/] luthier audit --model base --rows train.jsonl --eval-rows eval.jsonl --page audit.html
    """
    from luthier.check.audit import audit as audit_rows

    with screen.progress() as progress:
        report = audit_rows(
            model=model,
            rows=rows,
            eval_rows=eval_rows,
            quick=quick,
            only=only or (),
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    if page is not None:
        with user_disk_errors(page):
            report.write_html(page)
    if json:
        sys.stdout.write(report.to_json())
    else:
        report.show(verbose=verbose)
    if not report.ok:
        raise typer.Exit(1)


@app.command(rich_help_panel=STAGES)
def train(recipe: RecipeArgument, overrides: Overrides = None, run: RunOption = None) -> None:
    """Train; prepares and checks first, and does not start on an error that is not waived.

    [dim]$[/] luthier train my.yaml

    [dim]$[/] luthier train my.yaml 'check.waive=[split-overlap]'
    """
    from luthier.cli import tables
    from luthier.opening import writes

    place = run_stage("train", recipe, overrides, run)
    if writes():
        console = screen.out()
        for one in tables.each_training(place, console):
            tables.trained(one, console)


@app.command(rich_help_panel=STAGES)
def evaluate(recipe: RecipeArgument, overrides: Overrides = None, run: RunOption = None) -> None:
    """Compare base and tuned model on the same rows, with intervals; trains first if need be.

    [dim]$[/] luthier evaluate my.yaml evaluate.batch_size=8
    """
    from luthier.cli import tables
    from luthier.opening import writes

    place = run_stage("evaluate", recipe, overrides, run)
    if writes():
        console = screen.out()
        for one in tables.each_training(place, console):
            tables.evaluated(one, console)
        tables.forgotten(place, console)


@app.command(rich_help_panel=STAGES)
def report(recipe: RecipeArgument, overrides: Overrides = None, run: RunOption = None) -> None:
    """Draw the curves and write the page, of whatever the run folder, or the folder of a sweep, holds by now.

    [dim]$[/] luthier report runs/demo
    """
    if (Path(recipe) / SWEEP).is_file():
        from luthier.cli import launching

        launching.show_sweep(Path(recipe))
        return
    _say_report(run_stage("report", recipe, overrides, run))


@app.command(rich_help_panel=STAGES)
def launch(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes on each of them; one for each GPU, as a rule.")
    ] = 1,
    run: RunOption = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION=VALUE...",
            help="Submit to Slurm, with these options of sbatch.",
            show_default=False,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where several machines meet, without Slurm: the same on each.",
            show_default=False,
        ),
    ] = None,
    sweep: SweepOption = None,
) -> None:
    """Do all of `luthier run` in several processes, on several machines, or as Slurm jobs.

    One process prepares and checks, all of them train, and one evaluates and writes the report. The script that starts
    them is shown and kept in the run folder, in launch/. Interrupted, the same command goes on from the last checkpoint.

    [dim]$[/] luthier launch my.yaml --processes 4

    [dim]$[/] luthier launch my.yaml --nodes 2 --processes 8 --slurm partition=gpu time=12:00:00 gres=gpu:8

    [dim]$[/] luthier launch my.yaml --slurm time=1:00:00 --sweep train.learning_rate=1e-4,2e-4
    """
    from luthier.cli import launching

    options, keys = launching.told_apart(slurm, overrides or ())
    if endpoint is not None and (nodes == 1 or options is not None):
        raise UserError(
            "one machine needs no place to meet, and Slurm knows its own", "option --endpoint", "leave it out"
        )
    if sweep:
        launching.launch_sweep(
            recipe, keys, sweep, run, nodes=nodes, processes=processes, slurm_options=options
        )
        return
    read, place = named(recipe, keys, run)
    launching.launch(
        recipe,
        keys,
        read,
        place,
        nodes=nodes,
        processes=processes,
        endpoint=endpoint,
        slurm_options=options,
    )


def _say_report(place: RunFolder) -> None:
    screen.out().print(Text(safe(f"report: {place.report}")), soft_wrap=True)
