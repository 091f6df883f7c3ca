"""What a later training stage has made of an earlier one: its model on the earlier one's test rows."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from luthier.evaluate import judges
from luthier.evaluate.runner import Judging
from luthier.evaluate.significance import compare
from luthier.models.load import load_tokenizer, load_trained
from luthier.recipe import Recipe, build
from luthier.records import Progress
from luthier.run_folder import RunFolder, logger, read_jsonl


def measure(
    recipe: Recipe,
    earlier: RunFolder,
    later_recipe: Recipe,
    later: RunFolder,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores in the form of ``scores.json``: ``base`` is the model as the earlier stage left it, ``tuned`` the later one.

    Predictions of the later model are kept in its folder, under ``on/``.

    Args:
        recipe: Of the earlier stage, settled; its task and metrics are taken.
        earlier: Its folder, evaluated.
        later_recipe: Of the later stage, settled.
        later: Its folder, trained.
        progress: Called with a label, what is done and how much there is.

    Returns:
        ``num_rows``, ``num_groups`` and ``metrics``; or ``not_measured``, the reason why there are none.
    """
    tokenizer = load_tokenizer(recipe.model)
    reason = None
    if tokenizer.hash() != load_tokenizer(later_recipe.model).hash():
        reason = "the later stage has another tokenizer, or other added tokens"
    elif getattr(recipe.model, "head", None) != getattr(later_recipe.model, "head", None):
        reason = "the later stage has another head"
    if reason:
        logger.warning(
            "forgetting: %s after %s is not measured: %s", earlier.path.name, later.path.name, reason
        )
        return {"not_measured": reason}
    task = build("task", recipe.task)
    model = load_trained(later_recipe.model, later, len(tokenizer))
    place = later.on(earlier)
    judging = Judging(
        recipe, place, task, tokenizer, {"tuned": lambda: nullcontext(model)}, progress=progress
    )
    judges.of(task)[0].judge(judging)
    before = {row["id"]: row["tuned"] for row in read_jsonl(earlier.predictions)}
    rows = [{**row, "base": before[row["id"]]} for row in read_jsonl(place.predictions)]
    scores = compare(rows, recipe.evaluate.num_bootstrap, recipe.seed)
    return {key: scores[key] for key in ("num_rows", "num_groups", "metrics")}
