"""The verbs one after the other, on a real run of the tiny model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fixtures.tiny_run import write_recipe
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import luthier as api
from luthier import cli, rows

FILES = Path(__file__).parents[2] / "docs/reference/files.md"


def process(folder, *arguments):
    """A verb in a process of its own."""
    command = [sys.executable, "-m", "luthier", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a recipe and, as ``run``, what it gave; and what was printed."""
    folder = tmp_path_factory.mktemp("commands")
    write_recipe(folder, train={"max_steps": 6, "checkpoint_every_steps": None})
    done = process(folder, "run", "recipe.yaml", "--run", "run")
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture
def luthier(finished, monkeypatch):
    """Runs a verb there, in this process."""
    folder, _ = finished
    monkeypatch.chdir(folder)

    def call(*arguments, stdin=None):
        return CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"}).invoke(
            cli.app, list(arguments), input=stdin
        )

    call.folder = folder
    return call


@pytest.mark.slow
def test_run_ends_with_the_page_and_speaks_only_of_itself(finished):
    folder, done = finished
    assert done.stdout.splitlines()[-1] == "report: run/report.html"
    assert (folder / "run/report.html").is_file()
    assert any(line.startswith("bits_per_byte") for line in done.stdout.splitlines())
    noise = ("Loading weights", "Warning", "warning", "it/s", "huggingface", "INFO")
    assert not [line for line in done.stderr.splitlines() if any(word in line for word in noise)]


@pytest.mark.slow
def test_check_json_is_all_of_standard_output(finished):
    done = process(finished[0], "check", "run", "--json", "seed=1", "--run", "other")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"ok", "findings", "passed", "skipped"} <= set(result) and result["ok"] is True
    assert "check: " in done.stderr, "what is said goes elsewhere"


@pytest.mark.slow
def test_generate_from_argument_file_and_pipe(luthier):
    prompt = "def item(name):\n    name = name + 1"
    (luthier.folder / "prompt.txt").write_text(prompt)
    said = [
        luthier("generate", "run", "--prompt", prompt),
        luthier("generate", "run", "--prompt-file", "prompt.txt"),
        luthier("generate", "run", stdin=prompt + "\n    "),
    ]
    assert all(done.exit_code == 0 for done in said), said
    assert len({done.stdout for done in said}) == 1
    assert "white space at the end of the prompt" in said[2].stderr
    base = luthier("generate", "run", "--prompt", prompt, "--base", "--max-new-tokens", "3")
    assert base.exit_code == 0 and base.stdout != said[0].stdout
    assert luthier("generate", "run", "--prompt", " \n").exit_code == 2


@pytest.mark.slow
def test_merge_gives_a_plain_model(luthier):
    done = luthier("merge", "run", "merged")
    assert done.exit_code == 0, done.stderr
    AutoModelForCausalLM.from_pretrained(luthier.folder / "merged")
    again = luthier("merge", "run", "merged")
    assert again.exit_code == 2 and "exists already" in again.stderr


@pytest.mark.slow
def test_show_status_report_and_compare(luthier):
    shown = luthier("show", "run", "--split", "test", "--rows", "2")
    assert shown.exit_code == 0 and shown.stdout.count("test[") == 2, shown.stderr
    status = luthier("status", "run").stdout
    assert "6 of 6 (100%)" in status and "prepare, check, train, evaluate, report" in status
    assert luthier("report", "run").exit_code == 0
    assert luthier("compare", "run", "run", "--require", "not-worse").exit_code == 0


@pytest.mark.slow
def test_a_failed_stage_says_how_to_go_on(luthier):
    done = luthier("train", "run", "train.learning_rate=0.5")
    assert done.exit_code == 2
    assert "other settings" in done.stderr and "saved in run: rows (data/manifest.json)" in done.stderr
    # ... and leaves the folder as it was: the recipe in it is still that of the training in it.
    assert "learning_rate: 0.5" not in Path("run/recipe.yaml").read_text()
    assert luthier("evaluate", "run").exit_code == 0


def keys(value):
    """Names of all keys of a JSON value, those of values below it too."""
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {name for part in below for name in keys(part)} | set(value if isinstance(value, dict) else ())


@pytest.mark.slow
def test_files_hold_what_the_reference_says(finished):
    """Each key of each file stands in its section of docs/reference/files.md, and each file in the first table."""
    run = finished[0] / "run"
    sections = {part.partition("\n")[0].strip("# "): part for part in FILES.read_text().split("\n## ")}
    named = {title: set(re.findall(r"`([\w.]+)`|\"(\w+)\":", text)) for title, text in sections.items()}
    known = {title: {one or other for one, other in pairs} for title, pairs in named.items()}

    def read(name):
        text = (run / name).read_text()
        return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)

    scores, manifest, ledger, environment = map(
        read, ("scores.json", "data/manifest.json", "data/ledger.json", "environment.json")
    )
    tasks_own = {"metrics", "macro", "mcnemar"}  # by metric
    assert set(scores) | keys(list(scores["metrics"].values())) <= known["scores.json"]
    assert tasks_own <= known["scores.json"] and set(manifest) <= known["data/manifest.json"]
    assert set(environment) <= known["environment.json"]
    for part in ("records", "rows"):
        ledger[part]["dropped"] = list(ledger[part]["dropped"].values())  # by reason
    ledger["splits"] = list(ledger["splits"].values())
    for split in ledger["splits"]:
        split["trimmed"] = list(split["trimmed"].values())  # by span
    assert keys(ledger) <= known["data/ledger.json"]
    findings = read("findings.json")
    findings |= {
        "seen": None,
        "seconds": None,
        "findings": [{**one, "measured": 0, "expected": 0} for one in findings["findings"]],
    }
    assert keys(findings) - keys(findings["subject"]) <= known["findings.json"]
    assert keys(read("history.jsonl")) <= known["history.jsonl"] | known["findings.json"]
    predictions = [{**one, "meta": None} for one in read("predictions.jsonl")]
    for one in predictions:
        one["base"]["scores"] = one["tuned"]["scores"] = None  # by metric
    assert keys(predictions) <= known["predictions.jsonl"]
    assert keys(read("data/dropped.jsonl")) <= known["data/dropped.jsonl"]
    assert set(rows.SCHEMA.names) <= known["data/train.arrow, data/eval.arrow, data/test.arrow"]
    first = re.findall(r"^\| (`.*?) \|", sections["Files of a run folder"], re.MULTILINE)
    told = {name.partition("/")[0] for cell in first for name in re.findall(r"`([^`]+)`", cell)}
    assert {path.name for path in run.iterdir()} <= told


@pytest.mark.slow
def test_the_reference_reads_rows_as_it_shows(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished[0])
    (code,) = re.findall(r"^```python\n(.*?)^```$", FILES.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(code.replace("runs/demo", "run"), str(FILES), "exec"), {})
    assert re.match(r"\d+ ", capsys.readouterr().out)


@pytest.mark.slow
def test_python_does_the_same(luthier, monkeypatch):
    monkeypatch.chdir(luthier.folder)
    place = api.check("recipe.yaml", folder="run")
    assert isinstance(place, api.RunFolder)
    assert api.prepare(api.load("recipe.yaml"), folder="run").path == place.path
