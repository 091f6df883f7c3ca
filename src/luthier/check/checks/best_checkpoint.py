from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.utils.data import IterableDataset, Subset

from luthier.check.as_before import attributes_as_before, modules_as_before, quiet, same_draws
from luthier.check.context import CheckContext, Skip
from luthier.check.trainer import TrainerContext
from luthier.errors import one_line
from luthier.records import Finding
from luthier.registry import check

# Words of metrics' names, and whether less of it is better.
SMALLER = {
    "loss", "perplexity", "ppl", "error", "errors", "err", "wer", "cer", "ter", "mae", "mse", "rmse", "nll", "bpb", "bits",
    "distance", "divergence", "kl", "brier", "ece", "toxicity", "hallucination", "hallucinations", "latency",
}  # fmt: skip
LARGER = {
    "accuracy", "acc", "f1", "bleu", "rouge", "rouge1", "rouge2", "rougel", "meteor", "chrf", "precision", "recall", "auc",
    "auroc", "map", "mrr", "ndcg", "mcc", "match", "matches", "similarity", "pearson", "spearman", "spearmanr", "r2", "pass",
    "exact", "reward", "kappa",
}  # fmt: skip
# Rows of an evaluation that only is to show which metrics it gives.
NUM_ROWS = 2


@check("best-checkpoint")
def best_checkpoint(context: CheckContext) -> Iterator[Finding]:
    """The metric that chooses the best checkpoint is one that evaluation gives, and its direction is the right one.

    What it does: compares the direction (``greater_is_better``) with what the metric's name
    says; and lets a ``Trainer`` evaluate 2 rows, without its callbacks, to see whether the metric is among the results
    and is a number.

    Why is this bad: with the wrong direction the worst checkpoint is kept. A metric that evaluation does not give ends
    the run at its first evaluation, or leaves early stopping without effect.

    Example: ``metric_for_best_model="eval_error_rate"``: ``greater_is_better`` becomes True, since the name does not end
    with "loss". ``eval_loss`` with a ``PeftModel`` and a collator that names its labels otherwise.

    Fix: give ``greater_is_better`` explicitly; ``label_names=["labels"]``; a ``compute_metrics`` that returns the metric.

    Catalogue: 39, 41, 42
    """
    plan = context.training.plan
    if plan.best_metric is None:
        raise Skip("the last checkpoint is kept, no metric chooses")
    context.looked_at(f"metric {plan.best_metric}, {plan.best_direction} is best")
    words = set(re.split(r"[^a-z0-9]+", plan.best_metric.lower()))
    expected = "min" if words & SMALLER else "max" if words & LARGER else plan.best_direction
    if expected != plan.best_direction:
        chosen = "largest" if plan.best_direction == "max" else "smallest"
        yield Finding(
            "best-checkpoint",
            "error",
            f"the checkpoint with the {chosen} {plan.best_metric} will be kept (direction {plan.best_direction}), which is the "
            "worst one by its name"
            + (
                "; greater_is_better is inferred from the end of a name, which has to be 'loss'"
                if expected == "min" and isinstance(context, TrainerContext)
                else ""
            ),
            plan.key("best_direction"),
            f"greater_is_better={expected == 'max'}",
            measured=plan.best_direction,
            expected=expected,
        )
    if isinstance(context, TrainerContext) and not context.quick:
        try:
            yield from list(_given(context, plan.best_metric))
        except Skip:
            if expected == plan.best_direction:
                raise


def _given(context: TrainerContext, metric: str) -> Iterator[Finding]:
    """Whether a tiny evaluation gives the metric, as a number."""
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    metrics = _evaluate(context)
    context.looked_at(f"an evaluation of {NUM_ROWS} rows")
    where = context.training.plan.key("best_metric")
    if name not in metrics:
        given = sorted(
            m for m in metrics if not re.search(r"(runtime|per_second|preparation_time|num_tokens)$", m)
        )
        yield Finding(
            "best-checkpoint",
            "error",
            f"evaluation gives no {name}, by which the best checkpoint is to be chosen, but {len(given)} others: "
            f"{', '.join(given[:8]) or 'none'}",
            where,
            _fix(context, name),
            measured=", ".join(given[:8]) or "none",
            expected=name,
        )
        return
    value: Any = metrics[name]  # of the user's own function
    if isinstance(value, int | float) and math.isfinite(value):
        return
    # The ROC AUC of one class and the correlation of equal labels are no numbers.
    if isinstance(value, float) and not name.endswith("loss"):
        raise Skip(f"{name} of {NUM_ROWS} rows is {value}, for which these may be too few")
    yield Finding(
        "best-checkpoint",
        "error",
        f"{name} of {NUM_ROWS} rows is {value}: no checkpoint will ever be better than another",
        where,
        "look for eval rows without labels, or weights that are not finite",
        measured=str(value),
        expected="a number",
    )


def _fix(context: TrainerContext, name: str) -> str:
    batch: Mapping[str, Any] = context.batches[0] if context.batches else {}
    missing = [label for label in context.trainer.label_names if label not in batch]
    if name == "eval_loss" and (missing or not context.trainer.label_names):
        there = [key for key in batch if "label" in key]
        return f"label_names={there or ['labels']} in TrainingArguments: it looks for {context.trainer.label_names}"
    return f"let compute_metrics return {name.removeprefix('eval_')!r}, or name another metric_for_best_model"


def _evaluate(context: TrainerContext) -> dict[str, float]:
    """What the trainer's own evaluation gives for a few rows; none of its callbacks is called."""
    trainer: Any = context.trainer
    dataset = trainer.eval_dataset
    if dataset is None:
        raise Skip("there are no eval rows (see schedule)")
    small = {k: _few(v) for k, v in dataset.items()} if isinstance(dataset, dict) else _few(dataset)
    with _quiet(trainer), same_draws(), modules_as_before(trainer.model):
        trainer.eval_dataset = small
        try:
            found: dict[str, float] = trainer.evaluate()
        except Exception as error:  # whatever foreign metrics raise, who may ask for more rows or classes
            raise Skip(f"an evaluation of {NUM_ROWS} rows fails: {one_line(error)}") from error
        finally:
            trainer.eval_dataset = dataset
    return found


@contextmanager
def _quiet(trainer: Any) -> Iterator[None]:
    """A trainer whose evaluation tells nobody of it and starts no processes; it is as before afterwards."""
    parts = [trainer.args, trainer.state, trainer.accelerator, trainer.callback_handler]
    with attributes_as_before(parts), quiet():  # that there are no callbacks
        trainer.callback_handler.callbacks.clear()
        trainer.args.dataloader_num_workers = 0
        trainer.args.dataloader_prefetch_factor = None
        trainer.args.dataloader_persistent_workers = False
        yield


def _few(dataset: Any) -> Any:
    """The first rows of a data set, as a data set of the same kind where that matters."""
    if hasattr(dataset, "select"):  # of the library datasets
        return dataset.select(range(min(NUM_ROWS, len(dataset))))
    if hasattr(dataset, "take"):
        return dataset.take(NUM_ROWS)
    if isinstance(dataset, IterableDataset):
        return [row for row, _ in zip(iter(dataset), range(NUM_ROWS), strict=False)]
    return Subset(dataset, range(min(NUM_ROWS, len(dataset))))
