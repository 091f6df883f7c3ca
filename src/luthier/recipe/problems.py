"""What pydantic complains of in a recipe, in the recipe's own words: key, line, what is wrong and what to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from luthier.errors import UserError

COMMAND_LINE = 0  # stands in for the line of a key that was given as key=value
# pydantic's names of a union's plain branches
_SCALARS = ("str", "int", "float", "bool", "constrained-str", "constrained-int", "constrained-float")


def place_of(path: Iterable[Any], file: str, line: int | None) -> str:
    """A recipe key with the file and line that it stands in."""
    keys = ".".join(map(str, path))
    if not keys:
        return file  # a rule over several keys
    place = {None: "", COMMAND_LINE: " (command line)"}.get(line, f" ({file}:{line})")
    return f"recipe key {keys}{place}"


def line_of(path: tuple[str, ...], lines: Mapping[tuple[str, ...], int]) -> int | None:
    """The line of a key, or of the section around it that is in the file; none if there is none."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return None


def problems_of(
    error: ValidationError,
    owner: type[BaseModel],
    prefix: tuple[str, ...],
    lines: Mapping[tuple[str, ...], int],
    file: str,
) -> list[UserError]:
    """One UserError for each key that pydantic complains about."""
    found: dict[tuple[str, ...], UserError] = {}
    for problem in error.errors(include_url=False):
        path = (*prefix, *_key_path(problem["loc"], owner))
        if path in found:
            continue  # further branches of one union
        where = place_of(path, file, line_of(path, lines))
        if problem["type"] == "extra_forbidden":
            names = _fields_at(owner, problem["loc"][:-1])
            near = difflib.get_close_matches(str(path[-1]), names, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(names))}"
            found[path] = UserError(f"unknown key {path[-1]!r}", where, fix)
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = repr(problem["input"])
            shown = given if len(given) <= 80 else given[:77] + "..."
            what, fix = f"{message}, not {shown}", _documentation(owner, problem["loc"])
            if problem["type"] == "value_error":
                what = message
            elif problem["type"] == "missing":
                what = f"the key {path[-1]!r} is missing"
            elif problem["type"] == "model_type":
                what = f"a section of keys is needed here, not {shown}"
                fix = f"known keys: {', '.join(_fields_at(owner, problem['loc']))}"
            found[path] = UserError(what, where, fix or "see `luthier schema` for what this key takes")
    return list(found.values())


def _documentation(owner: type[BaseModel], loc: Iterable[int | str]) -> str:
    """What the key that pydantic's location is in takes, in the recipe's own words; nothing for a whole section."""
    place: type[BaseModel] | None = owner
    text = ""
    for part in loc:
        field = place.model_fields.get(str(part)) if place is not None else None
        if place is None or field is None:
            break
        place = _model_of(place, part)
        text = "" if place else f"{part}: {' '.join((field.description or '').split())}"
    return text


def _key_path(loc: tuple[int | str, ...], owner: type[BaseModel]) -> tuple[str, ...]:
    """pydantic's location without the names of union branches, which are no keys of the recipe."""
    path: list[str] = []
    place: type[BaseModel] | None = owner
    for part in loc:
        if place is not None and part not in place.model_fields and path and part != loc[-1]:
            continue
        if place is None and isinstance(part, str) and (part in _SCALARS or "[" in part):
            continue
        path.append(str(part))
        place = _model_of(place, part) if place else None
    return tuple(path)


def _model_of(owner: type[BaseModel], name: int | str) -> type[BaseModel] | None:
    field = owner.model_fields.get(str(name))
    if field is None:
        return None
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _fields_at(owner: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    place: type[BaseModel] | None = owner
    for part in loc:
        place = (place and _model_of(place, part)) or place
    return list(place.model_fields) if place else []
