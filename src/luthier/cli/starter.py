"""A commented recipe to start from, made from the recipe's own models and documentation."""

from __future__ import annotations

import json
import os
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from luthier import registry
from luthier.errors import UserError, UserErrors
from luthier.recipe import Data, Recipe, build, validate
from luthier.sources.code import LANGUAGES

SCHEMA_FILE = "luthier-schema.json"
_WIDTH = 110
# Where a newcomer gets something to run at once; other tasks begin with a file of rows.
_SOURCES: dict[str, dict[str, Any]] = {"line-completion": {"type": "stdlib"}}
_ROWS = {"type": "files", "path": "rows.jsonl"}
_FROM_CODE = ("line-completion", "project-completion", "language-modelling", "repair")
# What is no code, although it lies among it.
_NO_CODE = {"css", "html", "json", "markdown", "restructuredtext", "tex", "toml", "xml", "yaml"}
_NOT_ONES_OWN = ("node_modules", "site-packages")


def recipe_for(task: str, file: str, data: str | None = None) -> str:
    """The text of a recipe: every section and key with its documentation; what is commented out stands at its default.

    Args:
        task: A registered task, or ``path/to/file.py@name``.
        file: Name of the file that it is for, for its own hints.
        data: A person's own data: a folder of code, or a file of rows.

    Raises:
        UserError: No such task, or one with required options for which no example value is known; or no such data.
    """
    entry = registry.lookup("task", task, "luthier init")
    source = _SOURCES.get(task, _ROWS) if data is None else _own(task, data)
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        f"# {registry.summary(entry)}",
        f"# Run it: luthier run {file}",
        "# What is commented out stands at its default. `luthier list` shows what can be named here.",
        "",
    ]
    name = task.rpartition("@")[2]
    for key, field in Recipe.model_fields.items():
        if key == "task":
            lines += [*_comment(field, 0), "task:", *_options(entry, {"type": task}, 1)]
        elif key == "data":
            lines += [*_comment(field, 0), "data:", *_data(source)]
        elif key == "name":
            lines += [*_comment(field, 0), f"name: {_value(name)}"]
        else:
            lines += _field(key, field, 0, live=key in ("description", "seed"))
        lines.append("")
    text = "\n".join(lines)
    try:
        validate(yaml.safe_load(text), file=file)
    except UserErrors as errors:
        errors.add_note(
            f"{task} has options without a default: write the recipe by hand, see `luthier schema`"
        )
        raise
    return text


def _own(task: str, data: str) -> dict[str, Any]:
    """The source of a task for somebody's own folder of code, or files of rows."""
    place = Path(data).expanduser()
    if place.is_dir() and task in _FROM_CODE:
        code = {"type": "code", "path": data, "include": _globs(place)}
        return {"type": "mutations", "code": code} if task == "repair" else code
    rows = {"type": "files", "path": data}
    build("source", rows, "--data").inputs()  # says what cannot be read
    return rows


def _globs(folder: Path) -> list[str]:
    """Globs of the files of the language that a folder has most of, in bytes."""
    sizes: Counter[str] = Counter()
    for top, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".") and name not in _NOT_ONES_OWN]
        for path in (Path(top, name) for name in names):
            if LANGUAGES.get(path.suffix, "json") not in _NO_CODE and path.is_file():
                sizes[path.suffix] += path.stat().st_size
    languages: Counter[str] = Counter()
    for suffix, size in sizes.items():
        languages[LANGUAGES[suffix]] += size
    if not languages:
        raise UserError(f"no file in {folder} is known to be code", "--data", "name a folder of source files")
    (most, _), *_ = languages.most_common(1)
    return [f"**/*{suffix}" for suffix in sorted(sizes) if LANGUAGES[suffix] == most]


def _data(source: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for key, field in Data.model_fields.items():
        if key == "source":
            entry = registry.lookup("source", source["type"], "luthier init")
            lines += [*_comment(field, 1), "  source:", *_options(entry, source, 2)]
        else:
            lines += _field(key, field, 1)
    return lines


def _options(entry: type[BaseModel], given: dict[str, Any], depth: int) -> list[str]:
    """``type`` and all options of a task or source."""
    pad = "  " * depth
    lines = [f"{pad}type: {_value(given['type'])}"]
    for key, field in entry.model_fields.items():
        if key in given:
            lines += [*_comment(field, depth), f"{pad}{key}: {_value(given[key])}"]
        else:
            lines += _field(key, field, depth, live=field.is_required())
    return lines


def _field(key: str, field: FieldInfo, depth: int, *, live: bool = False) -> list[str]:
    """A key with its documentation; a section keeps its first key live, so that the others can be uncommented alone."""
    pad = "  " * depth
    default = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, BaseModel):
        lines = [*_comment(field, depth), f"{pad}{key}:"]
        for index, (name, inner) in enumerate(type(default).model_fields.items()):
            lines += _field(name, inner, depth + 1, live=index == 0)
        return lines
    if default is PydanticUndefined:
        default = _example(field)
    return [*_comment(field, depth), f"{pad}{'' if live else '# '}{key}: {_value(default)}"]


def _example(field: FieldInfo) -> Any:
    """A value to be replaced, of the type of an option without a default."""
    examples: dict[Any, Any] = {str: "text", int: 1, float: 1.0, bool: False, list[str]: ["text"]}
    return examples.get(field.annotation, "text")


def _comment(field: FieldInfo, depth: int) -> list[str]:
    text = " ".join((field.description or "").split()).replace("``", "`")
    pad = "  " * depth
    return [f"{pad}# {line}" for line in textwrap.wrap(text, _WIDTH - len(pad), break_on_hyphens=False)]


def _value(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    text = text.removesuffix("\n").removesuffix("\n...")
    return json.dumps(value, ensure_ascii=False) if "\n" in text else text  # JSON is YAML, and knows \n
