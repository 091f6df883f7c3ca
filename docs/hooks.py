"""Reference pages, made from the code itself when the documentation is built."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import luthier
from luthier import recipe, registry
from luthier.cli import app


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to those that lie in docs/."""
    schema = recipe.schema()
    pages = {
        "reference/recipe.md": recipe_page(schema),
        "reference/registered.md": registered_page(schema),
        "reference/commands.md": commands_page(),
        "reference/python.md": python_page(),
    }
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


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
    text = re.sub(
        r"^(What it does|Why is this bad|Example|Fix|Catalogue):", r"**\1:**", text, flags=re.MULTILINE
    )
    return re.sub(r"^    +(\w+): ", r"- `\1`: ", text, flags=re.MULTILINE).replace("``", "`")


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
