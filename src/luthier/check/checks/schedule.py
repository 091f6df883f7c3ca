from __future__ import annotations

from collections.abc import Iterator

from luthier.check.context import CheckContext, Skip
from luthier.plan import Plan
from luthier.records import Finding
from luthier.registry import check

# The last warm-up step is at the peak itself; 1% is left to rounding.
LEAST_PEAK_SHARE = 0.99
# A schedule that falls is at 0 to 10% of its peak at its end; this far up it was made for a third more steps.
MOST_LAST_SHARE = 0.25
# transformers' own: who leaves it says nothing about a run that is shorter, which is saved at its end.
_DEFAULT_SAVE_STEPS = 500


@check("schedule")
def schedule(context: CheckContext) -> Iterator[Finding]:
    """The run reaches its learning rate and comes down from it, evaluates and saves on its way, and has rows enough for a step.

    What it does: computes the learning rate of every step of the run (of a scheduler that was passed to a ``Trainer``,
    also of ten times as many) and the steps at which it is evaluated and saved, and compares the rows of a step with the
    training rows.

    Why is this bad: a warm-up longer than the run trains at a fraction of the learning rate; a schedule that was made for
    more steps ends in the middle of its fall; a run that is evaluated once, at its end, cannot choose its best checkpoint
    or stop early; a step larger than the data holds rows twice.

    Example: ``warmup_steps: 500`` in a run of 300 steps; a cosine over the steps without accumulation, passed to a
    ``Trainer`` that accumulates 8 times.

    Fix: a warm-up as a share of the run; a scheduler over the run's own steps; a smaller interval of evaluation; a smaller
    batch.

    Catalogue: 42, 75, 76
    """
    plan = context.training.plan
    if plan.num_rows == 0:
        raise Skip("there are no training rows")
    if not plan.num_steps:
        yield Finding(
            "schedule",
            "error",
            f"the run has 0 steps: {plan.num_rows:,} rows make no whole batch, and an incomplete one is dropped",
            plan.key("rows_per_step"),
            context.fix("train.batch_size=1", "a smaller batch, or dataloader_drop_last=False"),
            measured=0,
            expected="at least 1",
        )
        return
    context.looked_at(
        f"all {plan.num_steps:,} steps"
        + (f" ({plan.num_steps / plan.steps_per_epoch:.3g} epochs)" if plan.num_rows is not None else "")
    )
    yield from _rates(context, plan)
    yield from _evaluations(context, plan)
    yield from _length(context, plan)


def _rates(context: CheckContext, plan: Plan) -> Iterator[Finding]:
    peak = max(plan.learning_rates)
    if peak < LEAST_PEAK_SHARE * plan.peak_learning_rate or peak <= 0:
        share = peak / plan.peak_learning_rate if plan.peak_learning_rate else 0.0
        yield Finding(
            "schedule",
            "error",
            f"the learning rate rises to {peak:.3g} only, {share:.0%} of {plan.peak_learning_rate:g}: "
            + (
                f"warm-up takes {plan.warmup_steps} steps, and the run has {plan.num_steps}"
                if plan.warmup_steps
                else "the schedule goes no higher"
            ),
            plan.key("warmup_steps") if peak > 0 else plan.key("learning_rate"),
            context.fix(
                "train.warmup_steps=null train.warmup_share=0.05", "warmup_steps=0.05 (a share of the run)"
            ),
            measured=peak,
            expected=plan.peak_learning_rate,
        )
    last = plan.learning_rates[-1]
    if plan.schedule_steps is not None and last > MOST_LAST_SHARE * peak:
        yield Finding(
            "schedule",
            "warning",
            f"the run ends after {plan.num_steps:,} steps at {last / peak:.0%} of the peak learning rate: the scheduler comes "
            f"to its end after {plan.schedule_steps:,}, {plan.schedule_steps / plan.num_steps:.1f} times as many",
            plan.key("schedule"),
            f"make it with num_training_steps={plan.num_steps}, or let the Trainer make it (lr_scheduler_type)",
            measured=round(last / peak, 2),
            expected="about 0",
        )


def _evaluations(context: CheckContext, plan: Plan) -> Iterator[Finding]:
    every = max(1, plan.num_steps // 10)
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
                f"train.eval_every_steps={every}",
                f'eval_strategy="steps", eval_steps={every}',
            ),
            measured=len(plan.eval_steps),
            expected="at least 2",
        )
    if plan.save_steps and plan.save_steps[0] > max(plan.num_steps, _DEFAULT_SAVE_STEPS):
        yield Finding(
            "schedule",
            "warning",
            f"the first checkpoint is planned after step {plan.save_steps[0]:,}, but the run has {plan.num_steps:,}: nothing "
            "is saved before its end",
            plan.key("save_steps"),
            context.fix(f"train.checkpoint_every_steps={every}", f"save_steps={every}"),
            measured=plan.save_steps[0],
            expected=f"at most {plan.num_steps}",
        )


def _length(context: CheckContext, plan: Plan) -> Iterator[Finding]:
    if plan.ignored_epochs is not None:
        yield Finding(
            "schedule",
            "note",
            f"max_steps={plan.num_steps} overrides num_train_epochs={plan.ignored_epochs:g}: the run sees "
            f"{plan.num_steps / plan.steps_per_epoch:.2f} epochs",
            plan.key("max_steps"),
            f"max_steps=-1, or {round(plan.ignored_epochs * plan.steps_per_epoch)} for so many epochs",
            measured=round(plan.num_steps / plan.steps_per_epoch, 2),
            expected=plan.ignored_epochs,
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
