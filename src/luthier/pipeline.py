"""The order of the stages: prepare -> check -> train -> evaluate -> report. Start reading here.

Each stage reads files of the run folder and writes others; one whose inputs hash to what lies there is skipped. Stage
modules are imported where they are used, so that naming a stage does not load torch.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from luthier import recipe as recipes
from luthier import recipe_file, registry, stages
from luthier.environment import environment
from luthier.errors import Refused, UserError
from luthier.recipe import Classifier, Recipe
from luthier.run_folder import (
    RunFolder,
    hash_value,
    logger,
    read_json,
    user_disk_errors,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from luthier.check.context import RunContext
    from luthier.models.engine import Engine
    from luthier.rows import Rows
    from luthier.train.rehearsal import Rehearsal

Progress = Callable[[str, int, int | None], None]
# Settings of training that may differ when it goes on.
_CHANGES_NO_STEP = ("stop_on", "sharding", "trackers")
AnyRecipe = Recipe | str | Path | Mapping[str, Any]
Verb = TypeVar("Verb", bound=Callable[..., RunFolder])


def _by_stage(verb: Verb) -> Verb:
    """A verb that does a recipe with ``stages`` stage by stage, in order, each in a run folder of its own."""

    @functools.wraps(verb)
    def each(
        recipe: AnyRecipe, *overrides: str, folder: str | Path | None = None, **options: Any
    ) -> RunFolder:
        whole = read(recipe, *overrides)
        if not whole.stages:
            return verb(whole, folder=folder, **options)
        place = RunFolder(folder or Path("runs") / whole.name)
        _begin(whole, place)
        for name, own in place.trainings().items():
            logger.info("stage %s", name)
            with _log_in(own):
                verb(recipes.stage(whole, name), folder=own.path, **options)
            if verb.__name__ == "evaluate" and writes():
                _measure_forgetting(place, name, options.get("progress"))
        if verb.__name__ == "report" and writes():
            from luthier.report import stages as page

            with user_disk_errors(place.path):
                page.write(place, whole)
        return place

    return cast(Verb, each)


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


@_by_stage
def prepare(
    recipe: AnyRecipe, *overrides: str, folder: str | Path | None = None, progress: Progress | None = None
) -> RunFolder:
    """Rows on disk, with the ledger of what was kept, dropped and trimmed."""
    from luthier.models.load import load_tokenizer
    from luthier.prepare.build import prepare as build

    recipe, place = _open(recipe, overrides, folder)
    with user_disk_errors(place.path):
        if not build(recipe, place, load_tokenizer(recipe.model), progress=progress):
            logger.info("prepare: skipped, nothing has changed")
    return place


@_by_stage
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
    from luthier.train.optimizer import refuse_unavailable

    recipe = read(recipe, *overrides)
    refuse_unavailable(recipe.train)
    place = prepare(recipe, folder=folder, progress=progress)
    recipe = settled(recipe, place)
    key = _key(
        place,
        recipe,
        *("task", "model", "data", "train", "check", "seed"),
        code=registry.registered("check"),
        before=_start(recipe),
    )
    if _done(place, "check", key, place.findings):
        return place
    context = RunContext(recipe, place, _rehearsal, quick=quick)
    with user_disk_errors(place.path):
        report = run_checks(context, waived=recipe.check.waive, progress=progress)
        write_json(place.findings, report.to_dict())
        _note_done(place, "check", "quick" if quick else key)
    logger.info("check: %d findings, %d passed", len(report.findings), len(report.passed))
    return place


def _rehearsal(context: RunContext) -> Rehearsal:
    from luthier.train.rehearsal import Rehearsal

    return Rehearsal(context.recipe, context.run, lambda: context.model, lambda: context.tokenizer)


@_by_stage
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

    place = RunFolder(folder or Path("runs") / read(recipe, *overrides).name)
    if name := stages.waits_for(read(recipe, *overrides).model, place):
        raise UserError(
            f"the stage {name!r} that this one goes on from is not trained",
            str(place.beside(name).path),
            "run the whole recipe: its stages are done in order",
        )
    ranks = Ranks()
    with ranks.together(), ranks.one_after_the_first():
        place = check(recipe, *overrides, folder=folder, progress=progress)
    recipe = settled(read(recipe, *overrides), place)
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
    key = _train_key(place, recipe)
    if _done(place, "train", key, place.result()):
        return place
    if place.result() and _stages(place).get("train") is not None:  # a result without a note was cut off here
        raise _other_training(place, "data or start")
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
            if form := recipes.build("task", recipe.task).identity(tokenizer):
                write_json(place.form(), form)
            _note_done(place, "train", key)
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
    """How the model is computed; a run that is taken up again, or another of its processes, takes the way that it took."""
    from luthier.models import engine, memory
    from luthier.schedule import total_steps

    settings = recipe.train
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
        micro_batch_tokens=before["micro_batch_tokens"] if before else settings.micro_batch_tokens,
        gradient_checkpointing=before["gradient_checkpointing"]
        if before
        else settings.gradient_checkpointing,
    )
    logger.info("train: %s", found)
    return found


@_by_stage
def evaluate(
    recipe: AnyRecipe, *overrides: str, folder: str | Path | None = None, progress: Progress | None = None
) -> RunFolder:
    """Base and tuned model on the test rows: predictions and scores with intervals; trains first if need be."""
    from luthier.evaluate import judges
    from luthier.evaluate.runner import Judging
    from luthier.models.load import load_tokenizer
    from luthier.rows import Rows

    place = train(recipe, *overrides, folder=folder, progress=progress)
    if not writes():
        return place
    recipe = settled(read(recipe, *overrides), place)
    task = recipes.build("task", recipe.task)
    code, before = registry.registered("metric"), _train_key(place, recipe)
    keys = {
        j: _key(place, j.seen(recipe), "evaluate", "seed", code=code, before=before) for j in judges.of(task)
    }
    waiting = {j: key for j, key in keys.items() if not _done(place, j.name, key, j.result(place))}
    if not waiting:
        return place
    if not place.rows("test").is_file() or not len(Rows(place.rows("test"))):
        raise UserError(
            "there are no test rows to compare on",
            "recipe key data.splits.test",
            "give the test split a share",
        )
    tokenizer = load_tokenizer(recipe.model)
    models = judges.models(recipe, place, tokenizer)
    with user_disk_errors(place.path):
        for judge, key in waiting.items():
            judge.judge(Judging(recipe, place, task, tokenizer, models, key, progress))
            _note_done(place, judge.name, key)
    return place


@_by_stage
def report(
    recipe: AnyRecipe, *overrides: str, folder: str | Path | None = None, progress: Progress | None = None
) -> RunFolder:
    """The curves and the page, of whatever the run folder holds by now."""
    from luthier.models.load import load_tokenizer
    from luthier.report import classes, curves, page
    from luthier.rows import Rows

    recipe, place = _open(recipe, overrides, folder)
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
    losses = {
        row["step"]: row["eval_loss"] for row in read_jsonl(place.history) if row.get("eval_loss") is not None
    }
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


def read(recipe: AnyRecipe, *overrides: str) -> Recipe:
    """The validated recipe, whatever form it came in."""
    if isinstance(recipe, Recipe) and not overrides:
        return recipe
    if isinstance(recipe, str | Path):
        return recipe_file.load(recipe, overrides)
    tree = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe
    return recipe_file.with_overrides(tree, overrides)


def settled(recipe: Recipe, place: RunFolder) -> Recipe:
    """The recipe of a run in its folder: that decides where its model lies, and which classes a head has."""
    model = stages.in_run(recipe.model, place)
    if place.labels.is_file():
        head = recipes.build("task", recipe.task).head(read_json(place.labels)["names"])
        if head is not None:
            model = Classifier(**{**model.model_dump(), "head": head})
    return recipe.model_copy(update={"model": model})


def _make_start(recipe: Recipe, place: RunFolder) -> None:
    """Writes the random model that a run starts from, unless it lies there already."""
    from luthier.models import scratch
    from luthier.prepare.raw import read_records
    from luthier.records import Record

    if recipe.model.scratch is None:
        return
    source = recipes.build("source", recipe.data.source, "recipe key data.source")
    key = hash_value(
        [recipe.model.scratch.model_dump(mode="json"), recipe.data.source, source.fingerprint(), recipe.seed]
    )
    if _done(place, "start", key, place.start):
        return
    task = recipes.build("task", recipe.task, "recipe key task")
    records = read_records(recipe.data.source, "recipe key data.source")
    texts = (task.duplicate_text(record) for record in records if isinstance(record, Record))
    scratch.make(recipe.model.scratch, texts, place.start, recipe.seed)
    _note_done(place, "start", key)


def _open(recipe: AnyRecipe, overrides: Sequence[str], folder: str | Path | None) -> tuple[Recipe, RunFolder]:
    """The recipe and its run folder, with the resolved recipe, environment and log in place."""
    given = read(recipe, *overrides)
    place = RunFolder(folder or Path("runs") / given.name)
    recipe = settled(given, place)
    place.create()
    _refuse_other_recipe(place, recipe)
    with user_disk_errors(place.path):
        write_text(place.recipe, recipe_file.dump(given))
        if not place.environment.is_file():
            write_json(place.environment, environment(recipe.seed))
        _log_to(place)
        _make_start(recipe, place)
    return recipe, place


def _log_to(place: RunFolder) -> None:
    if any(getattr(h, "baseFilename", "") == str(place.log.resolve()) for h in logger.handlers):
        return
    handler = logging.FileHandler(place.log.resolve(), encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    if writes():  # the others say only what is theirs
        logger.setLevel(logging.INFO)


@contextmanager
def _log_in(place: RunFolder) -> Iterator[None]:
    """A block after which nothing more is logged in a stage's folder."""
    try:
        yield
    finally:
        for handler in list(logger.handlers):
            if getattr(handler, "baseFilename", "") == str(place.log.resolve()):
                logger.removeHandler(handler)
                handler.close()


def _begin(whole: Recipe, place: RunFolder) -> None:
    """Writes the recipe with its stages, and what changes from one to the next."""
    place.create()
    with user_disk_errors(place.path):
        _log_to(place)
        write_text(place.recipe, recipe_file.dump(whole))
        write_json(place.changes, stages.changes(whole))


def _measure_forgetting(place: RunFolder, name: str, progress: Progress | None) -> None:
    """Adds to ``forgetting.json`` what a stage's model scores on the test rows of each stage before it."""
    from luthier.evaluate import forgetting

    folders = place.trainings()
    later = folders[name]
    known = read_json(place.forgetting) if place.forgetting.is_file() else []
    for earlier in list(folders)[: list(folders).index(name)]:
        own = folders[earlier]
        key = hash_value([_stages(own)["evaluate"], _stages(later)["train"]])
        pair = {"stage": earlier, "after": name}
        if any(entry["key"] == key for entry in known if pair.items() <= entry.items()):
            continue
        sides = [(settled(recipe_file.load(one.recipe), one), one) for one in (own, later)]
        with user_disk_errors(place.path):
            found = forgetting.measure(*sides[0], *sides[1], progress)
            known = [entry for entry in known if not pair.items() <= entry.items()]
            known.append({**pair, "key": key, **found})
            write_json(place.forgetting, known)


def writes() -> bool:
    """Whether this is the process, of several that torchrun started, that does what needs doing once."""
    return os.environ.get("RANK", "0") == "0"


def _key(
    place: RunFolder, recipe: Recipe, *parts: str, code: Mapping[str, Any] | None = None, before: str = ""
) -> str:
    tree = recipe.model_dump(mode="json")
    for name in _CHANGES_NO_STEP:
        tree["train"].pop(name)
    if recipe.model.scratch is not None or _trained_by(recipe) is not None:
        tree["model"].pop("name")  # wherever the run folder lies by now
    if recipe.model.start_from:
        tree["model"].pop("start_from")  # what is in it counts: `before`
    sources = {name: registry.code_hash(entry) for name, entry in (code or {}).items()}
    return hash_value(
        [read_json(place.manifest)["key"], {part: tree[part] for part in parts}, sources, before]
    )


def _train_key(place: RunFolder, recipe: Recipe) -> str:
    return _key(place, recipe, "task", "model", "train", "seed", before=_start(recipe))


def _start(recipe: Recipe) -> str:
    """Hash of the training that this one goes on from; nothing if it begins anew."""
    if recipe.model.start_from:
        from luthier.models.start import start_hash

        return start_hash(recipe.model)
    earlier = _trained_by(recipe)
    return "" if earlier is None else _stages(earlier).get("train", "")


def _trained_by(recipe: Recipe) -> RunFolder | None:
    """The run that has trained, as a whole, the model that this one begins with; None for any other model."""
    run = RunFolder(Path(recipe.model.name).parent)
    return run if recipe.model.name == str(run.model) and run.stages.is_file() else None


def _done(place: RunFolder, stage: str, key: str, result: Path | None) -> bool:
    done = _stages(place).get(stage) == key and result is not None and result.exists()
    if done:
        logger.info("%s: skipped, nothing has changed", stage)
    return done


def _note_done(place: RunFolder, stage: str, key: str) -> None:
    write_json(place.stages, _stages(place) | {stage: key})


def _stages(place: RunFolder) -> dict[str, str]:
    """The key with which each finished stage ran."""
    stages: dict[str, str] = read_json(place.stages) if place.stages.is_file() else {}
    return stages


def _refuse_other_recipe(place: RunFolder, recipe: Recipe) -> None:
    """A folder that holds training belongs to its recipe: nothing in it is replaced by what another one asks for."""
    if not place.recipe.is_file() or not (place.result() or any(place.checkpoints.glob("step-*"))):
        return
    old = settled(recipe_file.load(place.recipe), place).model_dump(mode="json")
    new = recipe.model_dump(mode="json")
    for tree in (old, new):
        tree["data"].pop("num_workers")  # changes no row
        for name in _CHANGES_NO_STEP:
            tree["train"].pop(name)
    differing = [part for part in ("task", "model", "data", "train", "seed") if old[part] != new[part]]
    if differing:
        raise _other_training(place, ", ".join(differing))


def _other_training(place: RunFolder, differing: str) -> UserError:
    return UserError(
        f"this run folder holds training with other settings or data ({differing})",
        str(place.path),
        f"name another folder with --run, or delete {place.checkpoints} and {place.result() or place.adapter}",
    )
