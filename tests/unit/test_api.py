"""The public names of the package."""

import importlib
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import luthier
from luthier import pipeline, registry

STAGES = ("run", "prepare", "check", "train", "evaluate", "report")


@pytest.mark.parametrize("name", luthier.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(luthier, name)
    assert name in dir(luthier)
    assert name == "__version__" or inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = luthier.no_such_name


@pytest.mark.parametrize("name", STAGES)
def test_stages_stay_functions_when_their_folder_is_imported(name):
    if name != "run":
        assert isinstance(importlib.import_module(f"luthier.{name}"), ModuleType)
    assert getattr(luthier, name) is getattr(pipeline, name)


def test_decorators_are_the_registry_s():
    for kind in ("task", "source", "metric", "model"):
        assert getattr(luthier, kind) is getattr(registry, kind)
    assert luthier.registry.check is registry.check


def test_version_is_the_installed_one():
    from importlib.metadata import version

    assert luthier.__version__ == version("luthier")


def test_importing_luthier_imports_nothing_heavy():
    code = (
        "import sys, luthier, luthier.cli\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'plotly', 'pyarrow', 'peft', 'numpy'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
