"""The repair stage: candidates for the recipe's bugs, judged by their tests, in a folder of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from luthier import recipe as recipes
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.evaluate.candidates import ask, generate_candidates, search_of
from luthier.evaluate.patches import given_candidates, judge_candidates
from luthier.evaluate.rounds import repair_in_rounds
from luthier.models.inference_engines import Name, Opener, Transformers, chosen_engine, open_engine
from luthier.models.load import load_tokenizer, resolve
from luthier.models.start import start_hash
from luthier.recipe import Recipe
from luthier.records import Progress
from luthier.run_folder import RunFolder, hash_folder, logger, read_json
from luthier.tasks.repair import Repair

# How a model is loaded.
_OF_WEIGHTS = {"revision", "precision", "quantisation", "start_mode", "new_tokens", "rope"}


def repair(
    recipe: Recipe,
    run: RunFolder,
    which: str,
    *,
    lend: Callable[[], PreTrainedModel | PeftModel] | None = None,
    weights: str = "",
    given: Path | None = None,
    rounds: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes candidates and verdicts into ``repair/WHICH`` of the run; returns the content of ``repair.json`` or ``rounds.json``.

    Args:
        recipe: With ``repair.bugs``.
        run: The run's folder.
        which: ``tuned`` and ``base`` load that model; another name needs ``lend``, ``given`` or a server to ask.
        lend: Loads the model.
        weights: Hash of what it loads.
        given: File of candidates instead of a model.
        rounds: In rounds with feedback, into ``repair/WHICH-rounds``.
        progress: Called with a label, what is done and all.

    Raises:
        UserError: No bugs, a task that repairs nothing, or rows of another form than the adapter was trained with.
    """
    task = recipes.build("task", recipe.task, "recipe key task")
    if not isinstance(task, Repair):
        raise UserError(
            f"the task {recipe.task['type']!r} repairs nothing",
            "recipe key task.type",
            "set task.type=repair, and train with it",
        )
    if recipe.repair.bugs is None:
        raise UserError(
            "there are no bugs to repair",
            "recipe key repair.bugs",
            "name a source: {type: bugs, path: bugs.jsonl}",
        )
    server = recipe.repair.rounds.server if rounds else None
    if server is not None and task.format != "chat":
        raise UserError(
            "a server is asked in a chat, and the task's prompts are texts to go on with",
            "recipe key task.format",
            "set task.format=chat task.input=IR1 task.output=OR1",
        )
    tokenizer = load_tokenizer(recipe.model) if server is None and given is None else None
    if tokenizer is not None and which != "base":
        _same_form(task.identity(tokenizer), run, recipe)
    records = list(recipes.build("source", recipe.repair.bugs, "recipe key repair.bugs").records())
    asked, left_out = ask(records, task, tokenizer, recipe)
    if not asked:
        why = (
            "; ".join(f"{d.id}: {d.reason} {d.detail}" for d in left_out[:3]) or "the source gave no records"
        )
        raise UserError(
            f"nothing can be asked about any of the bugs: {why}",
            "recipe key repair.bugs",
            "mend the bugs, or name others",
        )
    folder = run.repair / (f"{which}-rounds" if rounds else which)
    memory = run.repair / "judged.jsonl"
    if given is not None:
        candidates = given_candidates(given, asked, recipe)
        return judge_candidates(asked, left_out, candidates, recipe, folder, memory, progress)
    identity: list[Any]
    opener: Opener | None = None
    if tokenizer is None:
        assert server is not None
        identity = [server.url, server.model]
    else:
        engine = chosen_engine(recipe, checkpoint=lend is not None)
        opener, weights = _opening(recipe, run, which, tokenizer, engine, lend, weights)
        model = recipe.model.model_dump(mode="json", include=_OF_WEIGHTS)
        identity = [weights, start_hash(recipe.model), model, task.identity(tokenizer), engine]
    if rounds:
        return repair_in_rounds(
            asked, left_out, task, tokenizer, opener, identity, recipe, folder, memory, progress
        )
    assert opener is not None
    path = folder / "candidates.jsonl"
    candidates = generate_candidates(asked, task, opener, engine, recipe, path, identity, progress)
    return judge_candidates(asked, left_out, candidates, recipe, folder, memory, progress)


def _opening(
    recipe: Recipe,
    run: RunFolder,
    which: str,
    tokenizer: TextTokenizer,
    engine: Name,
    lend: Callable[[], PreTrainedModel | PeftModel] | None,
    weights: str,
) -> tuple[Opener, str]:
    """What loads the engine, and the hash of the weights that it loads."""
    if lend is not None:
        lent = lend
        return lambda: Transformers(lent(), tokenizer), weights
    result = run.result() if which == "tuned" else None
    weights = hash_folder(result) if result is not None else resolve(recipe.model)
    return lambda: open_engine(engine, recipe, run, which, tokenizer, search_of(recipe)), weights


def _same_form(form: dict[str, Any], run: RunFolder, recipe: Recipe) -> None:
    """Whether rows are now as they were in training: an adapter that learned another form repairs less, and says nothing."""
    if not run.form().is_file():
        raise UserError(
            "nothing says in what form the rows of training were",
            str(run.form()),
            "train with the task repair, or judge --base",
        )
    # Older forms do not name all.
    before = {"format": "completion", **{key: form[key] for key in ("attempts", "chat_template")}}
    before |= read_json(run.form())
    differing = [
        f"{key}: {before.get(key)!r} in training, {form.get(key)!r} now"
        for key in form
        if before.get(key) != form[key]
    ]
    if not differing:
        return
    if recipe.repair.other_format == "warn":
        logger.warning("repair: rows have another form than in training (%s)", "; ".join(differing))
        return
    raise UserError(
        f"rows have another form than in training ({'; '.join(differing)})",
        "recipe key task",
        "leave the task as it was trained, or set repair.other_format=warn to see what it costs",
    )
