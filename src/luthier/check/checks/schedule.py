from __future__ import annotations

from collections.abc import Iterator

from luthier.check.context import CheckContext, Skip
from luthier.records import Finding
from luthier.registry import check

# The last warm-up step is at the peak itself; 1% is left to rounding.
LEAST_PEAK_SHARE = 0.99


@check("schedule")
def schedule(context: CheckContext) -> Iterator[Finding]:
    """The run reaches its learning rate, evaluates on its way, and has rows enough for a step.

    What it does: computes the learning rate of every step of the run and the steps at which it is evaluated and saved,
    and compares the rows of a step with the training rows.

    Why is this bad: a warm-up longer than the run trains at a fraction of the learning rate; a run that is evaluated
    once, at its end, cannot choose its best checkpoint or stop early; a step larger than the data holds rows twice.

    Example: ``warmup_steps: 500`` in a run of 300 steps.

    Fix: a warm-up as a share of the run; a smaller interval of evaluation; a smaller batch.

    Catalogue: 42, 75, 76
    """
    plan = context.training.plan
    if plan.num_rows == 0 or not plan.num_steps:
        raise Skip("there are no training rows")
    context.looked_at(f"all {plan.num_steps:,} steps")
    peak = max(plan.learning_rates)
    if peak < LEAST_PEAK_SHARE * plan.peak_learning_rate:
        yield Finding(
            "schedule",
            "error",
            f"the learning rate rises to {peak:.3g} only, {peak / plan.peak_learning_rate:.0%} of {plan.peak_learning_rate:g}: "
            f"warm-up takes {plan.warmup_steps} steps, and the run has {plan.num_steps}",
            plan.key("warmup_steps"),
            context.fix(
                "train.warmup_steps=null train.warmup_share=0.05", "warmup_steps=0.05 (a share of the run)"
            ),
            measured=peak,
            expected=plan.peak_learning_rate,
        )
    if plan.num_eval_rows == 0 and (plan.best_metric or plan.eval_steps):
        yield Finding(
            "schedule",
            "error",
            "there are 0 eval rows, so nothing can choose the best checkpoint or show over-fitting",
            plan.key("num_eval_rows"),
            context.fix(
                "give the eval split a share, or data.eval_source", "give the trainer an eval_dataset"
            ),
            measured=0,
            expected="at least 1",
        )
    elif plan.num_eval_rows != 0 and (not plan.eval_steps or plan.eval_steps[0] >= plan.num_steps):
        first = plan.eval_steps[0] if plan.eval_steps else None
        yield Finding(
            "schedule",
            "warning",
            f"the run of {plan.num_steps:,} steps is evaluated "
            + (
                f"at its end only: the first evaluation is planned after step {first:,}"
                if first
                else "at its end only, if at all"
            ),
            plan.key("eval_steps"),
            context.fix(
                f"train.eval_every_steps={max(1, plan.num_steps // 10)}",
                f'eval_strategy="steps", eval_steps={max(1, plan.num_steps // 10)}',
            ),
            measured=len(plan.eval_steps),
            expected="at least 2",
        )
    if plan.num_rows is not None and plan.rows_per_step > plan.num_rows:
        yield Finding(
            "schedule",
            "warning",
            f"a step takes {plan.rows_per_step} rows, but there are only {plan.num_rows}",
            plan.key("rows_per_step"),
            context.fix(f"train.batch_size={plan.num_rows}", "a smaller batch, or fewer accumulation steps"),
            measured=plan.rows_per_step,
            expected=f"at most {plan.num_rows}",
        )
