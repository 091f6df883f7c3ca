"""The watchers: functions from the course of a training to a finding about its last step, or to none.

Each is documented as a check is (``luthier explain watch-overfitting``). A healthy run, noisy as it may be, must not make
them speak; so they compare medians and extremes of many steps, never two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import numpy as np

from luthier.records import Finding
from luthier.train.watch import BLOCK, Course, Watcher

# Losses of batches vary by a factor, not by an amount: a spike has to stand out by the median absolute deviation both of
# the losses and of their logarithms. Eight deviations are not reached in 10,000 steps of normal, log-normal or
# gamma noise of any width; twice the median is what one would see in a curve.
SPIKE_WINDOW, SPIKE_LEAST_STEPS, SPIKE_DEVIATIONS, SPIKE_RATIO = 50, 20, 8.0, 2.0
MAD_TO_SIGMA = 1.4826  # of a normal distribution
# Ten steps in a row above anything of the first five, and by a tenth, while the run is young: noise does not do that.
RISE_FIRST, RISE_LAST, RISE_OVER_START, RISE_YOUNG = 5, 10, 1.1, 100
# Twenty steps of which none is as low as the highest of the best twenty; and by more than other rows make up.
RISE_RATIO, RISE_NATS = 1.25, 0.2
# From random weights the loss leaves ln V within some dozen steps at any learning rate that trains.
STUCK_STEPS, CHANCE_TOLERANCE = 100, 0.03
# Evaluations are of the same rows each time, so there is no noise but that of the model's own changes.
STUCK_EVALS, UNMOVED_SHARE = 4, 1e-3
# Two epochs are of the same rows; what the batches at their ends share out differently is less than this in 50 steps.
EPOCH_STEPS, EPOCH_FALL = 50, 2e-3
# Norms drift by a factor of a few as a run goes on; clipping makes single outliers harmless, so several must come.
GRADIENT_WINDOW, GRADIENT_LEAST_STEPS = 50, 20
EXPLODING_RATIO, EXPLODING_STEPS, EXPLODING_OVER_START = 20.0, 5, 10.0
# A loss that has fallen by half explains small gradients: there is little left to learn.
VANISHING_RATIO, ZERO_STEPS, VANISHING_LOSS_SHARE = 1e-3, 3, 0.5
# Evaluations of a run that levels off wander by a per cent, and on a dozen rows by three; epochs too many cost ten and more.
WORSE_EVALS, WORSE_EACH, WORSE_LAST = 3, 0.02, 0.05
# The first steps allocate and compile. Rows of varied length make single steps slow, not twenty in a row.
SPEED_FIRST_STEPS, SPEED_LEAST_STEPS, SPEED_LAST, SPEED_SHARE, SPEED_EVERY = 5, 60, 20, 0.5, 10
# Longest rows and allocators make memory grow in steps that become rare; a leak grows like a line.
MEMORY_STEPS, MEMORY_FIT, MEMORY_SHARE, MEMORY_GIB, MEMORY_HALF = 300, 0.9, 0.05, 0.1, 1 / 3
MEMORY_EVERY = 50


def loss_spike(course: Course) -> Finding | None:
    """No step's loss stands far above those of the steps before it.

    What it does: compares the loss of each step with the median of the 50 before it. It speaks from twice the
    median on, if that is also 8 median absolute deviations above it, in nats and in logarithms.

    Why is this bad: a spike is a batch unlike all others (garbage, another language, a target of one token) or a step
    that was too large; after it the model may need hundreds of steps to be where it was, or never be.

    Example: a base64 file among source files; a learning rate at the edge of what the model bears.

    Fix: look at the rows of that step; a lower ``train.learning_rate`` or more ``train.warmup_steps``.

    Catalogue: 45
    """
    if len(course.losses) <= SPIKE_LEAST_STEPS:
        return None
    loss, before = course.losses[-1], course.losses[-SPIKE_WINDOW - 1 : -1]
    usual = median(before)
    if loss <= SPIKE_RATIO * usual or min(before) <= 0:
        return None
    deviations = min(_deviations(loss, before), _deviations(math.log(loss), [math.log(x) for x in before]))
    if deviations < SPIKE_DEVIATIONS:
        return None
    return Finding(
        "watch-loss-spike",
        "warning",
        f"the loss of step {course.steps[-1]} is {loss:.3g}, {loss / usual:.2g} times the {usual:.3g} that is the median of "
        f"the {len(before)} before it",
        course.where(),
        course.fix(
            "look at the rows of that step with `luthier show`; a lower train.learning_rate or more train.warmup_steps",
            "look at the rows of that step; a lower learning_rate, more warmup_steps, max_grad_norm=1.0",
        ),
        measured=round(loss, 6),
        expected=round(usual, 6),
    )


def _deviations(value: float, others: Sequence[float]) -> float:
    """By how many standard deviations, told from the median absolute one, a value lies above others."""
    middle = median(others)
    spread = MAD_TO_SIGMA * median([abs(other - middle) for other in others])
    return (value - middle) / spread if spread else math.inf


def loss_rise(course: Course) -> Finding | None:
    """The training loss does not rise and stay there.

    What it does: looks whether ten steps in a row lie a tenth or more above every one of the first five, in the first 100
    steps; whether ten in a row lie a tenth above ln V, the loss of chance, though the first did not; and whether of the
    last twenty steps none is as low as the highest of the best twenty, at 1.25 times their median or more.

    Why is this bad: the run diverges: the model forgets what it knew, and does not come back by itself.

    Example: a learning rate of full fine-tuning that was meant for LoRA; no warm-up; data that changes its kind midway
    because it is not shuffled.

    Fix: a lower ``train.learning_rate``, with warm-up, from the last good checkpoint.

    Catalogue: 24
    """
    losses, steps = course.losses, course.steps
    first, last = losses[:RISE_FIRST], losses[-RISE_LAST:]
    if len(losses) >= RISE_FIRST + RISE_LAST:
        low, when = min(last), f"steps {steps[-RISE_LAST]} to {steps[-1]}"
        if len(losses) <= RISE_YOUNG and low > RISE_OVER_START * max(first):
            return _risen(
                course, median(last), when, max(first), f"at most {max(first):.3g} in the first {RISE_FIRST}"
            )
        chance = course.setting.chance_loss
        if chance and low > RISE_OVER_START * chance and low > RISE_OVER_START * min(first):
            return _risen(course, median(last), when, chance, f"{chance:.3g} of a model that knows nothing, and {min(first):.3g} at its start")  # fmt: skip
    if len(losses) % BLOCK or len(course.blocks) < 2:
        return None
    now = course.blocks[-1]
    best = min(course.blocks[:-1], key=lambda block: block.median)
    if now.low <= best.high or now.median < RISE_RATIO * best.median or now.median < best.median + RISE_NATS:
        return None
    return _risen(course, now.median, f"steps {now.first_step} to {now.last_step}", best.median,
                  f"{best.median:.3g} in steps {best.first_step} to {best.last_step}")  # fmt: skip


def _risen(course: Course, now: float, when: str, before: float, compared: str) -> Finding:
    return Finding(
        "watch-loss-rise",
        "warning",
        f"the loss has risen and stays there: {now:.3g} in {when} (median), against {compared}",
        course.where(),
        course.fix(
            "a lower train.learning_rate with train.warmup_share=0.05; train.keep=best keeps the best weights",
            "a lower learning_rate with warmup_steps=0.05, from the last good checkpoint; shuffled data",
        ),
        measured=round(now, 6),
        expected=round(before, 6),
    )


def loss_stuck(course: Course) -> Finding | None:
    """Something is learned after warm-up.

    What it does: from 100 steps after warm-up on, looks whether the loss is still that of chance (within 3% of ln V, the
    loss of a model that finds every token equally likely); whether evaluations, which are of the same rows each time, all
    agree to a thousandth; and whether the second epoch's mean loss is that of the first.

    Why is this bad: the run costs what it costs and changes nothing.

    Example: everything frozen but a head that gets no gradient; a learning rate in 16 bits below what a weight can hold;
    labels that say nothing about the text; weights that were never loaded.

    Fix: see the checks ``gradients`` and ``initial-loss``; a higher ``train.learning_rate``.

    Catalogue: 3, 68, 69, 70, 72
    """
    after = course.step - course.setting.warmup_steps
    if after < STUCK_STEPS:
        return None
    chance = course.setting.chance_loss
    if chance and len(course.losses) >= BLOCK and course.steps[-BLOCK] > course.setting.warmup_steps:
        now = median(course.losses[-BLOCK:])
        if abs(now / chance - 1) <= CHANCE_TOLERANCE:
            return _stuck(course, f"the loss is {now:.4g} {after} steps after warm-up, and that of chance is {chance:.4g}: "
                          "the model finds all answers equally likely", now, f"below {chance:.4g}")  # fmt: skip
    evals = [evaluation.loss for evaluation in course.evals]
    if len(evals) >= STUCK_EVALS and max(evals) - min(evals) <= UNMOVED_SHARE * max(evals):
        return _stuck(course, f"the evaluation loss has not moved in {len(evals)} evaluations: it lies between "
                      f"{min(evals):.5g} and {max(evals):.5g}", evals[-1], "falling")  # fmt: skip
    whole = [number for number, (_, count) in course.epochs.items() if count >= EPOCH_STEPS][:2]
    if whole == [1, 2] and 3 in course.epochs:  # the second one is over
        first, second = (course.epochs[number][0] / course.epochs[number][1] for number in whole)
        if abs(second / first - 1) <= EPOCH_FALL:
            return _stuck(course, f"the second epoch's mean loss is {second:.5g}, and the first one's was {first:.5g}, "
                          "on the same rows", second, f"below {first:.5g}")  # fmt: skip
    return None


def _stuck(course: Course, what: str, now: float, expected: str) -> Finding:
    return Finding(
        "watch-loss-stuck",
        "warning",
        what,
        course.where(),
        course.fix(
            "see what the checks gradients and initial-loss say (luthier check); a higher train.learning_rate",
            "see what luthier.audit(trainer) says of gradients and initial-loss; a higher learning_rate",
        ),
        measured=round(now, 6),
        expected=expected,
    )


def gradient_exploding(course: Course) -> Finding | None:
    """The gradient norm stays within an order of magnitude or so of what it was.

    What it does: looks whether the norms (before clipping) of five steps in a row are each over 20 times the median of
    the 50 before them, and over 10 times that of the first twenty.

    Why is this bad: clipping then decides the size of every step and one row its direction; without clipping the
    weights are gone.

    Example: a learning rate that is too high, some steps before the loss shows it; 16-bit numbers at their end.

    Fix: a lower ``train.learning_rate``, ``train.max_gradient_norm=1``, ``model.precision=fp32``.

    Catalogue: 73
    """
    norms = course.norms
    if len(norms) < GRADIENT_LEAST_STEPS + EXPLODING_STEPS:
        return None
    last = norms[-EXPLODING_STEPS:]
    before = median(norms[-GRADIENT_WINDOW - EXPLODING_STEPS : -EXPLODING_STEPS])
    start = median(norms[:GRADIENT_LEAST_STEPS])
    # A comparison with NaN (nothing was logged) is false, so nothing is said.
    if not (min(last) > EXPLODING_RATIO * before > 0 and min(last) > EXPLODING_OVER_START * start):
        return None
    return Finding(
        "watch-gradient-exploding",
        "warning",
        f"the gradient norm is {min(last):.3g} or more in the {EXPLODING_STEPS} steps up to step {course.steps[-1]}, "
        f"{min(last) / before:,.0f} times the {before:.3g} before them (median)",
        course.where(),
        course.fix(
            "a lower train.learning_rate; train.max_gradient_norm=1; model.precision=fp32",
            "a lower learning_rate; max_grad_norm=1.0; bf16 or 32 bits instead of fp16",
        ),
        measured=round(min(last), 6),
        expected=round(before, 6),
    )


def gradient_vanishing(course: Course) -> Finding | None:
    """Gradients do not die while there is something left to learn.

    What it does: looks whether three steps in a row have a gradient norm of exactly 0; or whether the median of the last
    twenty is under a thousandth of that of the first twenty, although the loss is still over half of what it was then.

    Why is this bad: no gradient, no learning: the rest of the run changes nothing.

    Example: rows without a single trained token; activations that have saturated after too large a step; an adapter that
    is not in the path of the loss.

    Fix: see the checks ``gradients`` and ``untrained-row``; a lower ``train.learning_rate``.

    Catalogue: 3, 68
    """
    norms = course.norms
    zeros = len(norms) >= ZERO_STEPS and not any(norms[-ZERO_STEPS:])
    what, measured, expected = f"the gradient norm is exactly 0 in the last {ZERO_STEPS} steps", 0.0, "over 0"
    if not zeros:
        if len(norms) < 2 * GRADIENT_LEAST_STEPS:
            return None
        first, last = (median(part) for part in (norms[:GRADIENT_LEAST_STEPS], norms[-GRADIENT_LEAST_STEPS:]))
        loss_first = median(course.losses[:GRADIENT_LEAST_STEPS])
        loss_last = median(course.losses[-GRADIENT_LEAST_STEPS:])
        if not (last < VANISHING_RATIO * first and loss_last > VANISHING_LOSS_SHARE * loss_first):
            return None
        what = (
            f"the gradient norm has fallen to {last:.3g} from {first:.3g} (medians of {GRADIENT_LEAST_STEPS} steps), but the loss "
            f"only to {loss_last:.3g} from {loss_first:.3g}"
        )
        measured, expected = last, f"about {first:.3g}"
    return Finding(
        "watch-gradient-vanishing",
        "warning",
        what,
        course.where(),
        course.fix(
            "see what the checks gradients and untrained-row say (luthier check); a lower train.learning_rate",
            "see what luthier.audit(trainer) says of gradients and untrained-row; a lower learning_rate",
        ),
        measured=measured,
        expected=expected,
    )


def overfitting(course: Course) -> Finding | None:
    """The evaluation loss does not rise while the training loss falls.

    What it does: compares the last three evaluations with the best one before them. It speaks if each is over 2% above
    the best, the last one over 5% and no lower than two evaluations ago, and if the training loss fell meanwhile.

    Why is this bad: the model learns the training rows by heart and gets worse at all others; five epochs end worse
    than two. The training loss alone looks better and better.

    Example: ``epochs: 5`` on 500 rows; a duplicate of every row in the training split.

    Fix: stop at the best evaluation (``train.keep=best`` keeps its weights): fewer ``train.epochs``, or
    ``train.early_stop_patience``; more rows; a lower ``train.learning_rate``.

    Catalogue: 22
    """
    best = min(course.evals, key=lambda evaluation: evaluation.loss, default=None)
    if best is None:
        return None
    later = course.evals[course.evals.index(best) + 1 :][-WORSE_EVALS:]
    if len(later) < WORSE_EVALS or later[-1] is not course.evals[-1] or later[-1].step < course.step:
        return None
    now = later[-1]
    if now.index == best.index:
        return None  # no training loss was logged in between
    worse = min(evaluation.loss for evaluation in later) > (1 + WORSE_EACH) * best.loss
    if not worse or now.loss < (1 + WORSE_LAST) * best.loss or now.loss < later[0].loss:
        return None
    then = course.losses[max(0, best.index - BLOCK) : best.index] or course.losses[:RISE_FIRST]
    train_then, train_now = (
        median(then),
        median(course.losses[-min(BLOCK, now.index - best.index) :]),
    )
    if train_now >= train_then:
        return None
    # Before the first epoch is over no row has been seen twice, so none can have been learned by heart.
    cause = (
        "the model learns its training rows by heart"
        if now.epoch > 1
        else "as no row has been seen twice yet, the evaluation rows are of another kind, or steps are too large"
    )
    return Finding(
        "watch-overfitting",
        "warning",
        f"the evaluation loss has risen to {now.loss:.4g} from {best.loss:.4g} at step {best.step} (epoch {best.epoch:.3g}), while "
        f"the training loss fell to {train_now:.4g} from {train_then:.4g}: {cause}",
        f"evaluations of steps {', '.join(str(evaluation.step) for evaluation in later)}; the best was step {best.step}",
        course.fix(
            f"end at epoch {best.epoch:.3g} (train.epochs), or train.early_stop_patience=3; train.keep=best keeps the best weights",
            f"num_train_epochs={best.epoch:.3g}, or load_best_model_at_end=True with an EarlyStoppingCallback",
        ),
        measured=round(now.loss, 6),
        expected=round(best.loss, 6),
    )


def throughput(course: Course) -> Finding | None:
    """Training keeps its speed.

    What it does: looks whether each of the last twenty steps ran at less than half of the median speed of all steps
    before them, of this process. Evaluations and checkpoints do not count.

    Why is this bad: the run takes twice as long as it should, and what slows it down (a processor that throttles, memory
    that is swapped, another process, a disk that fills up) may yet end it.

    Example: a second training started on the same GPU; a laptop on a cushion.

    Fix: look at the machine; ``train.micro_batch_tokens`` if memory is short.
    """
    speeds = course.speeds[SPEED_FIRST_STEPS:]
    if len(speeds) < SPEED_LEAST_STEPS + SPEED_LAST or len(speeds) % SPEED_EVERY:
        return None
    last, usual = max(speeds[-SPEED_LAST:]), float(np.median(speeds[:-SPEED_LAST]))
    if last >= SPEED_SHARE * usual:
        return None
    unit = course.setting.speed_unit
    return Finding(
        "watch-throughput",
        "warning",
        f"the last {SPEED_LAST} steps ran at {last:,.3g} {unit} at most, {last / usual:.0%} of this run's {usual:,.3g} {unit} (median)",
        course.where(),
        course.fix(
            "look for other processes, swapping and throttling on this machine; a lower train.micro_batch_tokens if memory is short",
            "look for other processes, swapping and throttling on this machine, and at the data loader's workers",
        ),
        measured=round(last, 3),
        expected=round(usual, 3),
    )


def memory_growth(course: Course) -> Finding | None:
    """Memory does not grow from step to step.

    What it does: each 50 steps, fits a line to the memory in use over the last 300 steps of this process. It speaks if the line
    fits (R² of 0.9), both halves grow, and the growth is over 0.1 GiB and 5%.

    Why is this bad: what grows like that ends in the middle of the night, without a checkpoint of that step.

    Example: losses kept with their graphs; a data loader whose workers copy a list; a cache without a limit.

    Fix: keep numbers, not tensors (``loss.item()``); checkpoints often enough until it is found.
    """
    if len(course.memory) < MEMORY_STEPS or len(course.memory) % MEMORY_EVERY:
        return None
    y, x = np.array(course.memory[-MEMORY_STEPS:]), np.array(course.paced[-MEMORY_STEPS:], dtype=float)
    if y.max() == y.min():
        return None
    slope, start = np.polyfit(x - x[0], y, 1)
    fit = 1 - float(((y - start - slope * (x - x[0])) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    growth = float(slope * (x[-1] - x[0]))
    thirds = [float(np.median(part)) for part in np.array_split(y, 3)]
    halves = min(after - before for before, after in pairwise(thirds))
    if (
        fit < MEMORY_FIT
        or growth < max(MEMORY_GIB, MEMORY_SHARE * float(y.mean()))
        or halves < MEMORY_HALF * (thirds[-1] - thirds[0])
    ):
        return None
    return Finding(
        "watch-memory",
        "warning",
        f"memory has grown steadily by {growth:.3g} GiB in the last {MEMORY_STEPS} steps, to {start + growth:.3g} GiB: "
        f"{1000 * slope:.2g} GiB in 1,000 steps",
        course.where(),
        course.fix(
            "set train.checkpoint_every_steps, so that little is lost, and report it: Luthier's own loop keeps no tensors",
            "keep numbers instead of tensors (loss.item()); look at callbacks, compute_metrics and data loader workers",
        ),
        measured=round(growth, 3),
        expected=f"under {MEMORY_GIB} GiB",
    )


def not_finite(
    step: int, loss: float, norm: float, broken: Sequence[str], *, overflows: bool = False
) -> Finding | None:
    """Losses, gradients and weights are numbers.

    What it does: in Luthier's own loop, looks at the loss and the gradient norm of each step before the step is made; one that is
    not finite ends the run, and names the rows that give it. In a ``Trainer``, looks at each log and at the trained parameters.

    Why is this bad: after one step with NaN all weights are NaN. A ``Trainer`` goes on, and its ``logging_nan_inf_filter`` replaces
    such losses by the mean of those before: the log looks fine, or shows 0.0.

    Example: a model trained in bf16 that is fine-tuned in fp16; a head that was never initialised.

    Fix: a lower learning rate, bf16 or 32 bits instead of fp16, clipping; from a checkpoint before it.

    Catalogue: 40, 71, 73

    Args:
        step: The step.
        loss: As logged.
        norm: As logged, of all gradients.
        broken: Names of trained parameters that are not finite.
        overflows: Whether a gradient norm that is not finite is as it should be, as while fp16 looks for its scale.
    """
    if math.isfinite(loss) and not broken and (math.isfinite(norm) or overflows):
        return None
    said = [f"the logged loss is {loss:.4g}", f"the gradient norm {norm:.4g}"]
    if broken:
        said.append(f"{len(broken)} parameters hold NaN or infinity, first {broken[0]}")
    hidden = " (logging_nan_inf_filter replaces losses that are not finite)" if math.isfinite(loss) else ""
    return Finding(
        "watch-not-finite",
        "error",
        f"after step {step} {', '.join(said)}{hidden}",
        f"step {step}",
        "go back to an earlier checkpoint: a lower learning_rate, bf16 or 32 bits instead of fp16, max_grad_norm=1.0; "
        "logging_nan_inf_filter=False shows it at once",
        measured=str(loss if not math.isfinite(loss) else norm if not math.isfinite(norm) else len(broken)),
        expected="finite numbers",
    )


WATCHERS: dict[str, Watcher] = {
    "watch-loss-spike": loss_spike,
    "watch-loss-rise": loss_rise,
    "watch-loss-stuck": loss_stuck,
    "watch-gradient-exploding": gradient_exploding,
    "watch-gradient-vanishing": gradient_vanishing,
    "watch-overfitting": overfitting,
    "watch-throughput": throughput,
    "watch-memory": memory_growth,
}

OWN = ("watch-throughput", "watch-memory")  # of one process on one machine; the others see the same in each
# By what is looked up: a Trainer's callback knows one more, which Luthier's own loop refuses to go on from.
DOCUMENTED: dict[str, Callable[..., Finding | None]] = {**WATCHERS, "watch-not-finite": not_finite}
