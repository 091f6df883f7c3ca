"""A recipe on GPUs that need not be here: what fits, how fast, how long. An estimate; nothing is run on them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from luthier import recipe_file
from luthier.errors import UserError
from luthier.estimate.compute import Flops, flops
from luthier.estimate.devices import CPU, Device, parse
from luthier.estimate.memory import Memory, Way, memory
from luthier.estimate.shape import Shape, shape_of
from luthier.models.load import Precision
from luthier.models.memory import MARGIN, MOST_ON_CPU
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder, read_json
from luthier.schedule import total_steps
from luthier.stages import settled

# Share of the peak that published trainings of large models reached: GPT-3 21.3%, Megatron-Turing 30.2%, Gopher 32.5%,
# PaLM 46.2%. Source: Chowdhery et al. 2022, arXiv:2204.02311, table 3.
UTILISATION = (0.213, 0.462)
GIB = 2**30
_MOST_TOKENS = 1 << 24
_MOST_ROWS = 10**15  # more is a slip of the finger

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class RowCounts:
    """The training rows that the estimate is for.

    Attributes:
        source: Where the numbers come from, for people.
        train: How many; None if nothing says so.
        tokens: Of a row, on average.
        attended: Of the row in which the average token stands: long rows weigh more in attention.
        longest: Tokens of the longest row.
        trained_share: Of all tokens, those with a loss.
    """

    source: str
    train: int | None
    tokens: float
    attended: float
    longest: int
    trained_share: float


@dataclass(frozen=True, slots=True)
class WayOutlook:
    """One way to save memory, or none.

    Attributes:
        way: What is done.
        micro_batch_tokens: Of the largest micro-batch: as the recipe says, or as ``auto`` would find.
        memory: Bytes of each GPU at the peak.
        usable: Bytes that it may come to.
        fits: Whether it does not come to more.
        largest_micro_batch_tokens: Most tokens that fit; 0 if the longest row does not fit alone.
        tokens_per_s: Of all GPUs together, at the lower and the upper utilisation.
        train_hours: Least and most hours of training, evaluations left out; None without a number of rows.
    """

    way: Way
    micro_batch_tokens: int
    memory: Memory
    usable: float
    fits: bool
    largest_micro_batch_tokens: int
    tokens_per_s: Range
    train_hours: Range | None


@dataclass(frozen=True, slots=True)
class Outlook:
    """The whole estimate.

    Attributes:
        recipe: What it is for.
        shape: Of the model in training form.
        device: One of the GPUs.
        num_gpus: How many.
        precision: Of matrix products.
        rows: What it is reckoned for.
        steps: Optimizer steps; None without a number of rows.
        flops: Operations of a token, by part.
        ways: What a run of the recipe would do, then other ways.
    """

    recipe: Recipe
    shape: Shape
    device: Device
    num_gpus: int
    precision: Precision
    rows: RowCounts
    steps: int | None
    flops: Flops
    ways: tuple[WayOutlook, ...]

    @property
    def fits(self) -> bool:
        """Whether any way fits."""
        return any(way.fits or way.largest_micro_batch_tokens for way in self.ways)

    def to_dict(self) -> dict[str, Any]:
        """For ``luthier plan --json``; described in docs/reference/plan.md."""
        shape, share = self.shape, self.rows.trained_share
        return {
            "estimate": True,
            "fits": self.fits,
            "recipe": self.recipe.name,
            "model": {
                "name": self.recipe.model.name,
                "source": shape.source,
                "parameters": shape.total,
                "parameters_by_part": shape.parameters,
                "trained": shape.num_trained,
                "trained_by_part": shape.trained,
                "precision": self.precision,
            },
            "gpus": {"count": self.num_gpus, **asdict(self.device)},
            "rows": asdict(self.rows),
            "steps": self.steps,
            "flops_per_token": {
                "training": self.flops.training(share),
                "training_with_checkpointing": self.flops.training(share, checkpointing=True),
            },
            "utilisation": list(UTILISATION),
            "ways": [
                {
                    **asdict(way),
                    "way": {"name": way.way.name, **asdict(way.way)},
                    "memory": {**asdict(way.memory), "total": way.memory.total},
                }
                for way in self.ways
            ],
            "words": self.words(),
        }

    def words(self) -> list[str]:
        """What fits, and what to change where something does not, in sentences."""
        return [*_memory_words(self), *_other_words(self)]


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
    train = counts.train
    steps = total_steps(recipe.train, train, round(train * counts.tokens)) if train else None
    cost = flops(shape, counts.attended)
    # Each process takes its share of a step's rows; the last one may have one more than another.
    rows_of_one = math.ceil(recipe.train.batch_size / count)
    peak = device.peak(precision) * recipe.train.batch_size / rows_of_one  # of all that have work
    all_tokens = steps * recipe.train.batch_size * counts.tokens if steps else None

    def look(way: Way) -> WayOutlook:
        def needed(tokens: int) -> Memory:
            share = counts.trained_share
            return memory(
                shape, way, tokens=tokens, row_tokens=counts.longest, trained_share=share, num_gpus=count
            )

        low, high = 0, _MOST_TOKENS  # the most that fits lies in between
        while high - low > 1:
            middle = (low + high) // 2
            found = needed(middle)
            low, high = (middle, high) if found.total <= found.allowed(device.memory) else (low, middle)
        largest = low if low >= counts.longest else 0
        fitting = min(largest, MOST_ON_CPU) if device.name == CPU else largest
        wanted = recipe.train.micro_batch_tokens
        tokens = max(fitting if wanted == "auto" else wanted, counts.longest)
        tokens = min(tokens, rows_of_one * counts.longest)
        found = needed(tokens)
        usable = found.allowed(device.memory)
        each = cost.training(counts.trained_share, checkpointing=way.checkpointing)
        slow, fast = (share * peak / each for share in UTILISATION)
        hours = (all_tokens / fast / 3600, all_tokens / slow / 3600) if all_tokens else None
        return WayOutlook(way, tokens, found, usable, found.total <= usable, largest, (slow, fast), hours)

    ways = [look(way) for way in _ways(recipe, count)]
    short = not ways[0].largest_micro_batch_tokens
    if recipe.train.gradient_checkpointing == recipe.train.micro_batch_tokens == "auto" and short:
        ways[:2] = ways[1::-1]  # as memory.fit does it
    return Outlook(recipe, shape, device, count, precision, counts, steps, cost, tuple(ways))


def _ways(recipe: Recipe, count: int) -> list[Way]:
    """The recipe as it stands, the same with checkpointing, then others."""
    sharded = recipe.train.sharding == "fsdp" and count > 1
    four_bit = recipe.model.quantisation is not None
    own = Way(recipe.train.gradient_checkpointing is True, sharded, four_bit)
    others = [Way(True, sharded, four_bit)]
    if count > 1 and not four_bit:
        others += [Way(False, sharded=True), Way(True, sharded=True)]
    if recipe.model.adapter is not None:
        others.append(Way(True, four_bit=True))
    return list(dict.fromkeys((own, *others)))


def row_counts(recipe: Recipe, run: Path, rows: int | None, tokens_per_row: float | None) -> RowCounts:
    """How many rows of which length: as told, as prepared, or as the recipe limits them."""
    if any(number is not None and not 1 <= number <= _MOST_ROWS for number in (rows, tokens_per_row)):
        raise UserError(
            f"there are 1 to {_MOST_ROWS:,} rows and tokens", "--rows, --tokens-per-row", "give such a number"
        )
    longest = recipe.data.max_length
    prepared = _prepared(recipe, RunFolder(run))
    if prepared is not None and tokens_per_row is None:
        return (
            prepared
            if rows is None
            else replace(prepared, train=rows, source=f"--rows, lengths {prepared.source}")
        )
    train = rows or recipe.data.max_rows.get("train")
    told = [name for name, value in (("--rows", rows), ("--tokens-per-row", tokens_per_row)) if value]
    sources = [" and ".join(told)] if told else []
    if rows is None and train:
        sources.append("data.max_rows")
    if tokens_per_row is None:
        sources.append("every row as long as data.max_length")
    tokens = min(float(tokens_per_row or longest), longest)
    labels_rows = recipe.task["type"] == "classification" and recipe.task.get("way", "head") == "head"
    return RowCounts(
        source=", ".join(sources),
        train=train,
        tokens=tokens,
        attended=tokens,
        longest=longest,
        trained_share=1 / tokens if labels_rows else 1.0,
    )


def _prepared(recipe: Recipe, run: RunFolder) -> RowCounts | None:
    """The counts of a run folder whose rows were prepared from the same data, task and model."""
    if not run.ledger.is_file() or not run.recipe.is_file():
        return None
    before, recipe = settled(recipe_file.load(run.recipe), run), settled(recipe, run)
    if (before.data, before.task, before.model.name) != (recipe.data, recipe.task, recipe.model.name):
        return None
    train = read_json(run.ledger)["splits"]["train"]
    tokens = train["tokens"] / max(1, train["rows"])
    edges, counts = (train["length"]["histogram"][key] for key in ("edges", "counts"))
    middles = [(low + high - 1) / 2 for low, high in pairwise(edges)]
    total = sum(n * middle for n, middle in zip(counts, middles, strict=True))
    squares = sum(n * middle**2 for n, middle in zip(counts, middles, strict=True))
    return RowCounts(
        source=f"as prepared in {run.path}",
        train=train["rows"],
        tokens=tokens,
        attended=squares / total if total else tokens,
        longest=train["length"]["max"],
        trained_share=train["trained_tokens"] / max(1, train["tokens"]),
    )


_NAMES = {
    "plain": "as it stands",
    "checkpointing": "gradient checkpointing",
    "sharding": "train.sharding=fsdp",
    "4-bit": "model.quantisation=nf4",
}


def _memory_words(made: Outlook) -> list[str]:
    """Whether the recipe fits as it stands, and if not, what would make it fit."""
    own, *others = made.ways
    settings = made.recipe.train
    needs = (
        f"{own.memory.total / GIB:.1f} GiB of {own.usable / GIB:.1f} GiB usable on each {made.device.name}"
    )
    words = []
    if settings.micro_batch_tokens == "auto" and own.largest_micro_batch_tokens:
        words.append(f"train.micro_batch_tokens=auto comes to {own.micro_batch_tokens:,} tokens.")
        if settings.gradient_checkpointing == "auto" and own.way.checkpointing:
            words.append(
                f"train.gradient_checkpointing=auto comes to true: without, the longest row, of {made.rows.longest:,} tokens, "
                f"would need {others[0].memory.total / GIB:.1f} GiB."
            )
    if own.fits:
        return [f"As it stands it fits: {needs}.", *words]
    parts: dict[str, float] = asdict(own.memory)
    part = max(parts, key=lambda name: parts[name])
    words.append(
        f"As it stands it does not fit: {needs}, most of it {part.replace('_', ' ')} ({parts[part] / GIB:.1f} GiB)."
    )
    if own.largest_micro_batch_tokens:
        words.append(f"It fits with train.micro_batch_tokens={own.largest_micro_batch_tokens}.")
    for way in others:
        name = " and ".join(_NAMES[part] for part in way.way.name.split("+"))
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


def _other_words(made: Outlook) -> list[str]:
    words = []
    batch, count = made.recipe.train.batch_size, made.num_gpus
    if batch % count:
        rows_of_one = math.ceil(batch / count)
        words.append(
            f"train.batch_size={batch} is no multiple of {count} GPUs, which do the work of {batch / rows_of_one:g}: "
            f"take {rows_of_one * count}."
        )
    if made.steps is None:
        words.append("How many rows there are is not known: give --rows for hours.")
    return words


def assumptions(made: Outlook) -> str:
    """What the figures rest on, in a few sentences."""
    low, high = UTILISATION
    return (
        f"All of it is an estimate: nothing was run on {made.num_gpus} x {made.device.name}. Speeds are {low:.0%} to {high:.0%} of the peak, "
        f"as published trainings reached; what GPUs say to each other is not counted. {1 - MARGIN:.0%} of the memory beside the weights is "
        "left free. Formulae and sources: docs/reference/plan.md."
    )
