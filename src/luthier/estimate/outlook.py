"""A recipe on GPUs that need not be here: what fits, how fast, how long. An estimate; nothing is run on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from luthier import recipe_file
from luthier.errors import UserError
from luthier.estimate.compute import Flops, flops
from luthier.estimate.devices import MARGIN, Device, parse
from luthier.estimate.memory import Memory, Way, memory
from luthier.estimate.shape import Shape, shape_of
from luthier.models.load import Precision
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder, read_json
from luthier.schedule import eval_interval, total_steps

# Share of the peak that published trainings of large models reached: GPT-3 21.3%, Megatron-Turing 30.2%, Gopher 32.5%,
# PaLM 46.2%. Source: Chowdhery et al. 2022, arXiv:2204.02311, table 3.
UTILISATION = (0.213, 0.462)
GIB = 2**30
_MOST_TOKENS = 1 << 24

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class RowCounts:
    """The rows that the estimate is for.

    Attributes:
        source: Where the numbers come from, for people.
        train, eval, test: Rows of each split; None if nothing says how many.
        tokens: Of a row, on average.
        attended: Of the row in which the average token stands: long rows weigh more in attention.
        longest: Tokens of the longest row.
        trained_share: Of all tokens, those with a loss.
    """

    source: str
    train: int | None
    eval: int | None
    test: int | None
    tokens: float
    attended: float
    longest: int
    trained_share: float


@dataclass(frozen=True, slots=True)
class WayOutlook:
    """One way to save memory, or none.

    Attributes:
        way: What is done.
        memory: Bytes of each GPU at the peak.
        fits: Whether that is within what is usable.
        largest_micro_batch_tokens: Most tokens that fit; 0 if the longest row does not fit alone.
        tokens_per_s: Of all GPUs together, at the lower and the upper utilisation.
        train_hours: Least and most hours of training, evaluations left out; None without a number of rows.
    """

    way: Way
    memory: Memory
    fits: bool
    largest_micro_batch_tokens: int
    tokens_per_s: Range
    train_hours: Range | None


@dataclass(frozen=True, slots=True)
class EvaluationOutlook:
    """What evaluating costs.

    Attributes:
        during_hours: Least and most hours of the evaluations while training; None without a number of rows.
        final_hours: The same of the comparison of base and tuned model, which one GPU does alone.
        batch_size: Rows generated at once.
        cache_bytes: Keys and values of such a batch.
        total_bytes: With weights and the pass over the prompts.
        fits: Whether that is within what is usable.
        largest_batch_size: Most rows at once that fit.
    """

    during_hours: Range | None
    final_hours: Range | None
    batch_size: int
    cache_bytes: float
    total_bytes: float
    fits: bool
    largest_batch_size: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """The whole estimate.

    Attributes:
        recipe: Its name.
        model: As the recipe names it.
        shape: Of the model in training form.
        device: One of the GPUs.
        num_gpus: How many.
        precision: Of matrix products.
        rows: What it is reckoned for.
        steps: Optimizer steps; None without a number of rows.
        micro_batch_tokens: Of the largest micro-batch, as the recipe stands.
        flops: Operations of a token, by part.
        ways: The recipe as it stands, then ways to save memory.
        evaluation: While training and at the end.
        words: What does not fit and what to change, in sentences.
    """

    recipe: str
    model: str
    shape: Shape
    device: Device
    num_gpus: int
    precision: Precision
    rows: RowCounts
    steps: int | None
    micro_batch_tokens: int
    flops: Flops
    ways: tuple[WayOutlook, ...]
    evaluation: EvaluationOutlook
    words: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether any way fits."""
        return any(way.fits or way.largest_micro_batch_tokens for way in self.ways)

    def to_dict(self) -> dict[str, Any]:
        """For ``luthier plan --json``; described in docs/reference/plan.md."""
        share = self.rows.trained_share
        return {
            "estimate": True,
            "fits": self.fits,
            "recipe": self.recipe,
            "model": {
                "name": self.model,
                "source": self.shape.source,
                "parameters": self.shape.total,
                "parameters_by_part": self.shape.parameters,
                "trained": self.shape.num_trained,
                "trained_by_part": self.shape.trained,
                "precision": self.precision,
            },
            "gpus": {"count": self.num_gpus, **asdict(self.device), "usable": self.device.usable},
            "rows": asdict(self.rows),
            "steps": self.steps,
            "micro_batch_tokens": self.micro_batch_tokens,
            "flops_per_token": {
                "training": self.flops.training(share),
                "training_with_checkpointing": self.flops.training(share, checkpointing=True),
                "scoring": self.flops.scoring(share),
            },
            "utilisation": list(UTILISATION),
            "ways": [
                {**asdict(way), "memory": {**asdict(way.memory), "total": way.memory.total}}
                for way in self.ways
            ],
            "evaluation": asdict(self.evaluation),
            "words": list(self.words),
        }


def outlook(
    recipe: Recipe,
    gpus: str,
    *,
    run: Path | None = None,
    rows: int | None = None,
    tokens_per_row: float | None = None,
) -> Outlook:
    """What a recipe would need on some GPUs, and how long it would take.

    Args:
        recipe: The recipe.
        gpus: Such as ``8xA100-80G``.
        run: The run folder, for the counts of rows that are prepared already; ``runs/NAME`` if None.
        rows: Training rows, in the place of what is prepared or what the recipe says.
        tokens_per_row: Their average length.

    Raises:
        UserError: Unknown GPUs, a model without config or of another kind, bf16 where there is none.
    """
    count, device = parse(gpus)
    precision = device.precision(recipe.model)
    shape = shape_of(recipe.model, precision)
    counts = row_counts(recipe, run or Path("runs") / recipe.name, rows, tokens_per_row)
    settings = recipe.train
    # Each process takes its share of a step's rows; the last one may have one more than another.
    rows_of_one = math.ceil(settings.batch_size / count)
    tokens = min(max(settings.micro_batch_tokens, counts.longest), rows_of_one * counts.longest)
    cost = flops(shape, counts.attended)
    steps = total_steps(settings, counts.train, round(counts.train * counts.tokens)) if counts.train else None
    peak = device.peak(precision) * settings.batch_size / rows_of_one  # of all that have work
    ways = tuple(
        _way(way, shape, device, count, counts, cost, peak, tokens, steps and steps * settings.batch_size)
        for way in _ways(recipe, count)
    )
    evaluation = _evaluation(recipe, shape, device, counts, cost, device.peak(precision), peak, steps)
    made = Outlook(
        recipe=recipe.name,
        model=recipe.model.name,
        shape=shape,
        device=device,
        num_gpus=count,
        precision=precision,
        rows=counts,
        steps=steps,
        micro_batch_tokens=tokens,
        flops=cost,
        ways=ways,
        evaluation=evaluation,
        words=(),
    )
    return replace(made, words=(*_memory_words(made), *_other_words(recipe, made)))


def row_counts(recipe: Recipe, run: Path, rows: int | None, tokens_per_row: float | None) -> RowCounts:
    """How many rows of which length: as told, as prepared, or as the recipe limits them."""
    if any(number is not None and number < 1 for number in (rows, tokens_per_row)):
        raise UserError("there must be a row with a token", "--rows, --tokens-per-row", "give 1 or more")
    longest = recipe.data.max_length
    prepared = _prepared(recipe, RunFolder(run))
    if prepared is not None and rows is None and tokens_per_row is None:
        return prepared
    limits, splits = recipe.data.max_rows, recipe.data.splits
    train = rows or limits.get("train")
    told = [name for name, value in (("--rows", rows), ("--tokens-per-row", tokens_per_row)) if value]
    sources = [" and ".join(told)] if told else []
    if rows is None and train:
        sources.append("data.max_rows")
    if tokens_per_row is None:
        sources.append("every row as long as data.max_length")
    tokens = min(float(tokens_per_row or longest), longest)

    def other(split: str, share: float) -> int | None:
        most = limits.get(split)  # type: ignore[call-overload] # the splits are its keys
        found = round(train * share / splits.train) if train else None
        return min(n for n in (most, found) if n is not None) if (most, found) != (None, None) else None

    return RowCounts(
        source=", ".join(sources),
        train=train,
        eval=other("eval", splits.eval),
        test=other("test", splits.test),
        tokens=tokens,
        attended=tokens,
        longest=longest,
        trained_share=1.0,
    )


def _prepared(recipe: Recipe, run: RunFolder) -> RowCounts | None:
    """The counts of a run folder whose rows were prepared from the same data, task and model."""
    if not run.ledger.is_file() or not run.recipe.is_file():
        return None
    before = recipe_file.load(run.recipe)
    if (before.data, before.task, before.model.name) != (recipe.data, recipe.task, recipe.model.name):
        return None
    splits = read_json(run.ledger)["splits"]
    train = splits["train"]
    tokens = train["tokens"] / max(1, train["rows"])
    edges, counts = (train["length"]["histogram"][key] for key in ("edges", "counts"))
    middles = [(low + high - 1) / 2 for low, high in pairwise(edges)]
    total = sum(n * middle for n, middle in zip(counts, middles, strict=True))
    squares = sum(n * middle**2 for n, middle in zip(counts, middles, strict=True))
    return RowCounts(
        source=f"as prepared in {run.path}",
        train=train["rows"],
        eval=splits.get("eval", {}).get("rows", 0),
        test=splits.get("test", {}).get("rows", 0),
        tokens=tokens,
        attended=squares / total if total else tokens,
        longest=train["length"]["max"],
        trained_share=train["trained_tokens"] / max(1, train["tokens"]),
    )


def _ways(recipe: Recipe, count: int) -> list[Way]:
    found = [Way("plain"), Way("checkpointing", checkpointing=True)]
    if count > 1:
        found += [
            Way("sharding", sharded=True),
            Way("sharding+checkpointing", checkpointing=True, sharded=True),
        ]
    if recipe.model.adapter is not None:
        found.append(Way("4-bit+checkpointing", checkpointing=True, four_bit=True))
    return found


def _way(
    way: Way,
    shape: Shape,
    device: Device,
    count: int,
    rows: RowCounts,
    cost: Flops,
    peak: float,
    tokens: int,
    all_rows: int | None,
) -> WayOutlook:
    def needed(tokens: int) -> Memory:
        return memory(
            shape,
            way,
            tokens=tokens,
            row_tokens=rows.longest,
            trained_share=rows.trained_share,
            num_gpus=count,
        )

    low, high = 0, _MOST_TOKENS  # the most that fits lies in between
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle).total <= device.usable else (low, middle)
    largest = low if low >= rows.longest else 0
    each = cost.training(rows.trained_share, checkpointing=way.checkpointing)
    speeds = (UTILISATION[0] * peak / each, UTILISATION[1] * peak / each)
    hours = None
    if all_rows is not None:
        hours = (all_rows * rows.tokens / speeds[1] / 3600, all_rows * rows.tokens / speeds[0] / 3600)
    found = needed(tokens)
    return WayOutlook(way, found, found.total <= device.usable, largest, speeds, hours)


def _evaluation(
    recipe: Recipe,
    shape: Shape,
    device: Device,
    rows: RowCounts,
    cost: Flops,
    one: float,
    all_: float,
    steps: int | None,
) -> EvaluationOutlook:
    """Cost of evaluating; ``one`` and ``all_`` are FLOP/s of one GPU and of all of them.

    A decoding step reads all weights and the cache, or computes 2 N operations a row, whichever takes longer.
    """
    settings = recipe.evaluate
    new = settings.max_new_tokens if settings.generate else 0
    batch = settings.batch_size
    if shape.window and rows.longest + new > shape.window:
        batch = 1  # as generation does it
    weights = shape.total * shape.product_bytes
    cache_token = 2 * shape.kv_width * len(shape.layers) * shape.product_bytes
    work_token = 4 * shape.product_bytes * shape.intermediate + (4 + 2 * shape.product_bytes) * shape.hidden
    row = cache_token * (rows.longest + new) + work_token * rows.longest
    total = weights + batch * row
    during = final = None
    score = rows.tokens * cost.scoring(rows.trained_share)

    def decode(num: int) -> float:
        read = (weights + num * cache_token * (rows.tokens + new / 2)) / device.bandwidth
        return max(read, num * cost.scoring(1.0) / one)

    if steps is not None:
        evals = 1 + math.ceil(steps / eval_interval(recipe.train, steps))
        if recipe.train.eval_every_tokens:
            evals = 1 + math.ceil(
                steps * recipe.train.batch_size * rows.tokens / recipe.train.eval_every_tokens
            )
        samples = (
            recipe.evaluate.max_new_tokens * decode(recipe.train.num_samples)
            if recipe.train.num_samples
            else 0
        )
        during = _hours(evals * ((rows.eval or 0) * score / all_ + samples))
    if rows.test is not None:
        batches = math.ceil(rows.test / batch)
        final = _hours(2 * (rows.test * score / one + batches * new * decode(min(batch, rows.test))))
    return EvaluationOutlook(
        during_hours=during,
        final_hours=final,
        batch_size=batch,
        cache_bytes=batch * cache_token * (rows.longest + new),
        total_bytes=total,
        fits=total <= device.usable,
        largest_batch_size=max(0, int((device.usable - weights) // row)),
    )


def _hours(seconds_at_peak: float) -> Range:
    return seconds_at_peak / UTILISATION[1] / 3600, seconds_at_peak / UTILISATION[0] / 3600


_NAMES = {
    "plain": "as it stands",
    "checkpointing": "gradient checkpointing",
    "sharding": "sharding over the GPUs",
    "sharding+checkpointing": "sharding and gradient checkpointing",
    "4-bit+checkpointing": "QLoRA (4-bit base weights) and gradient checkpointing",
}


def _memory_words(made: Outlook) -> list[str]:
    """Whether the recipe fits as it stands, and if not, what would make it fit."""
    usable = made.device.usable
    plain, *others = made.ways
    needs = f"{plain.memory.total / GIB:.1f} GiB of {usable / GIB:.1f} GiB usable on each {made.device.name}"
    if plain.fits:
        return [f"As it stands it fits: {needs}."]
    parts: Mapping[str, float] = asdict(plain.memory)
    part = max(parts, key=lambda name: parts[name])
    words = [
        f"As it stands it does not fit: {needs}, most of it {part.replace('_', ' ')} ({parts[part] / GIB:.1f} GiB)."
    ]
    if plain.largest_micro_batch_tokens:
        words.append(f"It fits with train.micro_batch_tokens={plain.largest_micro_batch_tokens}.")
    for way in others:
        name = _NAMES[way.way.name]
        if way.fits:
            words.append(f"It fits with {name}: {way.memory.total / GIB:.1f} GiB.")
        elif way.largest_micro_batch_tokens:
            words.append(
                f"It fits with {name} and train.micro_batch_tokens={way.largest_micro_batch_tokens}."
            )
    if not made.fits:
        words.append(
            f"No way fits: shorten data.max_length ({made.rows.longest} tokens), take more or larger GPUs, or a smaller model."
        )
    return words


def _other_words(recipe: Recipe, made: Outlook) -> list[str]:
    words = []
    batch, count = recipe.train.batch_size, made.num_gpus
    if batch % count:
        busy = batch / math.ceil(batch / count)
        words.append(
            f"train.batch_size={batch} is no multiple of {count} GPUs, which do the work of {busy:g}: "
            f"take {math.ceil(batch / count) * count}."
        )
    evaluation = made.evaluation
    if evaluation.batch_size < recipe.evaluate.batch_size:
        words.append(
            f"Rows are generated one at a time: they are longer than the model's window of {made.shape.window} tokens."
        )
    if not evaluation.fits and evaluation.largest_batch_size:
        words.append(
            f"Evaluation does not fit: {evaluation.total_bytes / GIB:.1f} GiB with evaluate.batch_size={evaluation.batch_size}; "
            f"take {evaluation.largest_batch_size}."
        )
    elif not evaluation.fits:
        words.append(
            f"Evaluation does not fit: it is done on one GPU, and needs {evaluation.total_bytes / GIB:.1f} GiB."
        )
    if made.steps is None:
        words.append("How many rows there are is not known: give --rows for hours.")
    return words


def assumptions(made: Outlook) -> str:
    """What the figures rest on, in a few sentences."""
    low, high = UTILISATION
    return (
        f"All of it is an estimate: nothing was run on {made.num_gpus} x {made.device.name}. Speeds are {low:.0%} to {high:.0%} of the peak, "
        f"as published trainings reached; what GPUs say to each other is not counted. {MARGIN:.0%} of the memory is left free. "
        "Formulae and sources: docs/reference/plan.md."
    )
