"""The recipes that luthier ships, and the schema that editors read beside them."""

import json
import os
from pathlib import Path

import pytest

from luthier import recipe, recipe_file

RECIPES = Path(__file__).parents[2] / "recipes"


def test_schema_file_is_in_step():
    assert json.loads((RECIPES / "schema.json").read_text()) == recipe.schema(), "run: make schema"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipe_is_valid_and_points_at_the_schema(path):
    loaded = recipe_file.load(path)
    assert loaded.description
    first = path.read_text().partition("\n")[0]
    assert first == f"# yaml-language-server: $schema={os.path.relpath(RECIPES / 'schema.json', path.parent)}"


def test_shipped_recipes_are_found_by_name():
    assert {"demo", "line-completion", "instruction"} <= set(recipe_file.shipped_recipes())
