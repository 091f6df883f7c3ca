"""An estimate for people: what is trained, memory by part, speed and hours, and what does not fit in words."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from luthier.cli.tables import cells, table
from luthier.display.text import safe
from luthier.estimate.outlook import GIB, Outlook, Range, WayOutlook, assumptions

_HEADS = {
    "plain": "plain",
    "checkpointing": "ckpt",
    "sharding": "sharded",
    "sharding+checkpointing": "both",
    "4-bit": "4bit",
    "4-bit+checkpointing": "4bit+ckpt",
}
_LEGEND = (
    "first the recipe as it stands; ckpt: gradient checkpointing; sharded: weights, gradients and optimizer states over all "
    "GPUs (FSDP, ZeRO 3); 4bit: QLoRA"
)


def show(made: Outlook, console: Console) -> None:
    """Prints an estimate; readable at 80 columns."""
    shape, device, rows = made.shape, made.device, made.rows
    _say(
        console,
        f"{made.recipe.name}: {made.recipe.model.name} on {made.num_gpus} x {device.name}, {made.precision}",
        style="bold",
    )
    _say(
        console,
        f"{shape.total:,} parameters, {shape.num_trained:,} trained ({shape.num_trained / shape.total:.2%})",
    )
    parts = table(console, "parameters", "in the model", "trained", right=(1, 2))
    for part, count in shape.parameters.items():
        parts.add_row(*cells(part, f"{count:,}", f"{shape.trained.get(part, 0):,}"))
    console.print(parts)
    size = f"{rows.train:,} rows" if rows.train else "an unknown number of rows"
    steps = f", {made.steps:,} steps" if made.steps else ""
    _say(
        console,
        f"{size} of {rows.tokens:,.0f} tokens, the longest {rows.longest:,} ({rows.source}){steps}",
    )
    console.print()
    _ways(made, console)
    for line in made.words():
        _say(console, line)
    _say(console, assumptions(made), style="dim")


def _ways(made: Outlook, console: Console) -> None:
    ways = made.ways
    heads = [_HEADS[way.way.name] for way in ways]
    grid = table(console, "GiB on each GPU", *heads, right=range(1, len(ways) + 1))
    for part in asdict(ways[0].memory):
        figures = [getattr(way.memory, part) for way in ways]
        if any(figures):
            grid.add_row(*cells(part.replace("_", " "), *(f"{figure / GIB:.2f}" for figure in figures)))
    grid.add_row(*cells("total", *(_total(way) for way in ways)))
    grid.add_row(*cells("usable", *(f"{way.usable / GIB:.2f}" for way in ways)))
    grid.add_section()
    grid.add_row(*cells("tokens at once", *(f"{way.micro_batch_tokens:,}" for way in ways)))
    grid.add_row(*cells("most tokens", *(f"{way.largest_micro_batch_tokens:,}" for way in ways)))
    grid.add_row(*cells("tokens/s", *(_range(way.tokens_per_s) for way in ways)))
    grid.add_row(*cells("training hours", *(_hours(way.train_hours) for way in ways)))
    console.print(grid)
    _say(console, _LEGEND, style="dim")
    console.print()


def _total(way: WayOutlook) -> Text:
    return Text(f"{way.memory.total / GIB:.2f}", "bold green" if way.fits else "bold red")


def _range(values: Range) -> str:
    low, high = map(_short, values)
    return low if low == high else f"{low}-{high}"


def _hours(values: Range | None) -> str:
    return "-" if values is None else _range(values)


def _short(value: float) -> str:
    """Two digits or three, as far as an estimate goes: ``<0.01``, ``0.35``, ``12``, ``340``, ``12k``, ``1.2M``."""
    for unit, size in (("M", 1e6), ("k", 1e3), ("", 1.0)):
        if value >= size:
            figure = value / size
            return f"{figure:.0f}{unit}" if figure >= 10 else f"{figure:.1f}{unit}"
    return f"{value:.2f}" if value >= 0.01 else "<0.01"


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(safe(text), style))
