"""The command line: what each verb prints and how it ends; the stages themselves are tested elsewhere."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from tests.fixtures import tiny_trainer
from tests.fixtures.synthetic_run import write_run
from tests.fixtures.tiny_model import make_tokenizer
from tests.fixtures.tiny_run import write_code
from typer.testing import CliRunner

from luthier import cli, opening, pipeline, recipe, recipe_file, registry
from luthier.check.catalogue import ENTRIES
from luthier.cli import explained, failures, frame, launching, screen, starter
from luthier.display.text import duration
from luthier.encoding.encode import encode
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import Interrupted, Refused, UserError, UserErrors
from luthier.records import SPLITS, Example, Span
from luthier.rows import RowWriter, to_batch
from luthier.run_folder import RunFolder, read_json, write_json, write_text

STAGES = ("run", "prepare", "check", "train", "evaluate", "report")
VERBS = (
    *STAGES, "launch", "audit", "show", "generate", "merge", "compare", "list", "schema", "init", "status", "explain", "plan",
)  # fmt: skip


@pytest.fixture
def luthier():
    """Runs a command line in this process; a pipe, so without colour."""

    def run(*arguments, **settings):
        environment = {"NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"}
        return CliRunner(env=environment).invoke(cli.app, [str(part) for part in arguments], **settings)

    return run


@pytest.fixture
def recipe_yaml(tmp_path):
    """A small valid recipe."""
    path = tmp_path / "my.yaml"
    path.write_text("name: mine\n")
    return path


@pytest.fixture
def stage(monkeypatch):
    """Puts a function in the place of a stage: it gets the recipe and the run folder."""

    def replace(name, function):
        def stand_in(read, *overrides, folder, progress, **options):
            assert not overrides
            place = RunFolder(folder)
            function(read, place, **options)
            return place

        monkeypatch.setattr(pipeline, name, stand_in)

    return replace


def fail(error):
    def function(read, place):
        raise error

    return function


# Help


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_an_example(luthier, verb):
    done = luthier(verb, "--help")
    assert done.exit_code == 0
    assert f"$ luthier {verb}" in done.stdout or f"| luthier {verb}" in done.stdout


def test_help_names_every_verb_and_the_exit_codes(luthier):
    done = luthier("--help")
    assert all(re.search(rf"\b{verb}\b", done.stdout) for verb in VERBS)
    assert "1 a finding or gate says no" in done.stdout


def examples():
    """The command lines that the help of all verbs and the greeting show, by verb."""
    commands = typer.main.get_command(cli.app).commands
    texts = [command.help for command in commands.values()] + [cli.app.info.help, frame._GREETING]
    for text in texts:
        for line in re.findall(r"(?<!`)\bluthier ([a-z]+ .*|[a-z]+)$", text, re.M):
            words = shlex.split(re.split(r"(?<![' ]) {2,}| \| | > |, then", line)[0])
            yield pytest.param(commands[words[0]], words[1:], id=line)


@pytest.mark.parametrize(("command", "words"), list(examples()))
def test_examples_of_the_help_are_taken(command, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("name: mine\n")
    given = command.make_context(command.name, list(words)).params
    if str(given.get("recipe", "runs/")).startswith("runs/"):
        return  # a run folder, whose verbs are tested on one
    _, keys = launching.told_apart(given.get("slurm"), given["overrides"] or ())
    recipe_file.load(given["recipe"], [*keys, *(text.partition(",")[0] for text in given.get("sweep") or ())])


def test_luthier_alone_greets_and_points_on(luthier):
    done = luthier()
    assert done.exit_code == 0 and done.stderr == ""
    assert re.match(r"Luthier \d+\.\d+\.\d+ fine-tunes code language models", done.stdout)


def test_version(luthier):
    assert re.fullmatch(r"luthier \d+\.\d+\.\d+\n", luthier("--version").stdout)


def test_mistakes_on_the_command_line_itself(luthier):
    assert luthier("rum", "x").exit_code == 2
    assert luthier("run").exit_code == 2
    assert luthier("run", "demo", "--no-such-option").exit_code == 2


# Errors


def test_a_mistake_is_what_where_fix_and_2(luthier, stage, recipe_yaml, tmp_path):
    stage("run", fail(UserError("too few rows: 3", "recipe key data", "take more")))
    done = luthier("run", recipe_yaml, "--run", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "too few rows: 3\n  where: recipe key data\n  fix:   take more\n"


def test_all_mistakes_of_a_recipe_at_once(luthier, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("nmae: x\ntrain:\n  epochs: -1\ntask:\n  type: line-complection\n")
    done = luthier("check", path, "train.batch_size=0")
    assert done.exit_code == 2
    assert done.stderr.count("  where: ") == 4
    assert f"({path}:3)" in done.stderr and "(command line)" in done.stderr
    assert "did you mean 'name'?" in done.stderr and "did you mean 'line-completion'?" in done.stderr
    assert "epochs: Passes over the training rows" in done.stderr, "the fix quotes the key's documentation"


@pytest.mark.parametrize(
    ("override", "place", "said"),
    [
        ("evaluate.metrics=[exact_match,exact_mach]", "evaluate.metrics.1", "there is no metric named 'exact_mach'"),
        ("train.betas=[0.9,1]", "train.betas.1", "Input should be less than 1, not 1"),
        ("report.smoothing_window=3", "report.smoothing_window", "Input should be greater than or equal to 5, not 3"),
    ],
)  # fmt: skip
def test_what_would_end_a_run_late_is_a_mistake_of_the_recipe(override, place, said):
    with pytest.raises(UserErrors) as caught:
        recipe_file.with_overrides({}, [override])
    [error] = caught.value.errors
    assert (error.what, error.where) == (said, f"recipe key {place} (command line)")


def test_a_tree_with_keys_that_are_no_text_is_a_mistake():
    tree = {"train": {("epochs",): 2}}
    with pytest.raises(UserErrors, match="no plain keys and values"):
        recipe_file.with_overrides(tree, ["train.batch_size=4"])
    assert tree == {"train": {("epochs",): 2}}, "what was given stays as it was"


@pytest.mark.parametrize("key", ["train.micro_batch_tokens", "data.num_workers", "repair.num_beams"])
def test_a_number_too_small_for_a_key_that_may_be_auto_is_one_mistake_of_that_key(key):
    with pytest.raises(UserErrors) as caught:
        recipe_file.with_overrides({}, [f"{key}=0"])
    [error] = caught.value.errors
    assert error.where == f"recipe key {key} (command line)"
    assert error.what == "Input should be greater than or equal to 1, not 0"


def test_a_gate_is_1_and_says_what_is_saved(luthier, stage, recipe_yaml, tmp_path):
    def refuse(read, place):
        write_json(place.manifest, {})
        (place.checkpoints / "step-40").mkdir(parents=True)
        (place.checkpoints / "step-9").mkdir()
        raise Refused("the loss is nan", "row 3", "lower the rate")

    stage("train", refuse)
    done = luthier("train", recipe_yaml, "--run", tmp_path / "out")
    assert done.exit_code == 1
    assert "the loss is nan" in done.stderr
    assert "rows (data/manifest.json)" in done.stderr and "checkpoint (checkpoints/step-40)" in done.stderr
    assert "the same command again" in done.stderr


def test_ctrl_c_is_1_and_says_what_is_saved(luthier, stage, recipe_yaml, tmp_path):
    def interrupt(read, place):
        write_json(place.manifest, {})
        raise KeyboardInterrupt

    stage("run", interrupt)
    done = luthier("run", recipe_yaml, "--run", tmp_path / "out")
    assert done.exit_code == 1
    assert "interrupted" in done.stderr and "rows (data/manifest.json)" in done.stderr


def test_a_defect_is_3_and_its_traceback_is_in_the_log(luthier, stage, recipe_yaml, tmp_path):
    def defect(read, place):
        opening.open_run(read, (), place.path)
        raise ZeroDivisionError("a bug of ours")

    stage("train", defect)
    done = luthier("train", recipe_yaml, "--run", tmp_path / "out")
    assert done.exit_code == 3
    assert "defect of luthier" in done.stderr and "ZeroDivisionError: a bug of ours" in done.stderr
    assert "run.log" in done.stderr and "Traceback" not in done.output
    assert "Traceback" in (tmp_path / "out/run.log").read_text()
    assert "Traceback" in luthier("--debug", "train", recipe_yaml, "--run", tmp_path / "out").stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("no room"), "memory is used up: no room"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory is used up"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "the disk is full"),
        (OSError(errno.EACCES, "Permission denied", "/x/y"), "cannot read or write: Permission denied"),
    ],
)
def test_limits_of_the_machine_are_no_defects(luthier, stage, recipe_yaml, tmp_path, error, said):
    stage("run", fail(error))
    done = luthier("run", recipe_yaml, "--run", tmp_path / "out")
    assert done.exit_code == 2
    assert said in done.stderr and "  where: " in done.stderr and "  fix: " in done.stderr


def test_a_folder_does_not_hide_the_shipped_recipe_of_its_name(luthier, stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    stage("report", lambda read, place: seen.append(read.name))
    (tmp_path / "demo").mkdir()
    assert luthier("report", "demo").exit_code == 0 and seen == ["demo"]
    (tmp_path / "other").mkdir()
    assert luthier("report", "other").exit_code == 2


def test_a_missing_file_that_nobody_named_is_a_defect():
    assert failures.as_user_error(FileNotFoundError(errno.ENOENT, "x", "y")) is None


def test_mistakes_inside_mistakes_are_all_told():
    nested = UserErrors(
        [UserError("a", "b", "c"), UserErrors([UserError("d", "e", "f"), UserError("g", "h", "i")])]
    )
    assert [error.what for error in nested.errors] == ["a", "d", "g"]


def test_text_from_data_cannot_steer_the_terminal(luthier, stage, recipe_yaml, tmp_path, caplog):
    stage("run", fail(UserError("row \x1b[31m\x07[bold]x[/nope]\ud800", "w", "f")))
    done = luthier("run", recipe_yaml, "--run", tmp_path / "out")
    assert done.exit_code == 2
    assert done.stderr.startswith("row \\x1b[31m\\x07[bold]x[/nope]\\ud800\n")
    assert "row \\x1b[31m" in caplog.text and "\x1b" not in caplog.text, "nor whoever reads the log"


# Messages


def test_third_parties_warnings_go_to_the_log_only_and_ours_are_shown(luthier, stage, recipe_yaml, tmp_path):
    own = str(Path(cli.__file__))

    def warn(read, place):
        opening.open_run(read, (), place.path)
        screen._log_warning("noise", UserWarning, "/usr/lib/other.py", 3)
        screen._log_warning("mind this", UserWarning, own, 3)
        write_run(place.path)

    stage("train", warn)
    done = luthier("train", recipe_yaml, "--run", tmp_path / "out")
    assert "mind this" in done.stderr and "noise" not in done.output
    log = (tmp_path / "out/run.log").read_text()
    assert "noise" in log and "mind this" in log


def write_prepared(run):
    write_run(run.path, stage="prepare", hostile=True)
    files = {f"{split}.arrow": f"{number}123456789abcdef" * 4 for number, split in enumerate(SPLITS)}
    write_json(run.manifest, {"files": files})


def test_the_log_of_one_run_is_not_written_by_the_next(luthier, stage, recipe_yaml, tmp_path):
    def prepare(read, place):
        opening.open_run(read, (), place.path)
        opening.logger.info("in %s", place.path.name)
        write_prepared(place)

    stage("prepare", prepare)
    for name in ("one", "two"):
        assert luthier("prepare", recipe_yaml, "--run", tmp_path / name).exit_code == 0
    assert "in two" not in (tmp_path / "one/run.log").read_text()
    assert "in two" in (tmp_path / "two/run.log").read_text()


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(screen.time, "monotonic", lambda: float(next(clock)))
    with screen.progress() as progress:
        for done in range(10):
            progress("encoding", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("encoding  0/100")
    assert 2 <= len(lines) <= 5
    assert lines[-1].endswith("left")


def test_durations():
    assert [duration(s) for s in (0.4, 59, 200, 3900)] == ["0 s", "59 s", "3:20", "1:05:00"]


# Stages


def test_run_prints_the_comparison_and_last_the_page(luthier, stage, recipe_yaml, tmp_path):
    stage("run", lambda read, place: write_run(place.path))
    done = luthier("run", recipe_yaml, "--run", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'out/report.html'}"
    row = next(line for line in done.stdout.splitlines() if line.startswith("bits_per_byte"))
    assert row.split()[1:3] == ["0.7516", "0.5019"] and row.rstrip().endswith("better")
    assert "McNemar p = 0.0004" in done.stdout


def test_an_interval_with_zero_is_no_clear_difference(luthier, stage, recipe_yaml, tmp_path):
    stage("evaluate", lambda read, place: write_run(place.path, clear=False))
    done = luthier("evaluate", recipe_yaml, "--run", tmp_path / "out")
    assert done.stdout.count("no clear difference") == 6 and "better" not in done.stdout


def test_worse_is_called_worse_and_too_few_groups_so(luthier, stage, recipe_yaml, tmp_path):
    def worse(read, place):
        run = write_run(place.path)
        scores = read_json(run.scores)
        scores["metrics"]["bits_per_byte"] |= {"difference": 0.1, "interval": [0.05, 0.15]}
        scores["metrics"]["exact_match"] |= {"base": None, "difference": None, "interval": None}
        write_json(run.scores, scores)

    stage("evaluate", worse)
    out = luthier("evaluate", recipe_yaml, "--run", tmp_path / "out").stdout
    lines = [line.rstrip() for line in out.splitlines()]
    assert next(line for line in lines if line.startswith("bits_per_byte")).endswith("worse")
    assert next(line for line in lines if line.startswith("exact_match")).endswith("too few groups to tell")


def test_overrides_and_folder_reach_the_stage(luthier, stage, recipe_yaml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    stage("report", lambda read, place: seen.append((read.train.epochs, place.path)))
    luthier("report", recipe_yaml, "--run", tmp_path / "x", "train.epochs=3")
    luthier("report", recipe_yaml)
    write_text(tmp_path / "x/recipe.yaml", "train: {epochs: 7}\n")
    luthier("report", tmp_path / "x")
    assert seen == [(3.0, tmp_path / "x"), (1.0, Path("runs/mine")), (7.0, tmp_path / "x")]


def test_prepare_prints_rows_drops_and_trims(luthier, stage, recipe_yaml, tmp_path):
    stage("prepare", lambda read, place: write_prepared(place))
    done = luthier("prepare", recipe_yaml, "--run", tmp_path / "out")
    assert done.exit_code == 0
    assert re.search(r"train +4,000 +1,046 +1,588,000 +24% +441 +512 +0123456789abcdef$", done.stdout, re.M)
    assert re.search(r"records +near-duplicate +58 +no, by a rule", done.stdout)
    assert "trimmed: 308,000 tokens of context in 1,333 train rows" in done.stdout
    assert "0.9% dropped of a budget of 5%" in done.stdout


def test_check_prints_findings_and_counts(luthier, stage, recipe_yaml, tmp_path):
    stage("check", lambda read, place: write_run(place.path, stage="check"))
    done = luthier("check", recipe_yaml, "--run", tmp_path / "out")
    assert done.exit_code == 0
    assert "error (waived) target-boundary" in done.stdout
    assert "ok: 1 error, 1 warning, 1 note; 10 checks passed, 1 skipped" in done.stdout


@pytest.mark.parametrize("ok", [True, False])
def test_check_json_is_one_object_and_decides_the_exit(luthier, stage, recipe_yaml, tmp_path, ok):
    def found(read, place):
        run = write_run(place.path, stage="check")
        write_json(run.findings, read_json(run.findings) | {"ok": ok})
        opening.logger.info("said besides")

    stage("check", found)
    done = luthier("check", recipe_yaml, "--json", "--run", tmp_path / "out")
    assert done.exit_code == (0 if ok else 1)
    assert "said besides" in done.stderr
    result = json.loads(done.stdout)
    assert result["ok"] is ok and {"findings", "passed", "skipped"} <= set(result)


def test_check_passes_on_quick_and_prints_what_was_looked_at(luthier, stage, recipe_yaml, tmp_path):
    given = []

    def found(read, place, **options):
        given.append(options)
        run = write_run(place.path, stage="check")
        more = {"seconds": {"padding": 0.5}, "seen": {"padding": "16 rows"}, "quick": True}
        write_json(run.findings, read_json(run.findings) | more)

    stage("check", found)
    done = luthier("check", recipe_yaml, "--quick", "-v", "--run", tmp_path / "out")
    assert given == [{"quick": True}]
    assert re.search(r"✓ padding +0.50 s  16 rows\n", done.stdout)
    assert done.stdout.endswith("1 skipped in 0.5 s; quick: nothing that needs the model was checked\n")
    luthier("check", recipe_yaml, "--run", tmp_path / "out")
    assert given[1:] == [{}]


@pytest.fixture
def audited(tmp_path):
    """A model folder and two files of tokenised rows, of which the second has no ends."""
    tiny_trainer.save_folder(tmp_path / "model")
    for name, stop in (("good", True), ("bad", False)):
        lines = (json.dumps(item) + "\n" for item in tiny_trainer.items(40, stop=stop))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return tmp_path


def test_audit_of_tokenised_rows(luthier, audited):
    model = ("audit", "--model", audited / "model", "--rows")
    done = luthier(*model, audited / "good.jsonl", "--quick", "--page", audited / "page.html")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{audited / 'model'}: 40 training rows\n")
    assert "it needs the model, which --quick leaves out (" in done.stdout
    assert "  0/" in done.stderr, "progress"
    assert "Nothing stands in the way" in (audited / "page.html").read_text(encoding="utf-8")
    done = luthier(*model, audited / "bad.jsonl", "--only", "stop-token", "--only", "bos", "--json")
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert [f["check"] for f in said["findings"]] == ["stop-token"] and said["passed"] == ["bos"]
    assert said["findings"][0]["where"].startswith(str(audited / "bad.jsonl"))
    rows = (
        "--rows",
        audited / "good.jsonl",
        "--eval-rows",
        audited / "good.jsonl",
        "--only",
        "split-overlap",
    )
    done = luthier("audit", "--model", audited / "model", *rows)
    assert done.exit_code == 1 and "✗ error split-overlap" in done.stdout


def test_audit_of_nothing_is_a_mistake(luthier, audited):
    assert luthier("audit", "--model", audited / "model").exit_code == 2
    done = luthier("audit", "--model", audited / "model", "--rows", audited / "none.jsonl")
    assert done.exit_code == 2 and "none.jsonl" in done.stderr and "  fix: " in done.stderr
    done = luthier("audit", "--model", audited / "none", "--rows", audited / "good.jsonl")
    assert done.exit_code == 2 and "  fix: " in done.stderr
    done = luthier("audit", "--model", audited / "model", "--rows", audited / "good.jsonl", "--only", "bot")
    assert done.exit_code == 2 and "did you mean 'bos'?" in done.stderr


def test_train_prints_first_last_best(luthier, stage, recipe_yaml, tmp_path):
    stage("train", lambda read, place: write_run(place.path, stage="train"))
    done = luthier("train", recipe_yaml, "--run", tmp_path / "out")
    history = [json.loads(line) for line in (tmp_path / "out/history.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in history if "loss" in row]
    row = next(line for line in done.stdout.splitlines() if line.startswith("train"))
    assert row.split()[1:4] == [f"{value:.4f}" for value in (losses[0], losses[-1], min(losses))]


def test_train_and_status_tell_what_watchers_found(luthier, stage, recipe_yaml, tmp_path):
    def watched(read, place):
        run = write_run(place.path, stage="train")
        rows = [json.loads(line) for line in run.history.read_text().splitlines()]
        rows[50]["findings"] = [{"check": "watch-loss-spike", "severity": "warning", "what": "9 times the median", "where": "step 50",
                                 "fix": "look", "measured": 9, "expected": 1}]  # fmt: skip
        write_text(run.history, "".join(json.dumps(row) + "\n" for row in rows))

    stage("train", watched)
    done = luthier("train", recipe_yaml, "--run", tmp_path / "out")
    assert (
        "! warning watch-loss-spike\n  9 times the median\n  where: step 50\n  fix:   look\n" in done.stdout
    )
    done = luthier("status", tmp_path / "out")
    assert "noticed     watch-loss-spike at step 50: 9 times the median\n" in done.stdout


# Looking at runs


@pytest.mark.parametrize("hostile", [False, True])
def test_status_of_a_run_under_way(luthier, tmp_path, hostile):
    run = write_run(tmp_path, num_steps=600, stage="stopped", hostile=hostile)
    write_text(run.recipe, "name: mine\ntrain: {epochs: 1.2, batch_size: 8}\n")
    said = dict(
        re.split(r" {2,}", line, maxsplit=1) for line in luthier("status", tmp_path).stdout.splitlines()
    )
    assert said["step"] == "300 of 600 (50%)"
    assert re.fullmatch(r"\d\.\d{4} \(first \d\.\d{4}\)", said["loss"])
    assert re.fullmatch(r"\d\.\d{4} at step 300", said["last eval"])
    assert re.fullmatch(r"about 3:1\d of training", said["time left"])  # 300 steps of 0.66 s
    assert said["findings"] == "ok: 1 error, 1 warning, 1 note"
    assert said["finished"] == "check"


def test_status_without_history_says_so(luthier, tmp_path):
    write_run(tmp_path, stage="prepare")
    assert "no step yet: the run has no history" in luthier("status", tmp_path).stdout


def test_status_of_a_finished_run_has_no_time_left(luthier, tmp_path):
    write_run(tmp_path)
    done = luthier("status", tmp_path)
    assert "time left" not in done.stdout and "trained in" in done.stdout


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [("history.jsonl", '{"step": 1}\n{"step\n', "history.jsonl is damaged in line 2"), ("history.jsonl", "3\n", "no object, but int"),
     ("findings.json", '{"a": 1}', "holds no 'findings'"), ("data/ledger.json", "[]", "no object, but list"), ("data/ledger.json", '{"splits": 3}', "'splits' is of the kind int"),
     ("recipe.yaml", "train: {epochz: 1}", "Extra inputs"), ("recipe.yaml", "train: [1]", "that this version does not take")],
)  # fmt: skip
def test_status_of_a_damaged_run_is_a_mistake(luthier, tmp_path, file, text, said):
    run = write_run(tmp_path, stage="stopped")
    write_text(run.path / file, text)
    done = luthier("status", tmp_path)
    assert done.exit_code == 2 and said in done.stderr and str(run.path / file) in done.stderr


def test_status_of_no_run_is_a_mistake(luthier, tmp_path):
    done = luthier("status", tmp_path / "nowhere")
    assert done.exit_code == 2 and "holds no run" in done.stderr


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A run folder with three rows of the tiny tokenizer."""
    tokenizer = TextTokenizer(make_tokenizer())
    from luthier.models import load

    monkeypatch.setattr(load, "load_tokenizer", lambda settings: tokenizer)
    run = RunFolder(tmp_path / "run")
    run.data.mkdir(parents=True)
    examples = [
        Example(
            "a.py#0",
            [Span("x = [1, 2]\n" * 30, "context", trim="left"), Span("return x\n", "target", weight=1.0)],
            "a",
        ),
        Example("b.py#0", [Span("if \x1b[31m[bold]", "context"), Span(" pass\n", "target", weight=0.5)], "b"),
        Example("c.py#0", [Span("for", "context"), Span(" name", "target", weight=1.0)], "c"),
    ]
    with RowWriter(run.rows("train")) as writer:
        writer.write(to_batch([encode(example, tokenizer, 64) for example in examples]))
    write_json(run.manifest, {})
    write_text(run.recipe, recipe_file.dump(recipe.Recipe()))
    return run


def test_show_without_colour_has_brackets(luthier, prepared):
    done = luthier("show", prepared.path, "--rows", "2")
    assert done.exit_code == 0, done.output
    first, second = done.stdout.split("train[1]")
    assert "train[0]  a.py#0  64 tokens" in first and re.search(r"cut: \d+ tokens of context", first)
    assert "[ret|urn| |x|⏎\n]" in first

    assert "\x1b" not in done.stdout and "\\x1b" in second.replace("|", ""), "data cannot steer the terminal"
    assert "c.py#0" not in done.stdout


def test_show_with_colour_has_no_brackets(prepared, monkeypatch):
    import io

    from rich.console import Console

    from luthier.cli import token_view

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="truecolor", no_color=False, width=200)
    tokenizer = TextTokenizer(make_tokenizer())
    example = Example("c", [Span("for", "context"), Span(" name", "target", weight=1.0)], "c")
    row = encode(example, tokenizer, 64)
    token_view.row("train[0]", row, tokenizer.pieces(row.input_ids), console)
    text = stream.getvalue()
    assert "\x1b[" in text and "[ name" not in re.sub(r"\x1b\[[\d;]*m", "", text)


def test_show_one_row_by_its_id(luthier, prepared):
    assert "c.py#0" in luthier("show", prepared.path, "--row", "c.py#0").stdout
    done = luthier("show", prepared.path, "--row", "nowhere")
    assert done.exit_code == 2 and "no row 'nowhere'" in done.stderr
    assert luthier("show", prepared.path, "--split", "dev").exit_code == 2


@pytest.mark.parametrize("given", [("--prompt", "\udcff"), ("--prompt-file", "."), ()])
def test_a_prompt_that_is_no_text_is_a_mistake(luthier, prepared, given):
    done = luthier("generate", prepared.path, *given, input=b"\xff")
    assert done.exit_code == 2 and "the prompt cannot be read" in done.stderr
    assert luthier("generate", prepared.path, "--prompt", "a", "--prompt-file", "b").exit_code == 2


def test_show_of_other_settings_prepares_anew(luthier, prepared, stage):
    seen = []
    stage("prepare", lambda read, place: seen.append(read.data.max_length))
    assert luthier("show", prepared.path, "data.max_length=32").exit_code == 0
    assert luthier("show", prepared.path).exit_code == 0
    assert seen == [32]


@pytest.mark.parametrize(
    "options",
    [("--base", "--checkpoints"), ("--checkpoints", "--against", "x"), ("--base", "--candidates", "my.yaml"),
     ("--candidates", "nowhere"), ("--rounds", "2", "--checkpoints"), ("--iterations", "2")],
)  # fmt: skip
def test_repair_refuses_options_that_it_would_leave_out(luthier, recipe_yaml, monkeypatch, tmp_path, options):
    monkeypatch.chdir(tmp_path)
    done = luthier("repair", recipe_yaml, *options)
    assert done.exit_code == 2 and "  where: --" in done.stderr


def test_compare_and_its_gate(luthier, tmp_path):
    for name in ("one", "two"):
        run = write_run(tmp_path / name)
        predictions = [json.loads(line) for line in run.predictions.read_text().splitlines()]
        for row in predictions:
            for which in ("base", "tuned"):
                row[which].setdefault("weighted_nats", row[which]["loss_nats"])
        write_text(run.predictions, "".join(json.dumps(row) + "\n" for row in predictions))
    done = luthier("compare", tmp_path / "one", tmp_path / "two")
    assert done.exit_code == 0, done.output
    gate = luthier(
        "compare", tmp_path / "one", tmp_path / "two", "--require", "better", "--metric", "exact_match"
    )
    assert gate.exit_code == 1 and "not better than the first run on exact_match" in gate.stderr
    kept = luthier(
        "compare", tmp_path / "one", tmp_path / "two", "--require", "not-worse", "--metric", "exact_match"
    )
    assert kept.exit_code == 0
    assert (
        luthier(
            "compare", tmp_path / "one", tmp_path / "two", "--require", "better", "--metric", "x"
        ).exit_code
        == 2
    )
    assert luthier("compare", tmp_path / "one").exit_code == 2


# Starting


@pytest.mark.parametrize("kind", ["tasks", "sources", "metrics", "checks", "recipes"])
def test_list_has_a_line_for_each(luthier, kind):
    done = luthier("list", kind)
    assert done.exit_code == 0
    names = (
        recipe_file.shipped_recipes() if kind == "recipes" else registry.registered(kind.removesuffix("s"))
    )
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == list(names)
    assert all(len(line.split()) > 3 for line in lines), "each says what it is"


@pytest.mark.parametrize("name", registry.registered("check"))
def test_explain_prints_the_whole_page(luthier, name):
    entry = registry.registered("check")[name]
    done = luthier("explain", name)
    assert done.stdout.startswith(f"{name}\n\n")
    said = " ".join(done.stdout.split())
    assert all(f" {heading} " in said for heading in ("What it does", "Why is this bad", "Example", "Fix"))
    page, _, numbers = entry.__doc__.replace("``", "").replace("`", "").partition("Catalogue:")
    rest = said.replace("Catalogue", "")
    for paragraph in page.split("\n\n"):
        assert " ".join(paragraph.split()).partition(": ")[2] in rest
    for number in numbers.replace(",", " ").split():
        assert f"{number} {ENTRIES[int(number)]}" in said


def test_explain_of_anything_else(luthier):
    assert "five epochs end worse than two" in luthier("explain", "watch-overfitting").stdout
    done = luthier("explain", "no-such-check")
    assert done.exit_code == 2 and "there is no check named 'no-such-check'" in done.stderr

    def short(context):
        """Sums are even."""

    assert [line.plain for line in explained.lines("sums", short, 80)] == ["sums", "", "Sums are even."]


def test_schema_is_json(luthier):
    assert json.loads(luthier("schema").stdout) == recipe.schema()


@pytest.mark.parametrize("task", list(registry.registered("task")))
def test_init_writes_a_recipe_that_validates_and_has_every_key(luthier, tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)
    done = luthier("init", task)
    assert done.exit_code == 0, done.output
    text = Path(f"{task}.yaml").read_text()
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={starter.SCHEMA_FILE}"
    assert json.loads(Path(starter.SCHEMA_FILE).read_text()) == recipe.schema()
    read = recipe_file.load(f"{task}.yaml")
    assert read.task["type"] == task

    # With every key uncommented it still validates, says the same, and lacks no key.
    alternatives = ("path", "hub", "config", "revision", "split")
    live = re.sub(
        r"^( *)# (\w+): (.*)$",
        lambda m: m[0] if m[3].endswith(".") or m[2] in alternatives else f"{m[1]}{m[2]}: {m[3]}",
        text,
        flags=re.M,
    )
    whole = yaml.safe_load(live)
    again = recipe.validate(whole)
    assert again == read
    for path, section in (((), recipe.Recipe), (("train",), recipe.Train), (("data",), recipe.Data)):
        place = whole
        for name in path:
            place = place[name]
        assert set(place) == set(section.model_fields)


def test_init_with_a_folder_of_code_writes_a_recipe_that_reads_it(luthier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_code(tmp_path / "code", num_files=3)
    for name in ("a.java", "page.html", "node_modules/b.c", ".hidden/c.c"):
        write_text(tmp_path / "code" / name, "int x = 1;\n" * (1 if name == "a.java" else 1000))
    assert luthier("init", "--data", "code").exit_code == 0
    options = recipe_file.load("line-completion.yaml").data.source
    assert (options["type"], options["path"], options["include"]) == ("code", "code", ["**/*.py"])
    assert len(list(recipe.build("source", options).records())) == 3
    assert luthier("init", "repair", "--data", "code").exit_code == 0
    planted = recipe_file.load("repair.yaml").data.source
    assert planted["code"]["include"] == ["**/*.py"] and list(recipe.build("source", planted).records())
    write_text(tmp_path / "rows.jsonl", "{}\n")
    assert luthier("init", "instruction", "--data", "*.jsonl").exit_code == 0
    assert recipe_file.load("instruction.yaml").data.source["path"] == "*.jsonl"
    (tmp_path / "empty").mkdir()
    for task, nothing in (("line-completion", "nowhere"), ("line-completion", "empty"), ("ontology", "code")):
        done = luthier("init", task, "other.yaml", "--data", nothing)
        assert done.exit_code == 2 and not Path("other.yaml").exists(), done.output


def test_init_overwrites_nothing(luthier, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    done = luthier("init", "instruction", path)
    assert done.exit_code == 2 and "is not overwritten" in done.stderr
    assert path.read_text() == "precious" and os.listdir(tmp_path) == ["mine.yaml"]


def test_init_of_an_unknown_task(luthier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = luthier("init", "line-complete")
    assert done.exit_code == 2 and "did you mean 'line-completion'?" in done.stderr
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [(Interrupted("interrupted after step 4", "here", "again"), "interrupted", 1), (KeyboardInterrupt(), "interrupted", 1),
     (Refused("the loss is nan", "row 3", "lower"), "refused", 1), (UserError("too few rows", "data", "more"), "mistake", 2),
     (OSError(errno.ENOSPC, "No space left on device"), "mistake", 2), (KeyError("x"), "defect", 3)],
)  # fmt: skip
def test_how_a_run_ended_is_left_in_its_folder(luthier, stage, recipe_yaml, tmp_path, error, kind, code):
    run = RunFolder(tmp_path / "out")
    write_json(run.recipe, {"name": "mine"})
    stage("train", fail(error))
    assert luthier("train", recipe_yaml, "--run", run.path).exit_code == code
    said = read_json(run.stopped)
    assert (said["kind"], said["exit_code"]) == (kind, code) and said["what"]
    assert f"stopped     {kind}: {said['what']}" in luthier("status", run.path).stdout
    stage("train", lambda read, place: write_run(place.path))
    assert luthier("train", recipe_yaml, "--run", run.path).exit_code == 0 and not run.stopped.exists()


def test_verbs_that_do_not_train_leave_how_training_ended(luthier, stage, recipe_yaml, tmp_path):
    run = RunFolder(tmp_path / "out")
    stage("train", fail(Refused("the loss is nan", "row 3", "lower")))
    stage("report", lambda read, place: write_run(place.path))
    stage("check", fail(UserError("too few rows", "data", "more")))
    run.create()
    assert luthier("train", recipe_yaml, "--run", run.path).exit_code == 1
    before = run.stopped.read_bytes()
    assert luthier("report", recipe_yaml, "--run", run.path).exit_code == 0
    assert luthier("check", recipe_yaml, "--run", run.path).exit_code == 2
    assert run.stopped.read_bytes() == before


def test_a_refused_recipe_leaves_no_mark_on_a_finished_run(luthier, recipe_yaml, tmp_path):
    run = write_run(tmp_path / "out")
    done = luthier("run", recipe_yaml, "train.epochs=77", "--run", run.path)
    assert done.exit_code == 2 and "other settings" in done.stderr and not run.stopped.exists()


def test_of_several_processes_the_first_speaks(luthier, stage, recipe_yaml, tmp_path, monkeypatch):
    stage("run", lambda read, place: None if os.environ.get("RANK") else write_run(place.path))
    monkeypatch.setenv("RANK", "1")
    run = RunFolder(tmp_path / "out")
    run.create()
    run.note_stopped("defect", 3, "the first process has gone", "", "")
    done = luthier("run", recipe_yaml, "--run", run.path)
    assert (done.exit_code, done.stdout) == (0, "") and run.stopped.exists()
    monkeypatch.delenv("RANK")
    assert "report: " in luthier("run", recipe_yaml, "--run", run.path).stdout


def test_status_tells_speed_and_the_end_of_the_log(luthier, tmp_path):
    run = write_run(tmp_path, num_steps=100, stage="stopped")
    write_text(run.log, "".join(f"line {number}\n" for number in range(1000)))
    lines = luthier("status", tmp_path).stdout.splitlines()
    speed = next(line for line in lines if line.startswith("speed"))
    assert 4500 < int(re.search(r"([\d,]+) tokens/s", speed)[1].replace(",", "")) < 5700
    assert [line for line in lines if line.startswith("log")] == [
        f"log         line {n}" for n in range(995, 1000)
    ]


# Real processes


def _process(*arguments, **settings):
    command = [sys.executable, "-m", "luthier", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    command = f"{sys.executable} -m luthier schema | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == "" and len(done.stdout) == 10


def test_main_exits_with_the_code(tmp_path):
    done = _process("run", tmp_path / "nothing.yaml")
    assert done.returncode == 2
    assert done.stdout == "" and "there is no recipe" in done.stderr and "Traceback" not in done.stderr


# Plan


@pytest.mark.parametrize(
    "recipe", ["large/codellama-7b-lora", "large/mistral-7b-lora", "large/qwen3-4b-labels"]
)
def test_plan_of_the_large_recipes_is_readable_at_80_columns(luthier, recipe, tmp_path):
    done = luthier("plan", recipe, "--gpus", "8xA100-80G", "--run", tmp_path, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80 and "…" not in done.stdout
    for said in (
        "parameters",
        "activations",
        "optimizer states",
        "tokens/s",
        "hours",
        "All of it is an estimate",
    ):
        assert said in done.stdout


def test_plan_as_json(luthier, tmp_path):
    done = luthier(
        "plan", "large/qwen3-4b-labels", "--gpus", "4xH100-80G", "--rows", 5000, "--tokens-per-row", 99.5, "--json",
        "--run", tmp_path,
    )  # fmt: skip
    tree = json.loads(done.stdout)
    assert done.exit_code == 0 and tree["fits"]
    assert (tree["rows"]["train"], tree["rows"]["tokens"], tree["gpus"]["count"]) == (5000, 99.5, 4)


def test_plan_that_nothing_makes_fit_is_1(luthier, tmp_path):
    done = luthier("plan", "large/mistral-7b-lora", "model.adapter=null", "--gpus", "4090", "--run", tmp_path)
    assert done.exit_code == 1 and "No way fits" in done.stdout


def test_plan_for_gpus_that_nobody_knows_is_2_with_the_list(luthier, tmp_path):
    done = luthier("plan", "large/mistral-7b-lora", "--gpus", "8xB9000", "--run", tmp_path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "'8xB9000' names no GPUs" in done.stderr and "where: --gpus" in done.stderr
    assert "A100-80G" in done.stderr and "V100-32G" in done.stderr
