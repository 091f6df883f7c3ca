"""Verbs that look at a run and use what it has trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from luthier.cli import screen
from luthier.cli.frame import (
    LOOK,
    Overrides,
    RecipeArgument,
    RunArgument,
    RunOption,
    app,
    is_run,
    opened,
    opened_run,
    run_stage,
)
from luthier.display.text import safe
from luthier.errors import Refused, UserError
from luthier.run_folder import SWEEP, RunFolder, user_disk_errors


@app.command(rich_help_panel=LOOK)
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
    read, place = opened(recipe, overrides, run)
    if overrides or not place.manifest.is_file() or not is_run(recipe):
        place = run_stage("prepare", recipe, overrides, run)
    from luthier.models.load import load_tokenizer
    from luthier.rows import Rows
    from luthier.stages import settled

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
    tokenizer = load_tokenizer(settled(read, place).model)
    console = screen.out()
    if not indices:
        console.print(f"the {split} split has no rows")
        return
    token_view.legend(console)
    for index in indices:
        one = data.row(index)
        token_view.row(f"{split}[{index}]", one, tokenizer.pieces(one.input_ids.tolist()), console)


@app.command(rich_help_panel=LOOK)
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
    recipe, place = opened_run(run)
    text = _given("prompt", prompt, prompt_file)
    if suffix is not None or suffix_file is not None:
        suffix = _given("suffix", suffix, suffix_file)
    from luthier.evaluate.prompt import complete

    output = complete(recipe, place, text, suffix=suffix, base=base, max_new_tokens=max_new_tokens)
    text = safe(output.text) if sys.stdout.isatty() else output.text
    sys.stdout.write(text.removesuffix("\n") + "\n")
    if not output.ended:
        screen.err().print(Text("(cut off: --max-new-tokens)", "dim"))


def _given(what: str, text: str | None, file: Path | None) -> str:
    """A prompt or suffix: an option's value, a file's content or standard input."""
    if text is not None and file is not None:
        raise UserError(f"{what} is given twice", f"--{what} and --{what}-file", "keep one")
    where = f"--{what}" if text is not None else str(file or "standard input")
    try:
        if text is not None:
            return text.encode("utf-8").decode()  # an argument that is no UTF-8 comes with lone surrogates
        if file is not None:
            return file.read_text(encoding="utf-8")
        if sys.stdin.isatty():
            screen.err().print(Text(f"the {what}, then Ctrl-D:", "dim"))
        return sys.stdin.buffer.read().decode("utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"the {what} cannot be read: {error}", where, "give readable text in UTF-8"
        ) from error


@app.command(rich_help_panel=LOOK)
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
    if rounds is not None and (checkpoints or candidates is not None or against is not None):
        raise UserError(
            "rounds ask a model again and again",
            "--rounds",
            "leave out --checkpoints, --candidates and --against",
        )
    if sum((base, checkpoints, candidates is not None)) > 1 or (checkpoints and against is not None):
        raise UserError(
            "patches come from one place, and those of checkpoints are compared with each other",
            "--base, --checkpoints, --candidates, --against",
            "give one of the first three, and --checkpoints alone",
        )
    if candidates is not None and not candidates.is_file():
        raise UserError(f"there is no file {candidates}", "--candidates", "name a file that exists")
    if against is not None and not (against / "repair.json").is_file():
        raise UserError(
            f"{against} holds no repair.json", "--against", "name the folder of a result: RUN/repair/base"
        )
    if rounds is not None:
        overrides = [*(overrides or ()), f"repair.rounds.max_rounds={rounds}"]
    read, place = opened(recipe, overrides, run)
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


@app.command(rich_help_panel=LOOK)
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


@app.command(rich_help_panel=LOOK)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Evaluated runs; the others are tested against the first."),
    ],
    require: Annotated[
        _Requirement | None,
        typer.Option(help="Exit with 1 unless each run is that, against the first.", show_default=False),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="The metric that --require is about; bits_per_byte if not given.", show_default=False
        ),
    ] = None,
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
    if metric is not None and require is None:
        raise UserError("--metric is what --require is about", "--metric", "add --require better")
    from luthier.evaluate import significance
    from luthier.report import compare as comparing

    with screen.progress() as progress:
        result = comparing.compare([RunFolder(path) for path in runs], significance.compare, by, progress)
    console = screen.out()
    for part in comparing.tables(result):
        console.print(part)
    for note in result.notes:
        console.print(Text(safe(note), "yellow"), soft_wrap=True)
    if out is not None:
        from luthier.report import compare_files

        console.print(f"page: {compare_files.write(out, result)}", markup=False, soft_wrap=True)
    if require is not None:
        _require(require, metric or "bits_per_byte", result.against_first, [str(path) for path in runs[1:]])


def _require(requirement: _Requirement, metric: str, tests: dict[str, list[Any]], names: list[str]) -> None:
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


@app.command(rich_help_panel=LOOK)
def merge(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; must not exist.")],
) -> None:
    """Write the tuned model as a plain model folder that transformers loads alone.

    [dim]$[/] luthier merge runs/demo models/demo
    """
    recipe, place = opened_run(run)
    from luthier.models.merge import merge as merge_into

    with user_disk_errors(out):
        merge_into(recipe.model, place, out)
