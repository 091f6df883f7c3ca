"""The JSON schema of recipes, for editors."""

from __future__ import annotations

from typing import Any

from luthier import registry
from luthier.recipe.validation import options_class
from luthier.recipe.whole import TYPED, Recipe


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe, with every registered task and source, for editors."""
    result = Recipe.model_json_schema()
    stages = result["properties"]["stages"]  # each is a recipe that need not be whole
    stages["patternProperties"] = {name: {"$ref": "#"} for name in stages["patternProperties"]}
    for path, kind in TYPED.items():
        variants = []
        for name, entry in registry.registered(kind).items():
            variant = options_class(kind, entry, f"@{kind}({name!r})").model_json_schema()
            result["$defs"].update(variant.pop("$defs", {}))
            variant["properties"] = {
                "type": {"const": name, "description": registry.summary(entry)},
                **variant.get("properties", {}),
            }
            variant["required"] = ["type", *variant.get("required", [])]
            variant["title"] = name
            variants.append(variant)
        place = result if len(path) == 1 else result["$defs"][path[0].capitalize()]
        described = place["properties"][path[-1]].get("description", "")
        empty = [{"type": "null"}] if path[-1] in ("eval_source", "test_source", "bugs") else []
        place["properties"][path[-1]] = {"anyOf": variants + empty, "description": described}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **result}
