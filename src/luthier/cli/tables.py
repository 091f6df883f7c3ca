"""What a stage has found out, as tables: read from the files of the run folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from luthier.display import findings
from luthier.display.text import duration, safe
from luthier.records import SPLITS
from luthier.run_folder import RunFolder, read_json, read_jsonl


def table(console: Console, *columns: str, title: str | None = None, right: Iterable[int] = ()) -> Table:
    """An empty table; without lines around it where there is no terminal."""
    result = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        title=title,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    for index, name in enumerate(columns):
        result.add_column(
            name, justify="right" if index in set(right) else "left", no_wrap=not console.is_terminal
        )
    return result


def cells(*values: object) -> list[Text]:
    """Values as cells that hold no markup and no control characters."""
    return [value if isinstance(value, Text) else Text(safe(str(value))) for value in values]


def each_training(run: RunFolder, console: Console) -> Iterator[RunFolder]:
    """The folders of a run's training stages, each with its name before it; or the run's own."""
    for name, one in run.trainings().items():
        console.print(Text(safe(f"stage {name}"), "bold"))
        yield one
    if not run.trainings():
        yield run


def prepared(run: RunFolder, console: Console) -> None:
    """Rows by split with the beginning of their file's hash, what was dropped and what was trimmed."""
    ledger, files = read_json(run.ledger), read_json(run.manifest)["files"]
    columns = ("rows", "groups", "tokens", "trained", "median length", "longest", "SHA-256")
    splits = table(console, "split", *columns, right=range(1, 7))
    for name in SPLITS:
        if facts := ledger["splits"].get(name):
            length = facts["length"]
            trained = f"{facts['trained_tokens'] / facts['tokens']:.0%}" if facts["tokens"] else "-"
            counts = (f"{facts[key]:,}" for key in ("rows", "groups", "tokens"))
            content = files[f"{name}.arrow"][:16]
            splits.add_row(*cells(name, *counts, trained, length["p50"], length["max"], content))
    console.print(splits)
    dropped = table(console, "dropped", "reason", "count", "held against the budget", right=(2,))
    for level in ("records", "rows"):
        for reason, entry in sorted(ledger[level]["dropped"].items(), key=lambda item: -item[1]["count"]):
            budgeted = "yes" if entry["budgeted"] else "no, by a rule"
            dropped.add_row(*cells(level, reason, f"{entry['count']:,}", budgeted))
    if dropped.row_count:
        console.print(dropped)
    for name in SPLITS:
        for span, cut in ledger["splits"].get(name, {}).get("trimmed", {}).items():
            console.print(
                Text(safe(f"trimmed: {cut['tokens']:,} tokens of {span} in {cut['rows']:,} {name} rows"))
            )
    records, rows = ledger["records"], ledger["rows"]
    console.print(
        f"{records['in']:,} records in, {records['kept']:,} kept; {rows['in']:,} rows made, {rows['kept']:,} kept; "
        f"{ledger['drop_share']:.1%} dropped of a budget of {100 * ledger['drop_budget']:g}%"
    )


def checked(run: RunFolder, console: Console, *, verbose: bool = False) -> None:
    """Findings, worst first, and how many checks passed or were skipped."""
    findings.show(read_json(run.findings), console, verbose=verbose)


def trained(run: RunFolder, console: Console) -> None:
    """First, last and best losses, and what watchers found."""
    history = read_jsonl(run.history)
    steps = [row for row in history if "loss" in row]
    evals = [row for row in history if "eval" in row]
    best = next((row for row in reversed(evals) if row["eval"].get("best")), None)
    losses = table(console, "loss (nats)", "first", "last", "best", "best at step", right=range(1, 5))
    if steps:
        low = min(steps, key=lambda row: float(row["loss"]))
        values = (steps[0]["loss"], steps[-1]["loss"], low["loss"])
        losses.add_row(*cells("train", *(f"{value:.4f}" for value in values), low["step"]))
    if evals:
        chosen = best or evals[-1]
        values = (evals[0]["eval"]["loss"], evals[-1]["eval"]["loss"], chosen["eval"]["loss"])
        losses.add_row(*cells("eval", *(f"{value:.4f}" for value in values), chosen["step"]))
    console.print(losses)
    width = console.width if console.is_terminal else None
    for line in (
        line for row in steps for found in row.get("findings", ()) for line in findings.finding(found, width)
    ):
        console.print(line, soft_wrap=True)
    if steps:
        last = steps[-1]
        result = run.result()
        console.print(
            f"{last['step']:,} steps, {last['tokens']:,} tokens, {duration(last['seconds'])}"
            + (f"; result: {result}" if result else ""),
            markup=False,
            soft_wrap=True,
        )


def evaluated(run: RunFolder, console: Console) -> None:
    """Base against tuned, with intervals and plain words; nothing where there were no test rows."""
    if not run.scores.is_file():
        return
    scores = read_json(run.scores)
    title = f"{scores['num_rows']:,} {scores['split']} rows in {scores['num_groups']:,} groups"
    _compared(scores, console, title, ("base", "tuned", "tuned is"))
    for name, test in scores.get("mcnemar", {}).items():
        text = (
            f"{name}: {test['only_tuned']} rows right only when tuned, {test['only_base']} only before; "
            f"McNemar p = {test['p_value']:.2g}"
        )
        console.print(Text(safe(text)))


def forgotten(run: RunFolder, console: Console) -> None:
    """What later training stages have made of the test rows of earlier ones."""
    for entry in read_json(run.forgetting, list) if run.forgetting.is_file() else []:
        title = f"forgetting: {entry['stage']} after {entry['after']}"
        if "not_measured" in entry:
            console.print(Text(safe(f"{title}: not measured, {entry['not_measured']}")))
            continue
        title += f", {entry['num_rows']:,} test rows in {entry['num_groups']:,} groups"
        _compared(entry, console, title, (entry["stage"], entry["after"], "it became"))


def _compared(scores: Mapping[str, Any], console: Console, title: str, names: tuple[str, str, str]) -> None:
    """A metric a line, of two models on the same rows."""
    first, other, verdicts = names
    result = table(
        console,
        "metric",
        first,
        other,
        "difference",
        "95% interval",
        verdicts,
        title=title,
        right=range(1, 5),
    )
    order = ("bits_per_byte", "exact_match", "edit_similarity", "token_accuracy")
    for name in sorted(scores["metrics"], key=lambda n: order.index(n) if n in order else len(order)):
        metric = scores["metrics"][name]
        share = metric["unit"] == "share"
        ends = [_figure(end, share, sign=True, unit="") for end in metric["interval"] or ()]
        result.add_row(
            *cells(
                name + (" (nats)" if metric["unit"] == "nats" else ""),
                _figure(metric["base"], share),
                _figure(metric["tuned"], share),
                _figure(metric["difference"], share, sign=True, unit=" points"),
                " to ".join(ends) or "-",
                verdict(metric),
            )
        )
    console.print(result)


def verdict(metric: Mapping[str, Any]) -> Text:
    """``better`` or ``worse`` only when the interval of the difference excludes zero."""
    if metric["interval"] is None:
        return Text("too few groups to tell", "dim")
    low, high = metric["interval"]
    if low <= 0 <= high:
        return Text("no clear difference", "dim")
    better = (low > 0) == (metric["better"] == "higher")
    return Text("better", "bold green") if better else Text("worse", "bold red")


def _figure(value: float | None, share: bool, *, sign: bool = False, unit: str = "%") -> str:
    if value is None:
        return "-"
    text = f"{100 * value:+.1f}{unit}" if share else f"{value:+.4f}"
    zero = not any(digit in text for digit in "123456789")
    return text if sign and not zero else text.lstrip("+" if not zero else "+-")


def listing(rows: Iterable[tuple[str, str, str]], console: Console) -> None:
    """Kind, name and summary of registered things, a line each."""
    rows = list(rows)
    if console.is_terminal:
        result = table(console, "kind", "name", "what it is")
        for kind, name, summary in rows:
            result.add_row(*cells(kind, Text(name, "bold"), summary))
        console.print(result)
        return
    width = max((len(name) for _, name, _ in rows), default=0)
    for kind, name, summary in rows:
        console.print(Text(safe(f"{kind:6}  {name:{width}}  {summary}".rstrip())), soft_wrap=True)
