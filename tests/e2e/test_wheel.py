"""The wheel: what is in it, and (with `make test-wheel`) that it works in a fresh environment."""

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        ROOT,
    ]
    subprocess.run(command, check=True)
    (path,) = folder.glob("luthier-*.whl")
    return path


def files_below(folder, *patterns):
    found = (path for pattern in patterns for path in folder.rglob(pattern) if path.is_file())
    return {str(path.relative_to(folder)) for path in found if "__pycache__" not in path.parts}


def test_wheel_has_the_package_the_recipes_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    code = {
        f"luthier/{name}"
        for name in files_below(
            ROOT / "src/luthier", "*.py", "*.typed", "*.html", "*.jinja", "*.j2", "*.css", "*.js", "*.json"
        )
    }
    recipes = {f"luthier/recipes/{name}" for name in files_below(ROOT / "recipes", "*.yaml", "*.json")}
    assert {"luthier/recipes/demo.yaml", "luthier/recipes/schema.json"} <= recipes
    assert names == code | recipes


def test_wheel_names_command_and_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(f"{info}/entry_points.txt").decode())
        licence = archive.read(f"{info}/licenses/LICENSE").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert scripts["console_scripts"]["luthier"] == "luthier.cli:main"
    assert licence == (ROOT / "LICENSE").read_text()


@pytest.mark.skipif(
    "LUTHIER_TEST_WHEEL" not in os.environ, reason="installs a whole environment: make test-wheel"
)
@pytest.mark.timeout(1800)
def test_wheel_runs_from_an_empty_folder(wheel, tmp_path):
    """Install into a fresh environment, then init and run where there is nothing."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }

    def run(*command, cwd=tmp_path):
        return subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=environment,
            check=True,
            text=True,
            capture_output=True,
        ).stdout

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    # Constraints, not requirements: whatever the wheel itself does not ask for is not there.
    run(
        tmp_path / "venv/bin/python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        ROOT / "requirements.lock",
        wheel,
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    luthier = tmp_path / "venv/bin/luthier"
    assert "line-completion" in run(luthier, "list", cwd=empty)
    run(luthier, "init", "line-completion", cwd=empty)
    (recipe,) = empty.glob("*.yaml")
    small = [
        "data.source={type: stdlib}",
        "data.max_rows={train: 16, eval: 4, test: 4}",
        "train.max_steps=4",
        "train.num_samples=1",
    ]
    output = run(luthier, "run", recipe.name, "--run", "first", *small, cwd=empty)
    assert "report.html" in output.splitlines()[-1]
    assert (empty / "first/report.html").stat().st_size > 10_000
