"""The example plug-in, installed as a package: its entry points, and a recipe that uses all it adds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fixtures.tiny_model import save_model

PLUGIN = Path(__file__).parents[1] / "plugin_example"


@pytest.fixture(scope="module")
def luthier(tmp_path_factory):
    """Runs luthier where the plug-in is installed, in a folder of its own beside the environment."""
    folder = tmp_path_factory.mktemp("site")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        folder,
    ]
    subprocess.run([*install, PLUGIN], check=True)
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200", "NO_COLOR": "1"}

    def run(*arguments, cwd):
        command = [sys.executable, "-m", "luthier", *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Overrides that put a tiny random model in place of the recipe's, which takes longer than a test may."""
    folder = save_model(tmp_path_factory.mktemp("model") / "tiny")
    return [f"model.name={folder}", "check.waive=[initial-loss]"]


def test_plugin_is_listed(luthier, tmp_path):
    done = luthier("list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (
        ("sums", "Sums of two whole numbers, made up by a seed."),
        ("question-answer", "An answer from a question, each on a line of its own."),
        ("same_number", "Share of outputs whose first whole number is that of the target"),
        ("numbers-only", "Every answer of the training rows is a whole number."),
    ):
        assert any(all(part in shown for part in line) for shown in done.stdout.splitlines()), (
            line,
            done.stdout,
        )


def test_recipe_with_the_plugin_runs(luthier, tiny, tmp_path):
    done = luthier("run", PLUGIN / "recipe.yaml", *tiny, "--run", "sums", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    findings = json.loads((tmp_path / "sums/findings.json").read_text())
    assert "numbers-only" in findings["passed"]
    scores = json.loads((tmp_path / "sums/scores.json").read_text())
    assert {"exact_match", "same_number", "bits_per_byte"} <= set(scores["metrics"])
    assert "Same number" in (tmp_path / "sums/report.html").read_text()


def test_check_of_the_plugin_stops_a_run(luthier, tiny, tmp_path):
    """The same recipe with its columns swapped: answers such as "1 + 2 =" are no numbers."""
    swapped = ["task.question=answer", "task.answer_field=question"]
    done = luthier("check", PLUGIN / "recipe.yaml", "--run", "swapped", *tiny, *swapped, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "numbers-only" in done.stdout + done.stderr


def test_plugin_that_does_not_import_is_named(luthier, tmp_path):
    broken = tmp_path / "broken"
    (broken / "broken-1.dist-info").mkdir(parents=True)
    (broken / "broken-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (broken / "broken-1.dist-info/entry_points.txt").write_text(
        "[luthier.plugins]\nours = no_such_module_here\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(broken)}
    command = [sys.executable, "-m", "luthier", "list"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = " ".join((done.stdout + done.stderr).split())
    assert "'ours' does not import" in said and "package broken" in said and "Traceback" not in said
