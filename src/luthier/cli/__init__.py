"""The command line: parsing and printing only. What a verb does lies in ``luthier.pipeline`` and the stages.

Modules that load torch are imported inside the verbs, so that help and mistakes come at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup
from typer.exceptions import Abort, Exit, TyperException

from luthier.cli import screen
from luthier.display.text import safe
from luthier.errors import UserError
from luthier.run_folder import SWEEP, RunFolder, user_disk_errors, write_text

_STAGES = "Stages"
_LOOK = "Look at a run"
_START = "Start"


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
                from luthier.cli import failures

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
    no_args_is_help=True,
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


@app.callback()
def _luthier(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", envvar="LUTHIER_DEBUG")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _named(target: str, overrides: Sequence[str] | None, run: Path | None) -> tuple[Any, RunFolder]:
    """The recipe and the run folder that a verb is about; a run folder stands for the recipe in it."""
    from luthier import recipe_file

    place = Path(target)
    if place.is_dir():
        if not (place / "recipe.yaml").is_file():
            raise UserError(
                f"the folder {place} holds no recipe.yaml, so it is no run",
                str(place),
                "name a recipe or a run folder",
            )
        return recipe_file.load(place / "recipe.yaml", overrides or ()), RunFolder(run or place)
    recipe = recipe_file.load(target, overrides or ())
    return recipe, RunFolder(run or Path("runs") / recipe.name)


def _opened(target: str, overrides: Sequence[str] | None, run: Path | None) -> tuple[Any, RunFolder]:
    """The same for a verb that is about a single training, whose recipe is as its folder settles it."""
    recipe, folder = _named(target, overrides, run)
    if recipe.stages:
        raise UserError(
            f"the recipe has {len(recipe.stages)} training stages, and this is about one",
            target,
            f"name the folder of a stage: {folder.training(next(iter(recipe.stages))).path}",
        )
    if not Path(target).is_dir():
        return recipe, folder
    from luthier.pipeline import settled

    return settled(recipe, folder), folder


def _stage(
    name: str, target: str, overrides: Sequence[str] | None, run: Path | None, **options: Any
) -> RunFolder:
    """Runs a stage of the pipeline with progress; a failure says what is saved."""
    recipe, place = _named(target, overrides, run)
    from luthier import pipeline

    stage: Callable[..., RunFolder] = getattr(pipeline, name)
    if pipeline.writes():
        with user_disk_errors(place.path):
            place.stopped.unlink(missing_ok=True)
    try:
        with screen.progress() as progress:
            return stage(recipe, folder=place.path, progress=progress, **options)
    except BaseException as error:
        from luthier.cli import failures

        failures.note(error, place)
        if text := failures.saved(place):
            error.add_note(text)
        raise


def _speaks() -> bool:
    """Whether this process, of several, is the one that prints what a stage has come to."""
    from luthier import pipeline

    return pipeline.writes()


@app.command(rich_help_panel=_STAGES)
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

    place = _stage("run", recipe, overrides, run)
    if not _speaks():
        return
    console = screen.out()
    for one in tables.each_training(place, console):
        tables.trained(one, console)
        tables.evaluated(one, console)
    tables.forgotten(place, console)
    _say_report(place)


@app.command(rich_help_panel=_STAGES)
def prepare(recipe: RecipeArgument, overrides: Overrides = None, run: RunOption = None) -> None:
    """Make rows of the raw material, with a ledger of what was kept, dropped and trimmed.

    [dim]$[/] luthier prepare my.yaml
    """
    from luthier.cli import tables

    place = _stage("prepare", recipe, overrides, run)
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


@app.command(rich_help_panel=_STAGES)
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

    place = _stage("check", recipe, overrides, run, **({"quick": True} if quick else {}))
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


@app.command(rich_help_panel=_STAGES)
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


@app.command(rich_help_panel=_START)
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

    read, place = _opened(recipe, overrides, run)
    made = outlook(read, gpus, run=place.path, rows=rows, tokens_per_row=tokens_per_row)
    if json:
        sys.stdout.write(dumps(made.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        plan_view.show(made, screen.out())
    if not made.fits:
        raise typer.Exit(1)


@app.command(rich_help_panel=_STAGES)
def train(recipe: RecipeArgument, overrides: Overrides = None, run: RunOption = None) -> None:
    """Train; prepares and checks first, and does not start on an error that is not waived.

    [dim]$[/] luthier train my.yaml

    [dim]$[/] luthier train my.yaml 'check.waive=[split-overlap]'
    """
    from luthier.cli import tables

    place = _stage("train", recipe, overrides, run)
    if _speaks():
        console = screen.out()
        for one in tables.each_training(place, console):
            tables.trained(one, console)


@app.command(rich_help_panel=_STAGES)
def evaluate(recipe: RecipeArgument, overrides: Overrides = None, run: RunOption = None) -> None:
    """Compare base and tuned model on the same rows, with intervals; trains first if need be.

    [dim]$[/] luthier evaluate my.yaml evaluate.batch_size=8
    """
    from luthier.cli import tables

    place = _stage("evaluate", recipe, overrides, run)
    if _speaks():
        console = screen.out()
        for one in tables.each_training(place, console):
            tables.evaluated(one, console)
        tables.forgotten(place, console)


@app.command(rich_help_panel=_STAGES)
def report(recipe: RecipeArgument, overrides: Overrides = None, run: RunOption = None) -> None:
    """Draw the curves and write the page, of whatever the run folder, or the folder of a sweep, holds by now.

    [dim]$[/] luthier report runs/demo
    """
    if (Path(recipe) / SWEEP).is_file():
        from luthier.cli import launching

        launching.show_sweep(Path(recipe))
        return
    _say_report(_stage("report", recipe, overrides, run))


def _say_report(place: RunFolder) -> None:
    screen.out().print(Text(safe(f"report: {place.report}")), soft_wrap=True)


@app.command(rich_help_panel=_LOOK)
def show(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: RunOption = None,
    split: Annotated[str, typer.Option(help="train, eval or test.")] = "train",
    rows: Annotated[int, typer.Option(min=1, help="How many rows, from the first.")] = 3,
    row: Annotated[
        str | None, typer.Option(metavar="ID", help="One row by its id.", show_default=False)
    ] = None,
) -> None:
    """Show rows as the model sees them: tokens, what is trained, what was cut. Prepares first if need be.

    [dim]$[/] luthier show my.yaml --split test --rows 5

    [dim]$[/] luthier show runs/demo --row os.py#3
    """
    from luthier.cli import token_view
    from luthier.records import SPLITS

    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}", "--split", f"one of: {', '.join(SPLITS)}")
    read, place = _opened(recipe, overrides, run)
    if not place.manifest.is_file() or not Path(recipe).is_dir():
        place = _stage("prepare", recipe, overrides, run)
    from luthier.models.load import load_tokenizer
    from luthier.rows import Rows

    data = Rows(place.rows(split))
    indices: Sequence[int] = range(min(rows, len(data)))
    if row is not None:
        indices = [index for index, name in enumerate(data.column("id").to_pylist()) if name == row]
        if not indices:
            raise UserError(
                f"the {split} split has no row {row!r}",
                "--row",
                "name an id as `luthier show` prints it, or another --split",
            )
    tokenizer = load_tokenizer(read.model)
    console = screen.out()
    token_view.legend(console)
    for index in indices:
        one = data.row(index)
        token_view.row(f"{split}[{index}]", one, tokenizer.pieces(one.input_ids.tolist()), console)


@app.command(rich_help_panel=_LOOK)
def generate(
    run: RunArgument,
    prompt: Annotated[
        str | None, typer.Option(help="The prompt; standard input if not given.", show_default=False)
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with the prompt.", show_default=False)
    ] = None,
    suffix: Annotated[
        str | None,
        typer.Option(help="What stands behind a gap, which the model then fills.", show_default=False),
    ] = None,
    suffix_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with the suffix.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Where it is cut off.", show_default=False)
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the model as it was before training.")] = False,
) -> None:
    """Let the tuned model go on from a prompt, which is encoded just as in training.

    [dim]$[/] luthier generate runs/demo --prompt 'def main(argv):'

    [dim]$[/] head -40 file.py | luthier generate runs/demo --base

    [dim]$[/] luthier generate runs/infill --prompt 'def add(a, b):' --suffix '    return total'
    """
    recipe, place = _opened(str(run), None, None)
    text = _given("prompt", prompt, prompt_file)
    if suffix is not None or suffix_file is not None:
        suffix = _given("suffix", suffix, suffix_file)
    from luthier.evaluate.prompt import complete

    output = complete(recipe, place, text, suffix=suffix, base=base, max_new_tokens=max_new_tokens)
    text = safe(output.text) if sys.stdout.isatty() else output.text
    sys.stdout.write(text.removesuffix("\n") + "\n")
    if not output.ended:
        screen.err().print(Text("(cut off: --max-new-tokens)", "dim"))


@app.command(rich_help_panel=_LOOK)
def repair(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: RunOption = None,
    base: Annotated[bool, typer.Option("--base", help="By the model as it was before training.")] = False,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="By each checkpoint that was kept, beside its loss.")
    ] = False,
    candidates: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Judge these candidates (JSONL: bug, function) instead.", show_default=False
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Another result to compare with, such as runs/a/repair/base.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Ask so often, each time with what the tests said of the last patch.",
            show_default=False,
        ),
    ] = None,
    iterations: Annotated[
        int,
        typer.Option(min=0, help="Train on the patches that passed and repair again, so often."),
    ] = 0,
) -> None:
    """Generate patches for the bugs of `repair.bugs`, and judge them by their tests in a sandbox.

    [dim]$[/] luthier repair runs/repair

    [dim]$[/] luthier repair runs/repair --base

    [dim]$[/] luthier repair runs/repair --against runs/repair/repair/base

    [dim]$[/] luthier repair runs/repair --rounds 3

    [dim]$[/] luthier repair runs/repair --rounds 3 --iterations 2
    """
    from luthier import pipeline
    from luthier.cli import repairs

    if iterations and rounds is None:
        raise UserError("nothing says how many rounds an iteration has", "--iterations", "add --rounds 3")
    if rounds is not None:
        if checkpoints or candidates is not None or against is not None:
            raise UserError(
                "rounds ask a model again and again",
                "--rounds",
                "leave out --checkpoints, --candidates and --against",
            )
        overrides = [*(overrides or ()), f"repair.rounds.max_rounds={rounds}"]
    read, place = _opened(recipe, overrides, run)
    if iterations:
        from luthier.rejection import learn

        with screen.progress() as progress:
            learned = learn(read, place, iterations, base=base, progress=progress)
        repairs.iterations(learned, screen.out())
        return
    with screen.progress() as progress:
        folder = pipeline.repair(
            read,
            folder=place.path,
            base=base,
            checkpoints=checkpoints,
            candidates=candidates,
            rounds=rounds is not None,
            progress=progress,
        )
    repairs.show(folder, against, screen.out())


def _given(what: str, text: str | None, file: Path | None) -> str:
    """A prompt or suffix: an option's value, a file's content or standard input."""
    if text is not None and file is not None:
        raise UserError(f"{what} is given twice", f"--{what} and --{what}-file", "keep one")
    if text is not None:
        return text
    try:
        return (
            file.read_text(encoding="utf-8") if file is not None else sys.stdin.buffer.read().decode("utf-8")
        )
    except (OSError, UnicodeDecodeError) as error:
        where = str(file) if file is not None else "standard input"
        raise UserError(
            f"the {what} cannot be read: {error}", where, "give readable text in UTF-8"
        ) from error


@app.command(rich_help_panel=_LOOK)
def status(run: RunArgument) -> None:
    """Say where a run or a sweep stands, also while it runs or waits: job, step, loss, speed, time left, findings.

    [dim]$[/] luthier status runs/demo
    """
    from luthier.cli.standing import lines, sweep_lines

    said = sweep_lines(RunFolder(run)) if (run / SWEEP).is_file() else lines(RunFolder(run))
    console = screen.out()
    for label, text in said:
        console.print(Text.assemble((f"{label:10}", "bold"), "  ", safe(text)), soft_wrap=True)


class _Requirement(StrEnum):
    better = "better"
    not_worse = "not-worse"


@app.command(rich_help_panel=_LOOK)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Evaluated runs; the others are tested against the first."),
    ],
    require: Annotated[
        _Requirement | None,
        typer.Option(help="Exit with 1 unless each run is that, against the first.", show_default=False),
    ] = None,
    metric: Annotated[str, typer.Option(help="The metric that --require is about.")] = "bits_per_byte",
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Part the test rows by this too: a name of their meta, group or length. Default: length and what has few values.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write a page, tables (Markdown, LaTeX, CSV), curves and numbers into this folder.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Lay runs side by side, with paired tests of each against the first.

    [dim]$[/] luthier compare runs/one runs/two

    [dim]$[/] luthier compare runs/one runs/two runs/three --out comparison

    [dim]$[/] luthier compare runs/one runs/two --by category --by group

    [dim]$[/] luthier compare runs/old runs/new --require better --metric exact_match
    """
    from luthier.evaluate import significance
    from luthier.report import compare as comparing

    result = comparing.compare(
        [RunFolder(path) for path in runs], lambda rows: significance.compare(rows, 10_000, 0), by
    )
    console = screen.out()
    for part in comparing.tables(result):
        console.print(part)
    for note in result.notes:
        console.print(Text(safe(note), "yellow"), soft_wrap=True)
    if out is not None:
        from luthier.report import compare_files

        console.print(f"page: {compare_files.write(out, result)}", markup=False, soft_wrap=True)
    if require is not None:
        _require(require, metric, result.against_first, [str(path) for path in runs[1:]])


def _require(requirement: _Requirement, metric: str, tests: dict[str, list[Any]], names: list[str]) -> None:
    from luthier.errors import Refused

    if metric not in tests:
        raise UserError(f"the runs have no metric {metric!r}", "--metric", f"one of: {', '.join(tests)}")
    wanted = ("better",) if requirement is _Requirement.better else ("better", "unclear")
    failed = {
        name: test["verdict"] if test else "not tested"
        for name, test in zip(names, tests[metric], strict=True)
        if not test or test["verdict"] not in wanted
    }
    if failed:
        said = ", ".join(f"{name}: {word}" for name, word in failed.items())
        raise Refused(
            f"not {requirement.value} than the first run on {metric}: {said}",
            "--require",
            "see the table above; more test rows narrow the intervals",
        )


@app.command(rich_help_panel=_LOOK)
def merge(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; must not exist.")],
) -> None:
    """Write the tuned model as a plain model folder that transformers loads alone.

    [dim]$[/] luthier merge runs/demo models/demo
    """
    recipe, place = _opened(str(run), None, None)
    from luthier.models.merge import merge as merge_into

    with user_disk_errors(out):
        merge_into(recipe.model, place, out)


class _Kinds(StrEnum):
    tasks = "tasks"
    sources = "sources"
    metrics = "metrics"
    checks = "checks"
    models = "models"
    recipes = "recipes"


@app.command("list", rich_help_panel=_START)
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


@app.command(rich_help_panel=_START)
def init(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task (`luthier list tasks`).")],
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="The recipe; TASK.yaml if not given.", show_default=False),
    ] = None,
) -> None:
    """Write a commented recipe for a task, with every key, and the schema for editors beside it.

    [dim]$[/] luthier init line-completion

    [dim]$[/] luthier init instruction recipes/chat.yaml
    """
    import json

    from luthier.cli import starter
    from luthier.recipe import schema

    path = file or Path(f"{task.rpartition('@')[2]}.yaml")
    text = starter.recipe_for(task, str(path))
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


@app.command(rich_help_panel=_START)
def schema() -> None:
    """Print the JSON schema of recipes, for editors.

    [dim]$[/] luthier schema > luthier-schema.json
    """
    import json

    from luthier import recipe

    typer.echo(json.dumps(recipe.schema(), indent=1, ensure_ascii=False))


@app.command(rich_help_panel=_START)
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


@app.command(rich_help_panel=_STAGES)
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
    read, place = _named(recipe, keys, run)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 a finding or gate says no, 2 a mistake, 3 a defect of luthier."""
    screen.shield()
    app(args=None if arguments is None else list(arguments), prog_name="luthier")
