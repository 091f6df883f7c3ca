"""A tree of plain values as a recipe: defaults filled in, stages laid over it, all problems reported at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from luthier import registry
from luthier.errors import UserError, UserErrors
from luthier.recipe.options import Options
from luthier.recipe.problems import line_of, place_of, problems_of
from luthier.recipe.whole import TYPED, Recipe

# Begins what names the result of an earlier training stage, in ``model.name`` and ``model.start_from``.
STAGE = "stage:"


def validate(
    given: Mapping[str, Any],
    lines: Mapping[tuple[str, ...], int] | None = None,
    file: str = "recipe",
    errors: Sequence[UserError] = (),
) -> Recipe:
    """The recipe of a tree, with every default filled in, the tasks' and sources' own included.

    Raises:
        UserErrors: All problems at once.
    """
    lines = lines or {}
    problems = list(errors)
    try:
        tree: dict[str, Any] = json.loads(json.dumps(given, default=str))  # an own copy, of plain values
    except (TypeError, ValueError, RecursionError) as error:  # a date as a key, a number of 5,000 digits
        raise UserErrors(
            [*problems, UserError(f"no plain keys and values: {error}", file, "use text as keys")]
        ) from error
    problems += _resolve(tree, lines, file)
    stages = tree.get("stages")
    for name in stages if isinstance(stages, dict) else ():
        problems += _stage_problems(tree, name, lines, file, problems)
    if problems:
        raise UserErrors(problems)
    return Recipe.model_validate(tree)


def _resolve(tree: dict[str, Any], lines: Mapping[tuple[str, ...], int], file: str) -> list[UserError]:
    """Fills in the defaults of tasks and sources; all problems of the tree."""
    problems: list[UserError] = []
    try:
        Recipe.model_validate(tree)
    except ValidationError as error:
        problems += problems_of(error, Recipe, (), lines, file)
    for path, kind in TYPED.items():
        options: Any = tree
        for name in path:
            options = options.get(name) if isinstance(options, dict) else None
        if options is None:
            options = Recipe().model_dump()
            for name in path:
                options = options[name]
        if options is None or not isinstance(options, dict):
            continue  # absent by choice, or reported above
        line = line_of(path, lines)
        try:
            if not isinstance(options.get("type"), str):
                raise UserError(
                    f"a {kind} needs a type",
                    place_of(path, file, line),
                    f"one of: {', '.join(registry.registered(kind))}",
                )
            where = place_of((*path, "type"), file, line_of((*path, "type"), lines))
            entry = options_class(kind, registry.lookup(kind, options["type"], where), where)
            built = entry(**{key: value for key, value in options.items() if key != "type"})
            options.update(built.model_dump(mode="json"))
            section = tree if len(path) == 1 else tree.setdefault(path[0], {})
            if isinstance(section, dict):  # else it is reported above
                section[path[-1]] = options
        except ValidationError as error:
            problems += problems_of(error, entry, path, lines, file)
        except UserError as error:
            problems.append(error)
    for section, list_name, kind in (("evaluate", "metrics", "metric"), ("check", "waive", "check")):
        options = tree.get(section)
        named = options.get(list_name) if isinstance(options, dict) else None
        for index, name in enumerate(named if isinstance(named, list) else ()):
            key = (section, list_name, str(index))
            try:
                if isinstance(name, str):  # else it is reported above
                    registry.lookup(kind, name, place_of(key, file, line_of(key, lines)))
            except UserError as error:
                problems.append(error)
    return problems


def options_class(kind: str, entry: Any, where: str) -> type[Options]:
    """A registered task or source, which has to be a class whose fields are its options."""
    if not (isinstance(entry, type) and issubclass(entry, Options)):
        base = f"luthier.{kind}s.{kind.capitalize()}"
        raise UserError(
            f"the {kind} {entry.__qualname__} is no class of options", where, f"derive it from {base}"
        )
    return entry


def stage(recipe: Recipe, name: str) -> Recipe:
    """The recipe of one of a recipe's stages: its keys, and where it goes on from."""
    return validate(_stage_tree(recipe.model_dump(mode="json"), name))


def _stage_tree(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    stages: Mapping[str, dict[str, Any]] = tree["stages"]
    names = list(stages)
    place = names.index(name)
    whole: dict[str, Any] = json.loads(json.dumps({key: tree[key] for key in tree if key != "stages"}))
    given = stages[name] if isinstance(stages[name], dict) else {}
    merged: dict[str, Any] = _merged(whole, given)
    merged["name"] = f"{tree.get('name', Recipe().name)}-{name}"
    model, own = merged.setdefault("model", {}), given.get("model") or {}
    if not place or not isinstance(model, dict) or {"name", "start_from", "scratch"} & set(own):
        return merged
    before = _stage_tree(tree, names[place - 1])["model"]
    if not isinstance(before, dict):
        return merged  # reported of that stage
    earlier = f"{STAGE}{names[place - 1]}"
    if before.get("adapter", {}) is None:
        model |= {"name": earlier, "revision": None, "scratch": None, "start_from": None}
    else:
        model |= {key: before[key] for key in ("name", "revision") if key in before} | {"start_from": earlier}
    # Tokens and positions of a whole or merged model are in it.
    inside = model["start_from"] is None or model.get("start_mode") == "merge"
    for key, none in (("new_tokens", []), ("rope", None)):
        model[key] = own.get(key, none if inside else before.get(key, none))
    return merged


def _merged(base: Any, own: Any) -> Any:
    """A section with what a stage has otherwise; a task or source of another type takes its place."""
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    if own.get("type", base.get("type")) != base.get("type"):
        return own
    return {**base, **{key: _merged(base.get(key), value) for key, value in own.items()}}


def _stage_problems(
    tree: Mapping[str, Any],
    name: str,
    lines: Mapping[tuple[str, ...], int],
    file: str,
    known: Sequence[UserError],
) -> list[UserError]:
    """What is wrong in a stage alone, with its name."""
    own = tree["stages"][name]
    if not isinstance(own, dict):
        return []  # reported with the recipe
    path = ("stages", name)
    found = [
        UserError(
            f"a stage has no {key!r}",
            place_of((*path, key), file, line_of((*path, key), lines)),
            "leave it out",
        )
        for key in ("name", "stages")
        if key in own
    ]
    if not found:
        inner = {key[2:]: line for key, line in lines.items() if key[:2] == path and len(key) > 2}
        whole = _stage_tree(tree, name)
        found = _resolve(whole, {**lines, **inner}, file) + _unknown_stages(
            tree, name, whole, {**lines, **inner}, file
        )
    said = {(error.what, error.where) for error in known}
    return [
        UserError(f"stage {name!r}: {error.what}", error.where, error.fix)
        for error in found
        if (error.what, error.where) not in said
    ]


def _unknown_stages(
    tree: Mapping[str, Any],
    name: str,
    whole: Mapping[str, Any],
    lines: Mapping[tuple[str, ...], int],
    file: str,
) -> list[UserError]:
    """References to stages that do not come before this one."""
    names = list(tree["stages"])
    earlier = [f"{STAGE}{one}" for one in names[: names.index(name)]]
    model = whole["model"] if isinstance(whole["model"], dict) else {}
    return [
        UserError(
            f"{given!r} is no earlier stage",
            place_of(("model", key), file, line_of(("model", key), lines)),
            f"one of: {', '.join(earlier)}" if earlier else "the first stage starts from a model: name one",
        )
        for key in ("name", "start_from")
        if isinstance(given := model.get(key), str) and given.startswith(STAGE) and given not in earlier
    ]
