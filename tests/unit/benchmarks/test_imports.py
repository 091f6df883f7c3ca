"""Scripts that run for hours import what they need when they need it: all of it exists."""

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = [path for folder in ("benchmarks", "studies") for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Modules of Luthier and the names that are taken from them."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "luthier":
            for name in node.names:
                modules[name.asname or name.name] = f"{node.module}.{name.name}"
                yield str(node.module), name.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id, "")
            if module.count(".") == 1 and _is_module(module):
                yield module, node.attr


def _is_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_takes_from_luthier_exists(script: Path) -> None:
    for module, name in imported(ast.parse(script.read_text(encoding="utf-8"))):
        found = importlib.import_module(module)
        assert hasattr(found, name) or _is_module(f"{module}.{name}"), f"{module} has no {name}"
