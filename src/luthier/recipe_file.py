"""Recipes as files: YAML with the line of every key, overrides, and the recipes that are shipped."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from luthier.errors import UserError
from luthier.recipe import COMMAND_LINE, Recipe, place_of, validate


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The validated recipe of a YAML file, with ``key=value`` overrides.

    Args:
        path: A YAML file, or the name of a shipped recipe (``luthier list recipes``).
        overrides: ``data.max_length=256``; values are YAML.

    Raises:
        UserError: Unreadable or malformed file.
        UserErrors: All problems of the recipe at once, with key path and line.
    """
    file = find(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the recipe cannot be read: {error}", str(file), "name a readable YAML file in UTF-8"
        ) from error
    tree, lines, errors = _parse(text, str(file))
    for override in overrides:
        _override(tree, lines, errors, override)
    return validate(tree, lines, str(file), errors)


def find(path: str | Path) -> Path:
    """The file of a recipe given by path or by the name of a shipped one."""
    file = Path(path)
    if file.is_file():
        return file
    shipped = shipped_recipes()
    if str(path) in shipped:
        return shipped[str(path)]
    near = difflib.get_close_matches(str(path), shipped, n=1)
    raise UserError(
        f"there is no recipe {path}",
        str(path),
        f"did you mean {near[0]!r}?" if near else f"name a YAML file, or one of: {', '.join(shipped)}",
    )


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with luthier, by name."""
    here = Path(__file__).parent
    # In a checkout the recipes lie at its top; a wheel carries them inside the package.
    folder = next((f for f in (here / "recipes", here.parents[1] / "recipes") if f.is_dir()), None)
    if folder is None:
        return {}
    return {str(f.relative_to(folder).with_suffix("")): f for f in sorted(folder.rglob("*.yaml"))}


def _parse(text: str, file: str) -> tuple[dict[str, Any], dict[tuple[str, ...], int], list[UserError]]:
    """The tree, the line of each key path, and the problems of the YAML itself."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"not valid YAML: {problem}", where, "mend the YAML at that line") from error
    if not isinstance(tree, dict) or node is None:
        kind = "nothing" if tree is None else type(tree).__name__
        raise UserError(
            f"a recipe is a mapping of keys to values, but this file holds {kind}", file, "see `luthier init`"
        )
    lines: dict[tuple[str, ...], int] = {}
    errors: list[UserError] = []

    def walk(node: yaml.Node, path: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                here = (*path, name)
                if name in seen:
                    errors.append(
                        UserError(
                            f"the key {name!r} stands twice",
                            place_of(here, file, key.start_mark.line + 1),
                            "keep one",
                        )
                    )
                seen.add(name)
                lines[here] = key.start_mark.line + 1
                walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                lines[(*path, str(index))] = value.start_mark.line + 1
                walk(value, (*path, str(index)))

    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise UserError("YAML aliases (*name) are not taken in recipes", file, "write the value out")
    walk(node, ())
    return tree, lines, errors


def _override(
    tree: dict[str, Any], lines: dict[tuple[str, ...], int], errors: list[UserError], override: str
) -> None:
    key, equals, value = override.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        errors.append(
            UserError(f"{override!r} is not key=value", "command line", "write for example train.epochs=2")
        )
        return
    place: Any = tree
    for name in path[:-1]:
        if not isinstance(place.get(name), dict):
            place[name] = {}
        place = place[name]
    try:
        place[path[-1]] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        errors.append(
            UserError(f"the value of {override!r} is not valid YAML", "command line", "quote the value")
        )
    lines[path] = COMMAND_LINE


def with_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    """The recipe of a tree that did not come from a file, with ``key=value`` overrides."""
    own = copy.deepcopy(dict(tree))
    lines: dict[tuple[str, ...], int] = {}
    errors: list[UserError] = []
    for override in overrides:
        _override(own, lines, errors, override)
    return validate(own, lines, errors=errors)


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
