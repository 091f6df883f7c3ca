"""The recipes that luthier ships, and the schema that editors read beside them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier import recipe_file

RECIPES = Path(__file__).parents[2] / "recipes"


def test_schema_file_is_in_step():
    # In a process of its own: what other tests register in this one is no part of it.
    command = [sys.executable, "-m", "luthier", "schema"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads((RECIPES / "schema.json").read_text()) == json.loads(printed), "run: make schema"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipe_is_valid_and_points_at_the_schema(path):
    loaded = recipe_file.load(path)
    assert loaded.description
    first = path.read_text().partition("\n")[0]
    assert first == f"# yaml-language-server: $schema={os.path.relpath(RECIPES / 'schema.json', path.parent)}"


def test_shipped_recipes_are_found_by_name():
    assert {"demo", "line-completion", "instruction"} <= set(recipe_file.shipped_recipes())
