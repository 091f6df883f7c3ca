from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from torch.utils.data import IterableDataset, SequentialSampler

from luthier.check.columns import flat, text_hashes
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.check.trainer import TrainerContext
from luthier.records import Finding
from luthier.registry import check
from luthier.rows import BATCH_ROWS, Rows, read_batches

# Four standard deviations under the mean come by chance once in 30,000 shuffled data sets ...
FEWEST_DEVIATIONS = 4.0
# ... and runs twice as long as a shuffle gives them are no slight imperfection of a shuffle.
MOST_OF_EXPECTED = 0.5
FEWEST_ROWS = 30
# Texts of neighbours: what half a standard deviation is alike more than texts drawn at random is called a medium effect
# (Cohen 1988), and six standard errors are never chance.
MORE_ALIKE, FEWEST_ERRORS = 0.5, 6.0
NUM_TEXTS = 20_000
_BUCKETS = 256
# Means of eight neighbours' lengths vary eight times as much as a shuffle has it if rows are sorted, and less than twice
# by chance from a few hundred rows on.
NEIGHBOURS, MORE_VARIED = 8, 3.0
# Two sources of other lengths one behind the other come to a rank correlation of 0.75, sorted rows to 1.
SORTED = 0.9


@check("row-order")
def row_order(context: CheckContext) -> Iterator[Finding]:
    """Training meets the rows in no order: neither by class or answer nor by where they come from.

    What it does: takes the training rows as the data loader gives them (or as they stand in the file) and counts the runs
    of equal targets, and of equal groups where these are known. After a shuffle their number has a known mean and spread
    (Wald and Wolfowitz); it must not lie four deviations under the mean and under half of it. If nothing shows there,
    it compares the lengths of neighbours, and then their tokens (of the first 20,000 rows), with those of rows drawn at
    random. A warning where training reads in this order, a note for a file, which a trainer may still shuffle, and for a
    sampler that groups by length, which is meant so. Luthier's own training always shuffles.

    Why is this bad: while one class or one source is read, the model forgets the others; the loss goes up and down with
    the blocks, and the last block wins. With rows grouped by length the curve has spikes that mean nothing.

    Example: a streamed data set sorted by label, with a shuffle buffer smaller than a class.

    Fix: shuffle once, on disk, before training; a shuffle buffer must be larger than the longest block.

    Catalogue: 24, 45
    """
    if isinstance(context, RunContext):
        raise Skip("training shuffles the rows by a seeded permutation of all of them")
    rows = context.training_rows(FEWEST_ROWS)
    order = _reader(context)
    found = list(_of_runs(context, rows))
    if not found:
        found = list(_of_neighbours(rows, order))
    context.looked_at(f"targets, groups, lengths and texts of {len(rows):,} training rows in order")
    for what, measured, expected in found:
        yield Finding(
            "row-order",
            "warning" if order.is_read else "note",
            f"{what}{order.why}",
            context.place("train"),
            order.fix,
            measured=measured,
            expected=expected,
        )


Found = tuple[str, float, float | str]


@dataclass(frozen=True)
class _Order:
    """Whether rows are read in the order that they have here, not by anybody's wish; why; and what to do."""

    is_read: bool
    why: str
    fix: str
    by_length: bool = False


def _of_runs(context: CheckContext, rows: Rows) -> Iterator[Found]:
    """What the runs of equal targets and groups say: text, measured, expected."""
    for name, column in (("targets", "target"), ("groups", "group")):
        if name == "targets" and context.objective == "tags":
            continue
        runs = _runs(text_hashes(rows, column))
        if not runs.deviation:
            continue  # all are alike, or all differ: no order could be told
        too_few = (runs.expected - runs.count) / runs.deviation > FEWEST_DEVIATIONS
        if too_few and runs.count < MOST_OF_EXPECTED * runs.expected:
            yield (
                f"equal {name} of {len(rows):,} training rows stand together in {runs.count:,} runs, where a shuffle gives "
                f"{runs.expected:,.0f} +- {runs.deviation:,.1f} ({runs.expected / runs.count:.1f} times as many); "
                f"the longest run has {runs.longest:,} rows",
                runs.count,
                round(runs.expected),
            )


def _of_neighbours(rows: Rows, order: _Order) -> Iterator[Found]:
    """What the lengths and texts of neighbours say: text, measured, expected."""
    lengths = rows.lengths()
    varied = _variation(lengths)
    of_lengths = (
        f"training rows are in the order of their lengths: means of {NEIGHBOURS} neighbours vary {varied:.1f} times as "
        "much as after a shuffle, and the loss with them",
        round(varied, 1),
        1,
    )
    if varied > MORE_VARIED and (order.by_length or _sorted(lengths)):
        yield of_lengths
        return
    more, errors = _likeness(rows)
    if more > MORE_ALIKE and errors > FEWEST_ERRORS:
        yield (
            f"training rows are more like their neighbours than like rows drawn at random, by {more:.2f} standard "
            "deviations: they are in the order of their sources or topics",
            round(more, 2),
            f"at most {MORE_ALIKE}",
        )
    elif varied > MORE_VARIED:
        yield of_lengths


@dataclass(frozen=True)
class _Runs:
    """Runs of equal values: how many there are, the longest, and what a random order has on average and as deviation."""

    count: int
    longest: int
    expected: float
    deviation: float


def _runs(values: np.ndarray) -> _Runs:
    """The runs of equal values of a sequence, shape (num_values,), against those of a random order of the same values.

    Source: Wald and Wolfowitz 1940, "On a test whether two samples are from the same population", for two kinds; for
    any number Barton and David 1957, "Multiple runs": with n values and n_i of kind i, the mean is
    n + 1 - S2 / n and the variance (S2 (S2 + n (n + 1)) - 2 n S3 - n^3) / (n^2 (n - 1)), S2 and S3 being the sums of
    the squares and cubes of the n_i.
    """
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    counts = np.unique(values, return_counts=True)[1].astype(float)
    n, squares, cubes = float(len(values)), float((counts**2).sum()), float((counts**3).sum())
    variance = (squares * (squares + n * (n + 1)) - 2 * n * cubes - n**3) / (n**2 * (n - 1))
    return _Runs(
        count=len(starts),
        longest=int(np.diff(np.append(starts, len(values))).max()),
        expected=n + 1 - squares / n,
        deviation=math.sqrt(variance) if variance > 1e-9 * n else 0.0,
    )


def _variation(lengths: np.ndarray) -> float:
    """How much the mean lengths of neighbours vary, in units of what a shuffle gives (1); 0 if it cannot be told.

    The variance between groups of n is that of all values by n where these are drawn at random (analysis of variance).
    With few groups it is itself uncertain, by a share of sqrt(2 / groups), of which six are taken off.
    """
    groups = len(lengths) // NEIGHBOURS
    spread = float(lengths.var()) if groups > 1 else 0.0
    if not spread:
        return 0.0
    means = lengths[: groups * NEIGHBOURS].reshape(groups, NEIGHBOURS).mean(axis=1)
    varied = float(means.var(ddof=1)) * NEIGHBOURS / spread
    return varied if varied > 1 + 6 * math.sqrt(2 / groups) else min(varied, 1.0)


def _sorted(lengths: np.ndarray) -> bool:
    """Whether rows are sorted by length, up or down, and not only by something that goes with it."""
    _, kinds, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2)[kinds]
    return bool(abs(np.corrcoef(np.arange(len(lengths)), ranks)[0, 1]) > SORTED)


def _likeness(rows: Rows) -> tuple[float, float]:
    """How much more neighbours are alike than rows drawn at random: in standard deviations of a pair, and in errors.

    Alike is the cosine of the square roots of token shares (in 256 buckets of ids), from which the mean over all rows is
    taken, so that what all of them share does not count.
    """
    parts: list[np.ndarray] = []
    for batch in islice(read_batches(rows.path, ["input_ids"]), NUM_TEXTS // BATCH_ROWS):
        offsets, ids = flat(batch.column("input_ids"))
        lengths = np.diff(offsets)
        buckets = (ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(56)).astype(np.int64)
        cells = np.repeat(np.arange(len(lengths)), lengths) * _BUCKETS + buckets
        counts = np.bincount(cells, minlength=len(lengths) * _BUCKETS).reshape(-1, _BUCKETS)
        parts.append(np.sqrt(counts / lengths.clip(min=1)[:, None]).astype(np.float32))
    points = np.concatenate(parts)
    points -= points.mean(axis=0)
    points /= np.linalg.norm(points, axis=1, keepdims=True).clip(min=1e-9)
    near = (points[1:] * points[:-1]).sum(axis=1)
    draw = np.random.default_rng(0)
    one, other = draw.permutation(len(points)), draw.permutation(len(points))
    apart = (points[one] * points[other]).sum(axis=1)[one != other]
    spread = float(apart.std())
    if spread < 1e-6:
        return 0.0, 0.0
    more = float(near.mean() - apart.mean()) / spread
    return more, more * math.sqrt(len(near))


def _reader(context: CheckContext) -> _Order:
    if not isinstance(context, TrainerContext):
        return _Order(
            False,
            ": read like this, without a shuffle, training meets one after the other",
            "shuffle the file once, unless the trainer shuffles all rows (and not a buffer of them)",
        )
    loader = context.trainer.get_train_dataloader()
    if isinstance(loader.dataset, IterableDataset):
        return _Order(
            True,
            "; an IterableDataset is read in its own order, and nothing shuffles it later",
            "shuffle the data on disk, or with dataset.shuffle(seed=0, buffer_size=...) over more than the longest run",
        )
    # accelerate gives the loader a sampler that is none; the real one is in the batches' sampler.
    sampler = getattr(loader.batch_sampler, "sampler", loader.batch_sampler)
    if isinstance(sampler, SequentialSampler):
        return _Order(
            True,
            "; the sampler of the data loader is sequential",
            "let the Trainer shuffle (train_sampling_strategy='random' is its default), or shuffle the data set",
        )
    kind = type(sampler).__name__
    if kind in ("LengthGroupedSampler", "DistributedLengthGroupedSampler", "BatchRebalanceSampler"):
        fix = "nothing, if lengths have nothing to do with what is learned; else train_sampling_strategy='random'"
        return _Order(False, f", which {kind} means to do", fix, by_length=True)
    return _Order(
        True, f"; the data loader's sampler is {kind}", f"let {kind} draw rows from all classes and sources"
    )
