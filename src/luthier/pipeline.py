"""The order of the stages: prepare -> check -> train -> evaluate -> report. Start reading here.

Each stage reads files of the run folder and writes others; one whose inputs hash to what lies there is skipped. Stage
modules are imported where they are used, so that naming a stage does not load torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import recipe as recipes
from luthier import registry, stages
from luthier.errors import Refused, UserError
from luthier.finished import (
    holds_training,
    is_done,
    key_of,
    keys_of,
    note_done,
    other_training,
    start_key,
    train_key,
)
from luthier.opening import AnyRecipe, make_start, open_run, read, writes
from luthier.recipe import Recipe
from luthier.records import Progress
from luthier.run_folder import RunFolder, logger, read_json, user_disk_errors, write_json
from luthier.staged import by_stage
from luthier.stages import settled

if TYPE_CHECKING:
    from luthier.check.context import RunContext
    from luthier.models.engine import Engine
    from luthier.rows import Rows
    from luthier.train.rehearsal import Rehearsal


def run(
    recipe: AnyRecipe, *overrides: str, folder: str | Path | None = None, progress: Progress | None = None
) -> RunFolder:
    """All stages, from raw material to a report.

    Args:
        recipe: A recipe, its file or shipped name, or its tree.
        overrides: ``key=value``, as on the command line.
        folder: The run folder; ``runs/NAME`` if not given.
        progress: Called with a label, what is done and the total (or None).

    Raises:
        UserError: A mistake in recipe or data. Refused: a gate says no. Finished stages stay finished in either case.
    """
    # Mistakes in later data show before any training; of several processes none may keep the others waiting for so long.
    if read(recipe, *overrides).stages and os.environ.get("WORLD_SIZE", "1") == "1":
        prepare(recipe, *overrides, folder=folder, progress=progress)
    try:
        evaluate(recipe, *overrides, folder=folder, progress=progress)
    except Refused:
        report(recipe, *overrides, folder=folder, progress=progress)  # of what there is, the reason included
        raise
    return report(recipe, *overrides, folder=folder, progress=progress)


@by_stage
def prepare(
    recipe: AnyRecipe, *overrides: str, folder: str | Path | None = None, progress: Progress | None = None
) -> RunFolder:
    """Rows on disk, with the ledger of what was kept, dropped and trimmed."""
    from luthier.models.load import load_tokenizer
    from luthier.prepare.build import prepare as build

    recipe, place = open_run(recipe, overrides, folder)
    with user_disk_errors(place.path):
        make_start(recipe, place)
        tokenizer = load_tokenizer(recipe.model)
        if not build(recipe, place, tokenizer, trained=holds_training(place), progress=progress):
            logger.info("prepare: skipped, nothing has changed")
    return place


@by_stage
def check(
    recipe: AnyRecipe,
    *overrides: str,
    folder: str | Path | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """The findings of every check; prepares first if that is not done.

    ``quick`` leaves out what needs the model; training will not start from such findings, but check again.
    """
    from luthier.check.context import RunContext
    from luthier.check.runner import check as run_checks
    from luthier.refusals import refuse_impossible
    from luthier.train.optimizer import refuse_unavailable

    recipe = read(recipe, *overrides)
    refuse_unavailable(recipe.train)
    place = prepare(recipe, folder=folder, progress=progress)
    recipe = settled(recipe, place)
    refuse_impossible(recipe, place)  # keys of `evaluate` too, of which findings know nothing
    key = key_of(
        place,
        recipe,
        *("task", "model", "data", "train", "check", "seed"),
        code=registry.registered("check"),
        before=start_key(recipe),
    )
    if is_done(place, "check", key, place.findings):
        return place
    context = RunContext(recipe, place, _rehearsal, quick=quick)
    with user_disk_errors(place.path):
        report = run_checks(context, waived=recipe.check.waive, progress=progress)
        write_json(place.findings, report.to_dict())
        note_done(place, "check", "quick" if quick else key)
    logger.info("check: %d findings, %d passed", len(report.findings), len(report.passed))
    return place


def _rehearsal(context: RunContext) -> Rehearsal:
    from luthier.train.rehearsal import Rehearsal

    return Rehearsal(context.recipe, context.run, lambda: context.model, lambda: context.tokenizer)


@by_stage
def train(
    recipe: AnyRecipe, *overrides: str, folder: str | Path | None = None, progress: Progress | None = None
) -> RunFolder:
    """The trained adapter or model; checks first, and refuses to start on an error that is not waived."""
    from luthier.models.coverage import coverage
    from luthier.models.load import chosen, load_model, load_tokenizer, save_trained
    from luthier.models.sharded import is_sharded, shard, whole_state
    from luthier.rows import Rows
    from luthier.train import loop as training
    from luthier.train.ranks import Ranks

    recipe = read(recipe, *overrides)
    place = RunFolder(folder or Path("runs") / recipe.name)
    if name := stages.waits_for(recipe.model, place):
        raise UserError(
            f"the stage {name!r} that this one goes on from is not trained",
            str(place.beside(name).path),
            "run the whole recipe: its stages are done in order",
        )
    ranks = Ranks()
    with ranks.together(), ranks.one_after_the_first():
        place = check(recipe, folder=folder, progress=progress)
    recipe = settled(recipe, place)
    findings = read_json(place.findings)
    if not findings["ok"]:
        errors = [
            f
            for f in findings["findings"]
            if f["severity"] == "error" and f["check"] not in findings["waived"]
        ]
        raise Refused(
            "training does not start: " + "; ".join(f"{f['check']}: {f['what']}" for f in errors),
            str(place.findings),
            f"mend them ({errors[0]['fix']}), or waive one by name: check.waive=[{errors[0]['check']}]",
        )
    key = train_key(place, recipe)
    if is_done(place, "train", key, place.result()):
        return place
    if place.result() and keys_of(place).get("train") is not None:  # a result without a note was cut off here
        raise other_training(place, "data or start")
    tokenizer = load_tokenizer(recipe.model)
    sharding = recipe.train.sharding if ranks.count > 1 else "none"
    model = load_model(
        recipe.model, len(tokenizer), training=True, seed=recipe.seed, on_cpu=sharding != "none"
    )
    rows = Rows(place.rows("train"))
    with ranks.together(place), ranks.one_after_the_first():
        known = read_json(place.environment)
        before = known.get("engine") if known.get("training") == key else None
        engine = _engine(recipe, model, rows, before, ranks.count, sharded=sharding != "none")
        if ranks.is_first:
            seen = chosen(model, recipe.model) | {
                "training": key,
                "engine": engine.to_dict(),
                "num_processes": ranks.count,
                "sharding": sharding,
                "device": ranks.device.type,
                "parameters": model.num_parameters(),
                "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            }
            write_json(place.environment, known | seen)
    for line in coverage(model):
        logger.info("train: %s", line)
    if sharding != recipe.train.sharding:
        logger.info("train: train.sharding=%s is left out: one process has no shards", recipe.train.sharding)
    if sharding == "fsdp":
        shard(model, ranks.device, ranks.count)
    task = recipes.build("task", recipe.task)
    loop = training.Loop(
        recipe,
        place,
        model,
        tokenizer,
        rows,
        Rows(place.rows("eval")),
        task.stop_pattern,
        ranks,
        engine,
        task.epoch_weights(rows, recipe.seed),
    )
    with user_disk_errors(place.path), ranks.together(place):
        end = training.train(loop, key, progress)
        state = whole_state(model, keep=ranks.is_first) if is_sharded(model) else None
        if ranks.is_first:
            save_trained(model, tokenizer, place, recipe.model, state)
            if form := task.identity(tokenizer):
                write_json(place.form(), form)
            note_done(place, "train", key)
        ranks.wait()
    logger.info("train: %d steps, best at step %s", end.step, end.best_step)
    return place


def _engine(
    recipe: Recipe,
    model: Any,
    rows: Rows,
    before: Mapping[str, Any] | None,
    num_processes: int,
    *,
    sharded: bool,
) -> Engine:
    """How the model is computed; a run that is taken up again, or another of its processes, takes the way that ``auto`` took."""
    from luthier.models import engine, memory
    from luthier.schedule import total_steps

    settings = recipe.train

    def kept(key: str) -> Any:
        given = getattr(settings, key)
        return before[key] if before is not None and given == "auto" else given

    in_rows = int(rows.lengths().sum())
    tokens = total_steps(settings, len(rows), in_rows) * settings.batch_size * in_rows / len(rows)
    compiling = settings.compile if not sharded else False  # tried on whole weights, it would run on shards
    if compiling == "auto" and before is not None:
        compiling = before["compiled_layers"] > 0
    found = engine.start(
        model,
        engine.probe_rows(rows),
        packing=settings.packing,
        fusing=not sharded,  # one product needs both weights in one tensor
        compiling=compiling,
        planned_tokens=round(tokens),
    )
    found = memory.fit(
        model,
        found,
        rows,
        rows_at_once=-(-settings.batch_size // num_processes),
        micro_batch_tokens=kept("micro_batch_tokens"),
        gradient_checkpointing=kept("gradient_checkpointing"),
    )
    logger.info("train: %s", found)
    return found


@by_stage
def evaluate(
    recipe: AnyRecipe, *overrides: str, folder: str | Path | None = None, progress: Progress | None = None
) -> RunFolder:
    """Base and tuned model on the test rows, if the recipe keeps any: predictions and scores with intervals; trains first if need be."""
    from luthier.evaluate import judges
    from luthier.evaluate.runner import Judging
    from luthier.models.load import load_tokenizer
    from luthier.rows import Rows

    place = train(recipe, *overrides, folder=folder, progress=progress)
    if not writes():
        return place
    recipe = settled(read(recipe, *overrides), place)
    task = recipes.build("task", recipe.task)
    code, before = registry.registered("metric"), train_key(place, recipe)
    keys = {
        j: key_of(place, j.seen(recipe), "evaluate", "seed", code=code, before=before)
        for j in judges.of(task)
    }
    waiting = {j: key for j, key in keys.items() if not is_done(place, j.name, key, j.result(place))}
    if not waiting:
        return place
    if not place.rows("test").is_file() or not len(Rows(place.rows("test"))):
        logger.warning("evaluate: left out, the recipe keeps no test rows (data.splits.test is 0)")
        for judge, key in waiting.items():
            note_done(place, judge.name, key)
        return place
    tokenizer = load_tokenizer(recipe.model)
    models = judges.models(recipe, place, tokenizer)
    with user_disk_errors(place.path):
        for judge, key in waiting.items():
            judge.judge(Judging(recipe, place, task, tokenizer, models, key, progress))
            note_done(place, judge.name, key)
    return place


@by_stage
def report(
    recipe: AnyRecipe, *overrides: str, folder: str | Path | None = None, progress: Progress | None = None
) -> RunFolder:
    """The curves and the page, of whatever the run folder holds by now."""
    from luthier.models.load import load_tokenizer
    from luthier.report import classes, curves, page
    from luthier.rows import Rows

    recipe, place = open_run(recipe, overrides, folder)
    if not writes():
        return place
    with user_disk_errors(place.path):
        curves.draw(place, recipe.report.smoothing_window)
        classes.draw(place)
        shown = []
        if place.rows("train").is_file():
            row = Rows(place.rows("train")).row(0)
            shown = [page.ShownRow(row, load_tokenizer(recipe.model).pieces(row.input_ids))]
        page.write(place, recipe, rows_shown=shown)
    return place


def repair(
    recipe: AnyRecipe,
    *overrides: str,
    folder: str | Path | None = None,
    base: bool = False,
    checkpoints: bool = False,
    candidates: Path | None = None,
    rounds: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Candidate patches for the bugs of ``repair.bugs``, judged by their tests; trains first if nothing was.

    Args:
        recipe: A recipe, its file or shipped name, or its tree.
        overrides: ``key=value``; keys of ``task`` may differ from training, which is refused or warned of.
        folder: The run folder; ``runs/NAME`` if not given.
        base: By the model as it was before training.
        checkpoints: By each checkpoint of the run, beside its eval loss.
        candidates: A file of candidates that are judged instead of the model's.
        rounds: In rounds, as ``repair.rounds`` says: what failed goes into the next prompt.
        progress: Called with a label, what is done and the total (or None).

    Returns:
        The folder of the results, with ``verdicts.jsonl`` and ``repair.json``, with ``rounds.json``, or with ``checkpoints.json``.
    """
    from luthier.evaluate import repair as patches

    own = read(recipe, *overrides)
    place = RunFolder(folder or Path("runs") / own.name)
    server = rounds and own.repair.rounds.server is not None
    if place.result() is None and not base and candidates is None and not server:
        train(own, folder=folder, progress=progress)
    place.create()
    with user_disk_errors(place.path):
        if checkpoints:
            return _repair_by_checkpoint(own, place, progress)
        which = "given" if candidates is not None else "server" if server else "base" if base else "tuned"
        patches.repair(settled(own, place), place, which, given=candidates, rounds=rounds, progress=progress)
    return place.repair / (f"{which}-rounds" if rounds else which)


def _repair_by_checkpoint(recipe: Recipe, place: RunFolder, progress: Progress | None) -> Path:
    """Judges by each checkpoint; writes which passes most, with the losses beside it."""
    from luthier.evaluate import repair as patches
    from luthier.models.load import load_model, load_tokenizer
    from luthier.run_folder import hash_folder, read_jsonl
    from luthier.train import checkpoint

    recipe = settled(recipe, place)
    losses = {row["step"]: row["eval"]["loss"] for row in read_jsonl(place.history) if "eval" in row}
    entries = []
    for step in checkpoint.steps(place):
        path = place.checkpoints / f"step-{step}"

        def lend(path: Path = path) -> Any:
            model = load_model(
                recipe.model, len(load_tokenizer(recipe.model)), training=True, seed=recipe.seed
            )
            checkpoint.load_weights(path, model)
            return model

        found = patches.repair(
            recipe, place, path.name, lend=lend, weights=hash_folder(path), progress=progress
        )
        scores = {name: one for name, one in found["metrics"].items() if name.startswith("plausible")}
        entries.append(
            {
                "step": step,
                "eval_loss": losses.get(step),
                **scores,
                "compile_rate": found["metrics"]["compile_rate"],
            }
        )
    if not entries:
        raise UserError(
            "the run has no checkpoints",
            str(place.checkpoints),
            "train with train.keep_checkpoints as high as wanted",
        )
    last = max(
        (name for name in entries[0] if name.startswith("plausible@")),
        key=lambda name: int(name.removeprefix("plausible@")),
    )
    best = max(entries, key=lambda entry: (entry[last]["value"] or 0.0, -entry["step"]))
    write_json(
        place.repair / "checkpoints.json", {"by": last, "best_step": best["step"], "checkpoints": entries}
    )
    return place.repair
