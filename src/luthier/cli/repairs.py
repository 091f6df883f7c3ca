"""What became of candidate patches, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from luthier.cli.tables import cells, table
from luthier.display.text import safe
from luthier.run_folder import read_json


def show(folder: Path, against: Path | None, console: Console) -> None:
    """The tables of a folder of results, and its comparison with another one."""
    if (folder / "checkpoints.json").is_file() and not (folder / "repair.json").is_file():
        _checkpoints(read_json(folder / "checkpoints.json"), console)
        return
    if (folder / "rounds.json").is_file() and not (folder / "repair.json").is_file():
        _rounds(read_json(folder / "rounds.json"), folder, console)
        return
    results = read_json(folder / "repair.json")
    _judged(results, console)
    ranks = range(1, results["num_candidates"] + 1)
    verdicts = table(
        console,
        "verdict",
        *(f"#{rank}" for rank in ranks),
        title="candidates by rank",
        right=range(1, len(ranks) + 1),
    )
    for verdict, counts in results["verdicts_by_rank"].items():
        if any(counts):
            verdicts.add_row(*cells(verdict, *counts))
    console.print(verdicts)
    _metrics(results, console)
    orders = table(console, "order of the candidates", "plausible@1", right=(1,))
    for order, value in results["plausible_at_1_by_order"].items():
        orders.add_row(*cells(order, _share(value)))
    console.print(orders)
    console.print(Text(f"in full: {folder / 'repair.json'}, {folder / 'verdicts.jsonl'}", "dim"))
    if against is not None:
        from luthier.evaluate.patches import compare_repairs

        _compared(compare_repairs(folder, against), folder, against, console)


def _judged(results: Mapping[str, Any], console: Console) -> None:
    console.print(Text(f"{results['num_judged']} of {results['num_bugs']} bugs judged", "bold"))
    for reason, names in results["left_out"].items():
        console.print(
            Text(
                safe(
                    f"left out, {reason}: {len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
                )
            )
        )


def _metrics(results: Mapping[str, Any], console: Console) -> None:
    metrics = table(console, "metric", "value", "95% interval", right=(1, 2))
    for name, one in results["metrics"].items():
        metrics.add_row(*cells(name, _share(one["value"]), _interval(one)))
    console.print(metrics)


def _rounds(results: Mapping[str, Any], folder: Path, console: Console) -> None:
    _judged(results, console)
    by_round = table(
        console, "round", "bugs", "patches", "repeated", "tokens", "verdicts", "found by", right=range(5)
    )
    for one in results["rounds"]:
        said = [
            ", ".join(f"{name} {n}" for name, n in one[key].items()) for key in ("verdicts", "extraction")
        ]
        by_round.add_row(
            *cells(
                one["round"],
                one["num_asked"],
                one["num_candidates"],
                one["num_repeated"],
                one["num_tokens"],
                *said,
            )
        )
    console.print(by_round)
    _metrics(results, console)
    for reason, names in results["ends"].items():
        console.print(Text(safe(f"ended, {reason}: {len(names)}")))
    console.print(Text(f"in full: {folder / 'rounds.json'}, {folder / 'conversations'}", "dim"))


def iterations(path: Path, console: Console) -> None:
    """The table of a loop of rejection sampling."""
    found = read_json(path)
    rows = table(
        console,
        "iteration",
        "repaired by",
        "patches",
        "new",
        "plausible",
        "95% interval",
        right=(0, 2, 3, 4, 5),
    )
    for one in found["iterations"]:
        plausible = one["plausible"]
        rows.add_row(
            *cells(
                one["iteration"],
                one["model"],
                one["num_patches"],
                one["num_new"],
                _share(plausible["value"]),
                _interval(plausible),
            )
        )
    console.print(rows)
    console.print(Text(f"in full: {path}", "dim"))


def _compared(found: Mapping[str, Any], one: Path, other: Path, console: Console) -> None:
    sides = table(
        console,
        "repaired by",
        "bugs",
        "names",
        title=f"{found['num_bugs']} bugs that both judged",
        right=(1,),
    )
    for label, key in (("both", "common"), (f"only {one}", "only_first"), (f"only {other}", "only_second")):
        sides.add_row(*cells(label, len(found[key]), ", ".join(found[key])))
    console.print(sides)
    console.print(Text(f"McNemar's exact test: p = {found['mcnemar']['p_value']:.3g}"))


def _checkpoints(found: Mapping[str, Any], console: Console) -> None:
    names = [name for name in found["checkpoints"][0] if name not in ("step", "eval_loss")]
    steps = table(console, "step", "eval loss", *names, right=range(len(names) + 2))
    for entry in found["checkpoints"]:
        loss = "-" if entry["eval_loss"] is None else f"{entry['eval_loss']:.4f}"
        mark = " *" if entry["step"] == found["best_step"] else ""
        steps.add_row(
            *cells(
                f"{entry['step']}{mark}",
                loss,
                *(f"{_share(entry[n]['value'])} {_interval(entry[n])}" for n in names),
            )
        )
    console.print(steps)
    console.print(Text(f"* most bugs repaired ({found['by']})", "dim"))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _interval(one: Mapping[str, Any]) -> str:
    return "-" if one["interval"] is None else f"{one['interval'][0]:.1%} to {one['interval'][1]:.1%}"
