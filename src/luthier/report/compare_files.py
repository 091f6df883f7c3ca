"""A comparison as files: numbers, tables for a paper, a picture of the curves, and a page."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from luthier.display import pages
from luthier.errors import UserError
from luthier.report import curves, history, sections
from luthier.report.compare import Comparison
from luthier.report.safe import code, differences
from luthier.run_folder import RunFolder, user_disk_errors, write_json, write_text

_HERE = Path(__file__).parent
_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\N{MINUS SIGN}": "$-$",
    "–": "--",
}


def write(folder: Path, comparison: Comparison) -> Path:
    """Writes ``comparison.json``, ``table.md``, ``table.tex``, ``table.csv``, ``curves.png`` and the page; returns its path.

    Raises:
        UserError: The folder cannot be written, or is a run's.
    """
    if (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder} is a run folder", "--out", "name another folder for the comparison")
    names = short_names(comparison.names)
    with user_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "comparison.json", asdict(comparison))
        for ending, text in (("md", markdown), ("tex", latex), ("csv", table_csv)):
            write_text(folder / f"table.{ending}", text(comparison))
        picture = folder / "curves.png"
        runs = {
            name: history.read(RunFolder(path)) for name, path in zip(names, comparison.names, strict=True)
        }
        drawn = curves.overlay(runs, picture)
        page = folder / "report.html"
        write_text(page, _page(comparison, names, picture if drawn else None))
    return page


def short_names(paths: Sequence[str]) -> list[str]:
    """Folders of runs without what all of them begin with."""
    whole = [os.path.abspath(path) for path in paths]
    if len(set(whole)) < len(whole):  # a run against itself
        return [f"{path} ({number})" for number, path in enumerate(paths, 1)]
    shared = os.path.dirname(os.path.commonpath([*whole, os.path.dirname(whole[0])]) + "/any")
    return [os.path.relpath(path, shared) for path in whole]


def markdown(comparison: Comparison) -> str:
    """The table as Markdown: a run a line, a metric a column; differences to the first run with 95% intervals."""

    def cell(value: str, change: str | None, clear: bool) -> str:
        return f"**{value}**" * clear + value * (not clear) + (f" ({change})" if change else "")

    header, *lines = _grid(comparison, cell)
    escaped = [[text.replace("|", r"\|") for text in line] for line in (header, *lines)]
    rule = [":--", *("--:" for _ in header[1:])]
    return "".join(f"| {' | '.join(line)} |\n" for line in (escaped[0], rule, *escaped[1:])) + _caption(
        comparison
    )


def latex(comparison: Comparison) -> str:
    r"""The table for LaTeX with booktabs."""

    def cell(value: str, change: str | None, clear: bool) -> str:
        shown = rf"\textbf{{{_tex(value)}}}" if clear else _tex(value)
        return shown + (rf" {{\footnotesize ({_tex(change)})}}" if change else "")

    header, *lines = _grid(comparison, cell)
    body = [[_tex(line[0]), *line[1:]] for line in lines]
    rows = [[_tex(text) for text in header], *body]
    top, *rest = (" & ".join(row) + r" \\" for row in rows)
    return "\n".join(
        [
            "% needs the package booktabs",
            *(f"% {line}" for line in _caption(comparison).strip().splitlines()),
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            top,
            r"\midrule",
            *rest,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def table_csv(comparison: Comparison) -> str:
    """All figures as CSV, a metric of a run a line, those of strata too.

    Columns: ``run``, ``metric``, ``field`` and ``value`` of the stratum (empty: all rows), ``rows``, ``score``,
    ``first_score``, ``difference``, ``low``, ``high``, and of metrics that are 0 or 1 on every row McNemar's test: rows that
    ``only_first`` and ``only_run`` got right, and the ``p_value``.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["run", "metric", "field", "value", "rows", "score", "first_score", "difference", "low", "high",
         "only_first", "only_run", "p_value"]
    )  # fmt: skip
    for place, run in enumerate(comparison.names):
        for metric, entries in comparison.metrics.items():
            entry = entries[place]
            test = comparison.against_first[metric][place - 1] if place else None
            score = entry["figures"]["tuned"] if entry else None
            writer.writerow([run, metric, "", "", comparison.num_rows[place], score, *_difference(test)])
        for field, value, stratum in _strata(comparison, place - 1) if place else ():
            for metric, entry in stratum["metrics"].items():
                score = entry["figures"]["tuned"]
                writer.writerow([run, metric, field, value, stratum["rows"], score, *_difference(entry)])
    return file.getvalue()


def _difference(entry: dict[str, Any] | None) -> list[float | None]:
    if entry is None:
        return [None] * 7
    figures, test = entry["figures"], entry.get("mcnemar") or {}
    tested = [test.get(name) for name in ("only_base", "only_tuned", "p_value")]
    return [figures["base"], figures["difference"], *(figures["interval"] or (None, None)), *tested]


def _strata(comparison: Comparison, other: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for field, values in comparison.strata[other].items():
        for value, stratum in values.items():
            yield field, value, stratum


def _grid(comparison: Comparison, cell: Callable[[str, str | None, bool], str]) -> list[list[str]]:
    """Header and lines; ``cell`` gets a value, its difference to the first run, and whether that is clearly better."""
    header = [""]
    for name in comparison.metrics:
        header.append(sections.label(name))
    lines = [header]
    for place, run in enumerate(short_names(comparison.names)):
        line = [run]
        for name, entries in comparison.metrics.items():
            entry = entries[place]
            test = comparison.against_first[name][place - 1] if place else None
            change, clear = None, False
            if test and test["interval"]:
                change = f"{test['difference'].removesuffix(' points')}, {test['interval']}"
                clear = test["verdict"] == "better"
            if change and test and (rows := test.get("mcnemar")):
                change += f"; p = {rows['p_value']:.2g}"
            line.append(cell(entry["tuned"] if entry else "–", change, clear))
        lines.append(line)
    return lines


def _caption(comparison: Comparison) -> str:
    first = short_names(comparison.names)[0]
    counts = "/".join(dict.fromkeys(f"{count:,}" for count in comparison.num_rows))
    return (
        f"\n{counts} test rows. In brackets: difference to {first} on the same rows with its 95% interval "
        "(paired bootstrap over groups), and p of McNemar's exact test where rows are right or wrong; bold: better, and the "
        "interval excludes zero.\n"
    )


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _page(comparison: Comparison, names: Sequence[str], picture: Path | None) -> str:
    def example(row: dict[str, Any]) -> dict[str, Any]:
        sides = [
            (name, differences(row[side]["output"], row["target"]), row[side].get("scores") or {})
            for name, side in (("first", "base"), ("other", "tuned"))
            if row[side].get("output") is not None
        ]
        return row | {
            "prompt": sections.tail(row["prompt"]),
            "target": code(row["target"], marks=True),
            "sides": sides,
        }

    template = pages.environment(_HERE).get_template("compare.html.j2")
    return template.render(
        comparison=comparison,
        names=names,
        examples=[[example(row) for row in rows] for rows in comparison.examples],
        picture=picture and pages.picture(picture),
        label=sections.label,
        number=sections.number,
        look=pages.look(),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
    )
