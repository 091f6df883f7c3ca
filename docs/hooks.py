"""Reference pages, made from the code itself when the documentation is built."""

from __future__ import annotations

import html
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import luthier
from luthier import recipe, registry
from luthier.check.catalogue import ENTRIES, REPORTED
from luthier.cli import app
from luthier.train.watchers import DOCUMENTED


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to those that lie in docs/."""
    schema = recipe.schema()
    known = documented()
    results = fault_results()
    config.nav = with_checks(config.nav, known)
    pages = {
        "index.md": loaded("docs/readme.py").as_index(Path("README.md").read_text(encoding="utf-8")),
        **{
            f"{name.lower()}.md": Path(f"{name}.md").read_text(encoding="utf-8")
            for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")
        },
        "reference/recipe.md": recipe_page(schema),
        "reference/registered.md": registered_page(schema),
        "reference/commands.md": commands_page(),
        "reference/python.md": python_page(),
        "reference/checks/index.md": checks_page(known),
        "reference/faults.md": faults_page(known, results),
        "reference/peers-faults.md": measured_page("benchmarks/faults"),
        "reference/training-speed.md": measured_page("benchmarks/training"),
        "reference/state-space-speed.md": measured_page("benchmarks/ssm"),
        "reference/infilling.md": measured_page("benchmarks/humaneval-infilling"),
        "reference/figures.md": figures_page(),
        **{
            f"{path.parent}.md": measured_page(str(path.parent))
            for path in sorted(Path("studies").glob("*/table.py"))
        },
        **{f"reference/checks/{name}.md": check_page(name, known[name].entry, results) for name in known},
    }
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def loaded(path: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured_page(folder: str) -> str:
    """What a benchmark or study came to, as its own script lays it out."""
    page: str = loaded(f"{folder}/table.py").page()
    return page


def figures_page() -> str:
    """Every figure of every benchmark and study, as its ``results.json`` has it."""
    lines = [
        "# Measured figures",
        "",
        "All figures that this documentation speaks of, with the commands that make them anew. Three numbers are a value with its lowest and highest, or with its interval,",
        "as the notes say.",
    ]
    for path in sorted([*Path("benchmarks").glob("*/results.json"), *Path("studies").glob("*/results.json")]):
        found = json.loads(path.read_text(encoding="utf-8"))
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        about = [f"`{found['command']}`", "", f"{found['notes']} {found['date']}; {versions}."]
        rows = [f"| {cell(name)} | {figure(value)} |" for name, value in found["figures"].items()]
        lines += ["", f"## {path.parent}", "", *about, "", "| figure | value |", "|---|--:|", *rows]
    return "\n".join(lines) + "\n"


def figure(value: float | list[float]) -> str:
    """A number, or one with two others in brackets."""
    if isinstance(value, list):
        middle, low, high = map(figure, value)
        return f"{middle} ({low} to {high})"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def recipe_page(schema: dict[str, Any]) -> str:
    """Every key of a recipe: one table for the top and one for each section."""
    lines = [
        "# Recipe",
        "",
        "A recipe is a YAML file of the keys below; each has a default, so that `{}` is a recipe. Keys that are not here are refused. Any key can be set",
        "on the command line too: `luthier run recipe.yaml train.epochs=2 data.max_length=256`.",
        "",
        "`luthier schema` prints the same as JSON schema. Editors that know the YAML language server read it from the recipe's first line:",
        "",
        "```yaml",
        "# yaml-language-server: $schema=schema.json",
        "```",
        "",
        "## Top level",
        "",
        *field_table(schema, schema),
    ]
    for name, title in sections(schema, schema, ""):
        section = schema["$defs"][title]
        lines += ["", f"## {name}", "", section.get("description", ""), "", *field_table(section, schema)]
    return "\n".join(lines) + "\n"


def sections(node: dict[str, Any], schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Key path and name of the model of each section below a node, in order."""
    for key, value in node["properties"].items():
        if (prefix + key) in ("task", "data.source", "data.eval_source", "data.test_source"):
            continue  # tables of their own, on the page of registered things
        for reference in re.findall(r'"#/\$defs/(\w+)"', json.dumps(value)):
            if "properties" in schema["$defs"][reference]:
                yield prefix + key, reference
                yield from sections(schema["$defs"][reference], schema, f"{prefix}{key}.")


def field_table(node: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """A Markdown table of the fields of a model, but for ``type``."""
    fields = {key: value for key, value in node.get("properties", {}).items() if key != "type"}
    if not fields:
        return ["It has no options."]
    rows = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for key, value in fields.items():
        default = (
            f"`{json.dumps(value['default'], ensure_ascii=False)}`" if "default" in value else "(required)"
        )
        if isinstance(value.get("default"), dict) and value["default"]:
            default = "see there"
        elif "default" not in value and key not in node.get("required", []):
            default = ""
        section = schema["$defs"].get(str(value.get("$ref", "")).rpartition("/")[2], {})
        described = value.get("description") or section.get("description", "")
        meaning = " ".join(described.split()).replace("``", "`")
        rows.append(f"| `{key}` | {cell(takes(value, schema))} | {cell(default)} | {cell(meaning)} |")
    return rows


def takes(value: dict[str, Any], schema: dict[str, Any]) -> str:
    """What a field takes, in words."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        target = schema["$defs"][name]
        return "a section" if "properties" in target else takes(target, schema)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in value:
            parts = dict.fromkeys(takes(part, schema) for part in value[union])
            return "a registered name and its options" if len(parts) > 6 else " or ".join(parts)
    if "const" in value or "enum" in value:
        return ", ".join(f"`{item}`" for item in value.get("enum", [value.get("const")]))
    kind = value.get("type", "anything")
    if kind == "array":
        return f"list of {takes(value['items'], schema)}" if value.get("items") else "list"
    if kind == "object":
        return "`type` and its options" if "type" in value.get("properties", {}) else "mapping"
    words = {"integer": "whole number", "boolean": "`true` or `false`", "null": "`null`", "string": "text"}
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {value[limit]:g}" for limit, sign in signs.items() if limit in value]
    return " ".join([words.get(kind, kind), ", ".join(limits)]).strip()


def cell(text: str) -> str:
    """Text that does not end a table's cell; code may hold the sign that does."""
    parts = text.replace("\n", " ").split("`")
    return "`".join(part if number % 2 else part.replace("|", "\\|") for number, part in enumerate(parts))


def registered_page(schema: dict[str, Any]) -> str:
    """All registered tasks, sources, metrics, checks and models, with their options."""
    lines = [
        "# Tasks, sources, metrics, checks, models",
        "",
        "What a recipe can name; `luthier list` shows the same, plug-ins included.",
    ]
    options = {
        "task": schema["properties"]["task"]["anyOf"],
        "source": schema["$defs"]["Data"]["properties"]["source"]["anyOf"],
    }
    for kind in registry.KINDS:
        lines += ["", f"## {kind.capitalize()}s"]
        if kind == "check":
            lines += ["", "Each has [a page of its own](checks/index.md)."]
            continue
        for name, entry in registry.registered(kind).items():
            lines += ["", f"### {name}", "", text_of(entry)]
            for variant in options.get(kind, []):
                if variant.get("title") == name:
                    lines += ["", *field_table(variant, schema)]
    return "\n".join(lines) + "\n"


def text_of(entry: Any) -> str:
    """A docstring as Markdown: its sections in Google style become paragraphs."""
    text = inspect.getdoc(entry) or ""
    text = re.sub(r"^(Args|Returns|Raises|Source|Attributes):", r"\n**\1.**", text, flags=re.MULTILINE)
    return re.sub(r"^    +(\w+): ", r"- `\1`: ", text, flags=re.MULTILINE).replace("``", "`")


@dataclass
class Documented:
    """A check, or a watcher of training."""

    entry: Any
    family: str


# Family of the checks, by the file of the fault suite that plants its defects.
FAMILIES = {
    "data": "Data and ledger",
    "tokens": "Tokens",
    "model": "Model",
    "optimisation": "Optimisation",
    "round_trips": "Round trips",
}
WATCHING = "While training"
# Checks of steps and checkpoints, whose defects are planted together, and those whose defects lie in test_checks.py.
OTHERS = {
    **dict.fromkeys(("drop-budget", "trim-share", "encoding"), "Data and ledger"),
    **dict.fromkeys(("target-whole", "tokenizer-loss"), "Tokens"),
    **dict.fromkeys(("merge", "resume", "save-reload", "tokenizer-reload"), "Round trips"),
    **dict.fromkeys(
        (
            *(
                "accumulation",
                "adapter-targets",
                "best-checkpoint",
                "dropped-columns",
                "gradient-norm",
                "gradients",
            ),
            *("overfit-batch", "parameter-groups", "ranks", "schedule", "step-loss", "update-size"),
        ),
        "Optimisation",
    ),
}


def documented() -> dict[str, Documented]:
    """All checks of this package and all watchers, by family and name."""
    planted = planted_families()
    found = {
        name: Documented(entry, OTHERS.get(name) or planted.get(name, "Others"))
        for name, entry in registry.registered("check").items()
        if entry.__module__.startswith("luthier.")
    }
    found |= {name: Documented(entry, WATCHING) for name, entry in DOCUMENTED.items()}
    order = [*FAMILIES.values(), "Others", WATCHING]
    return dict(sorted(found.items(), key=lambda item: (order.index(item[1].family), item[0])))


def planted_families() -> dict[str, str]:
    """The family of each check that has planted defects."""
    counts: dict[str, Counter[str]] = {}
    for file, family in FAMILIES.items():
        path = Path("tests/faults/planted", f"{file}.py")
        for name in re.findall(r'@planted\(\s*"([^"]+)"', path.read_text()) if path.is_file() else ():
            counts.setdefault(name, Counter())[family] += 1
    return {name: count.most_common(1)[0][0] for name, count in counts.items()}


def with_checks(nav: Any, known: dict[str, Documented]) -> Any:
    """The navigation with a page for each check under Reference > Checks."""
    families: dict[str, list[str]] = {}
    for name, check in known.items():
        families.setdefault(check.family, []).append(f"reference/checks/{name}.md")
    (reference,) = (item["Reference"] for item in nav if isinstance(item, dict) and "Reference" in item)
    (checks,) = (item["Checks"] for item in reference if isinstance(item, dict) and "Checks" in item)
    checks += [{family: pages} for family, pages in families.items()]
    return nav


def checks_page(known: dict[str, Documented]) -> str:
    """Table of all checks by family."""
    lines = [
        "# Checks",
        "",
        "What is checked before a training starts, by `luthier check` (a recipe), `luthier.audit(trainer)` (a live Trainer) and",
        "`luthier audit` (tokenised rows of any framework); and what is watched while it runs. `luthier explain NAME` prints the same pages.",
        "Which documented failures they catch, and in which set-ups that was tried: [fault suite](../faults.md).",
    ]
    family = ""
    for name, check in known.items():
        if check.family != family:
            family = check.family
            lines += [
                "",
                f"## {family}",
                "",
                "| name | what is true if it passes | catalogue |",
                "|---|---|---|",
            ]
        numbers = ", ".join(str(number) for number in catalogue_of(check.entry))
        lines.append(f"| [{name}]({name}.md) | {cell(prose(registry.summary(check.entry)))} | {numbers} |")
    return "\n".join(lines) + "\n"


def catalogue_of(entry: Any) -> list[int]:
    """Entries of the catalogue that a check is about."""
    line = (inspect.getdoc(entry) or "").partition("Catalogue:")[2].partition("\n\n")[0]
    return [int(number) for number in re.findall(r"\d+", line)]


def check_page(name: str, entry: Any, results: dict[str, Any]) -> str:
    """A check's docstring, the entries of the catalogue that it is about, and the defects planted for it."""
    summary, *paragraphs = (inspect.getdoc(entry) or "").partition("Catalogue:")[0].split("\n\n")
    lines = [f"# {name}", "", prose(summary)]
    for paragraph in paragraphs:
        heading, colon, text = paragraph.partition(": ")
        known = colon and heading in ("What it does", "Why is this bad", "Example", "Fix")
        lines += [
            "",
            *([f"## {heading}", ""] if known else []),
            prose(text[:1].upper() + text[1:] if known else paragraph),
        ]
    if numbers := catalogue_of(entry):
        lines += ["", "## Catalogue", "", "Documented failures that it is about:", ""]
        for number in numbers:
            reported = f" ({threads(number)})" if number in REPORTED else ""
            lines.append(f"- [{number}](../faults.md#entry-{number}) {ENTRIES[number]}{reported}")
    planted = [fault for fault in results["faults"] if fault["check"] == name]
    if planted:
        lines += [
            "",
            "## Planted defects that it catches",
            "",
            "| planted | in | what it says |",
            "|---|---|---|",
        ]
        lines += [
            f"| {cell(prose(fault['how']))} | {fault['where']} | {fault['severity']}: {cell(prose(fault['what']))} |"
            for fault in planted
        ]
    return "\n".join(lines) + "\n"


def threads(number: int) -> str:
    """Where people met a failure."""
    return REPORTED[number]


def prose(text: str) -> str:
    """Text as Markdown in one line: code is code, and nothing outside it is markup."""
    parts = " ".join(text.replace("``", "`").split()).split("`")
    return "`".join(
        part if number % 2 else re.sub(r"([*_\[\]\\])", r"\\\1", html.escape(part, quote=False))
        for number, part in enumerate(parts)
    )


def fault_results() -> dict[str, Any]:
    """What the fault suite came to (`make faults`); nothing if it was not run yet."""
    path = Path("tests/faults/results.json")
    empty: dict[str, Any] = {"faults": [], "healthy": [], "prevented": {}, "out_of_reach": {}}
    return empty | (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})


def faults_page(known: dict[str, Documented], results: dict[str, Any]) -> str:
    """The fault suite: planted defects by family, healthy set-ups, and what becomes of each entry of the catalogue."""
    lines = [
        "---\nhide: [toc]\n---",
        "# Fault suite",
        "",
        "Defects that let a training run and end as if nothing were wrong, planted one at a time into a healthy set-up: the check named must",
        "find each, with the severity shown; others that speak of it too are named behind it. Healthy set-ups must give no error and at most",
        "one warning. The entries are those of a catalogue of silent failures that people reported.",
    ]
    if not results["faults"]:
        return "\n".join([*lines, "", "It was not run yet: `make faults`.", *by_entry(known, results)]) + "\n"
    versions = ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items())
    lines += [
        "",
        f"{len(results['faults'])} defects and {len(results['healthy'])} healthy set-ups, made by "
        f"`{results.get('command', 'make faults')}` on {results.get('date', 'an unknown day')} with {versions}. All defects were caught.",
    ]
    for family in dict.fromkeys(check.family for check in known.values()):
        faults = [f for f in results["faults"] if f["check"] in known and known[f["check"]].family == family]
        if not faults:
            continue
        lines += [
            "",
            f"## {family}",
            "",
            "| entry | check | planted | in | result |",
            "|---|---|---|---|---|",
        ]
        for fault in faults:
            entries = ", ".join(f'[{n}](#entry-{n} "{ENTRIES[n]}")' for n in fault["catalogue"])
            others = ", ".join(f"[{name}](checks/{name}.md)" for name in fault["also"])
            checks = [f"[{fault['check']}](checks/{fault['check']}.md)", *([others] if others else [])]
            lines.append(
                f"| {entries} | {', also '.join(checks)} | {cell(prose(fault['how']))} | {fault['where']} | "
                f"{fault['severity']}: {cell(prose(fault['what']))} |"
            )
    lines += [
        "",
        "## Healthy set-ups",
        "",
        "| set-up | errors | warnings | checks passed | skipped |",
        "|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {cell(prose(case['how']))} | 0 | {case['warnings']} | {case['passed']} | {case['skipped']} |"
        for case in results["healthy"]
    ]
    return "\n".join(lines + by_entry(known, results)) + "\n"


def by_entry(known: dict[str, Documented], results: dict[str, Any]) -> list[str]:
    """What becomes of each entry of the catalogue: caught by, prevented by or out of reach."""
    checks: dict[int, list[str]] = {}
    for fault in results["faults"]:
        for number in fault["catalogue"]:
            checks.setdefault(number, []).append(fault["check"])
    lines = [
        "",
        "## By entry of the catalogue",
        "",
        "| entry | failure | reported in | what becomes of it |",
        "|--:|---|---|---|",
    ]
    for number, name in ENTRIES.items():
        said = [f"[{check}](checks/{check}.md)" for check in dict.fromkeys(checks.get(number, ()))]
        if said:
            said = [f"caught by {', '.join(said)} ({len(checks[number])} planted)"]
        watchers = [
            n for n in known if known[n].family == WATCHING and number in catalogue_of(known[n].entry)
        ]
        if watchers:
            said.append(f"watched by {', '.join(f'[{name}](checks/{name}.md)' for name in watchers)}")
        if prevented := results["prevented"].get(str(number)):
            said.append(f"in a recipe prevented: {prose(prevented['why'])} (`{prevented['test']}`)")
        if why := results["out_of_reach"].get(str(number)):
            said.append(f"out of reach: {prose(why)}")
        anchor = f'<a id="entry-{number}"></a>{number}'
        lines.append(
            f"| {anchor} | {cell(prose(name))} | {threads(number) if number in REPORTED else ''} | {cell('; '.join(said)) or 'not planted'} |"
        )
    return lines


def commands_page() -> str:
    """The help of every command, as typer writes it, without its list of shortened summaries and what is hidden."""
    command = [
        sys.executable,
        "-m",
        "typer",
        "luthier.cli",
        "utils",
        "docs",
        "--name",
        "luthier",
        "--title",
        "Command line",
    ]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "120"}
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)
    for hidden in (c.name or c.callback.__name__ for c in app.registered_commands if c.hidden and c.callback):
        text = re.sub(rf"^## `luthier {hidden}`\n.*?(?=^## |\Z)", "", text, flags=re.MULTILINE | re.DOTALL)
    return text


def python_page() -> str:
    """The public names of the package by the module that they come from, for mkdocstrings to fill in."""
    lines = [
        "# Python",
        "",
        "`import luthier` offers the same as the command line, typed. All names below are names of `luthier`.",
    ]
    for title, module in (
        ("Stages", "pipeline"),
        ("Any training", "check.audit|check.runner|train.callback"),
        ("Recipes and run folders", "recipe_file|recipe|run_folder"),
        ("Records", "records"),
        ("Decorators", "registry"),
        ("Errors", "errors"),
    ):
        lines += ["", f"## {title}"]
        for name in luthier.__all__:
            entry = getattr(luthier, name)
            home = getattr(entry, "__module__", "")
            if home.removeprefix("luthier.") in module.split("|"):
                lines += ["", f"::: {home}.{entry.__qualname__}"]
    return "\n".join(lines) + "\n"
