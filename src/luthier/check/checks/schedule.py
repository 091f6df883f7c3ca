from __future__ import annotations

from collections.abc import Iterator

from luthier.check.context import CheckContext, Skip
from luthier.records import Finding
from luthier.registry import check
from luthier.schedule import learning_rate, num_warmup_steps, total_steps

# The last warm-up step is at the peak itself; 1% is left to rounding.
LEAST_PEAK_SHARE = 0.99


@check("schedule")
def schedule(context: CheckContext) -> Iterator[Finding]:
    """The run reaches its learning rate, evaluates on its way, and has rows enough for a step.

    What it does: computes the learning rate of every step of the run, counts the evaluations, and compares
    ``train.batch_size`` with the training rows.

    Why is this bad: a warm-up longer than the run trains at a fraction of the learning rate; a run that is evaluated
    once, at its end, cannot choose its best checkpoint or stop early; a step larger than the data holds rows twice.

    Example: ``warmup_steps: 500`` in a run of 300 steps.

    Fix: ``train.warmup_share``; a smaller ``train.eval_every_steps`` or ``train.batch_size``.

    Catalogue: 42, 75, 76
    """
    settings = context.recipe.train
    num_rows, num_eval = (len(context.rows.get(split, ())) for split in ("train", "eval"))
    if not num_rows:
        raise Skip("there are no training rows")
    steps = total_steps(settings, num_rows)
    peak = max(learning_rate(step, steps, settings) for step in range(1, steps + 1))
    if peak < LEAST_PEAK_SHARE * settings.learning_rate:
        warmup = num_warmup_steps(settings, steps)
        yield Finding(
            "schedule",
            "error",
            f"the learning rate rises to {peak:.3g} only, {peak / settings.learning_rate:.0%} of {settings.learning_rate:g}: "
            f"warm-up takes {warmup} steps, and the run has {steps}",
            "recipe key train.warmup_steps",
            "train.warmup_steps=null train.warmup_share=0.05",
            measured=peak,
            expected=settings.learning_rate,
        )
    if not num_eval:
        yield Finding(
            "schedule",
            "error",
            "there are 0 eval rows, so nothing can choose the best checkpoint",
            "recipe key data.splits.eval",
            "give the eval split a share, or data.eval_source",
            measured=0,
            expected="at least 1",
        )
    tokens = steps * settings.batch_size * float(context.rows["train"].lengths().mean())
    key, every, length = "eval_every_steps", settings.eval_every_steps, float(steps)
    if settings.eval_every_tokens:
        key, every, length = "eval_every_tokens", settings.eval_every_tokens, tokens
    if every and every > length:
        yield Finding(
            "schedule",
            "warning",
            f"the run is evaluated at its end only: {key} is {every:,}, and the run has about {length:,.0f}",
            f"recipe key train.{key}",
            f"train.{key}={max(1, int(length / 10))}",
            measured=length,
            expected=f"at least {every}",
        )
    if settings.batch_size > num_rows:
        yield Finding(
            "schedule",
            "warning",
            f"a step takes {settings.batch_size} rows, but there are only {num_rows}: each step holds rows more than once",
            "recipe key train.batch_size",
            f"train.batch_size={num_rows}",
            measured=settings.batch_size,
            expected=f"at most {num_rows}",
        )
