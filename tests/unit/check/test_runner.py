"""The report of the checks: what it says of itself in a terminal, a notebook, as JSON and as a page."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.fixtures import tiny_trainer
from tests.unit.report.test_page import Parsed
from torch.utils.data import IterableDataset
from transformers import Trainer

import luthier
from luthier import registry
from luthier.check.context import CheckContext, Skip
from luthier.check.runner import Report, check
from luthier.errors import UserError
from luthier.records import Finding

LONG = "the loss of one step over 12 micro-batches is 67.93, 12.0 times the 5.66 of the same 48 rows in one batch"
PATH = "/a/very/long/path/" + "x" * 60


def report(**changes) -> Report:
    made = {
        "findings": [
            Finding("loss-scale", "error", LONG, PATH, "model.accepts_loss_kwargs = False", 12.0, 1.0),
            Finding("schedule", "warning", "peak 3e-5", "here", "there", np.float32(3e-5), float("inf")),
            Finding("bos", "note", "\x1b[31m<script>alert(1)</script>", "here", "there"),
        ],
        "passed": ["stop-token", "vocabulary"],
        "skipped": [{"check": c, "why": "no recipe"} for c in ("trim-share", "drop-budget")]
        + [{"check": "padding", "why": "there is no tokenizer"}],
        "seconds": {"loss-scale": 8.0, "stop-token": 0.25, "schedule": 0.0},
        "seen": {"stop-token": "all 60 rows"},
        "subject": "LlamaForCausalLM: 60 training rows",
    }
    return Report(**{**made, **changes})


def test_printed_it_is_as_wide_as_the_terminal_and_whole_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    lines = str(report()).splitlines()
    assert lines[:3] == [
        "LlamaForCausalLM: 60 training rows",
        "✗ error loss-scale",
        "  the loss of one step over 12 micro-batches is 67.93, 12.0 times the",
    ]
    assert all(len(line) <= 70 or PATH in line for line in lines)
    assert f"  where: {PATH}" in lines, "a path stays whole, so that it can be copied"
    assert "- skipped 2 checks: no recipe (trim-share, drop-budget)" in lines
    assert "- skipped padding: there is no tokenizer" in lines
    assert lines[-2:] == ["not ok: 1 error, 1 warning, 1 note; 2 checks passed, 3 skipped in 8.2", "s"]
    assert "\x1b" not in str(report()), "neither colours nor what steers a terminal"


def test_it_shows_what_each_check_looked_at_and_cost(capsys):
    report().show(verbose=True)
    out = capsys.readouterr().out
    assert "✓ stop-token     0.25 s  all 60 rows\n" in out
    assert "✗ loss-scale     8.00 s" in out and LONG in out, "no line is broken in a pipe"
    assert repr(report()) == (
        "<Report not ok: 1 error, 1 warning, 1 note; 2 checks passed, 3 skipped in 8.2 s>"
    )


def test_a_console_with_colours_gets_them():
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, color_system="standard", width=80).print(report())
    assert "\x1b[1;31mnot ok\x1b[0m" in stream.getvalue() and "\x1b[31m<" not in stream.getvalue()


def test_json_takes_numbers_of_other_packages_and_those_that_are_none():
    found = json.loads(report().to_json())
    assert found == report().to_dict() and not found["ok"]
    assert found["findings"][1]["measured"] == pytest.approx(3e-5)
    assert found["findings"][1]["expected"] == "inf"


def test_the_page_is_whole_and_inert(tmp_path: Path):
    page = Parsed(report().write_html(tmp_path / "new" / "page.html").read_text(encoding="utf-8"))
    assert "This training should not start" in page.text and LONG in page.text
    assert "␛[31m<script>alert(1)</script>" in page.text and page.scripts == []
    assert "LlamaForCausalLM: 60 training rows" in page.text and "all 60 rows" in page.text
    urls = [value for _, given in page.tags for name, value in given.items() if name in ("src", "href")]
    assert urls == ["data:,"]
    fine = report(findings=[]).write_html(tmp_path / "fine.html").read_text(encoding="utf-8")
    assert "Nothing stands in the way" in fine and "No findings." in fine


def test_a_notebook_gets_a_piece_that_touches_nothing_else():
    html = report()._repr_html_()
    piece = Parsed(html)
    assert LONG in piece.text and piece.scripts == [] and piece.tags[0][1]["class"] == "luthier-findings"
    style = html[html.index("<style>") + 7 : html.index("</style>")]
    rules = [rule for line in style.split("}") for rule in line.split("{")[0].split(",") if rule.strip()]
    assert all(rule.strip().startswith(".luthier-findings") for rule in rules)

    class Printer:
        def text(self, value):
            self.said = value

    printer = Printer()
    report()._repr_pretty_(printer, False)
    assert printer.said == str(report())


def test_it_survives_pickling():
    assert pickle.loads(pickle.dumps(report(findings=()))) == report(findings=())


class Nothing(CheckContext):
    model_name = "tiny"
    rows = {}


def test_a_check_passes_is_skipped_or_has_findings(monkeypatch):
    def passes(context):
        context.looked_at("all 3 rows")
        context.looked_at("all 3 rows")
        return iter(())

    def skips(context):
        context.looked_at("2 rows")
        raise Skip("nothing to look at")
        yield

    def breaks(context):
        raise UserError("cannot be read", "here", "mend it")

    checks = {"passes": passes, "skips": skips, "breaks": breaks}
    monkeypatch.setattr(registry, "registered", lambda kind: checks)
    monkeypatch.setattr(registry, "lookup", lambda kind, name, where: checks[name])
    progress = []
    found = check(Nothing(quick=True), waived=["breaks"], progress=lambda *step: progress.append(step))
    assert found.passed == ["passes"] and found.seen == {"passes": "all 3 rows"}
    assert found.skipped == [{"check": "skips", "why": "nothing to look at"}]
    assert [f.check for f in found.findings] == ["breaks"] and found.ok and found.waived == ["breaks"]
    assert progress == [("passes", 0, 3), ("skips", 1, 3), ("breaks", 2, 3)]
    assert found.quick and repr(found).endswith("; quick: nothing that needs the model was checked>")
    assert found.seconds.keys() == checks.keys()
    assert check(Nothing(), only=["passes"]).seconds.keys() == {"passes"}


def test_a_check_of_ones_own_file_is_chosen_and_waived_by_that_file(monkeypatch, tmp_path: Path):
    own = tmp_path / "own.py"
    own.write_text(
        "from luthier.records import Finding\n"
        "from luthier.registry import check\n\n\n"
        "@check('of-my-own')\n"
        "def of_my_own(context):\n"
        "    return [Finding('of-my-own', 'error', 'what', 'where', 'fix')]\n"
    )
    monkeypatch.setitem(registry._registered, "check", registry.registered("check"))  # undone afterwards
    name = f"{own}@of-my-own"
    found = check(Nothing(quick=True), only=[name], waived=[name])
    assert [f.check for f in found.findings] == found.waived == ["of-my-own"] and found.ok


def test_a_check_that_fails_itself_is_an_error_and_the_others_still_speak(monkeypatch):
    def fails(context):
        yield Finding("fails", "note", "seen", "here", "none")
        raise ZeroDivisionError("by 0")

    def confuses(context):
        raise TypeError("forward() got an unexpected keyword argument 'memory_mask'")

    def exhausts(context):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    checks = {"fails": fails, "passes": lambda context: iter(())}
    monkeypatch.setattr(registry, "registered", lambda kind: checks)
    found = check(Nothing())
    (finding,) = found.findings
    assert not found.ok and found.passed == ["passes"]
    assert "ZeroDivisionError: by 0" in finding.what and finding.where.startswith("test_runner.py:")
    monkeypatch.setattr(registry, "registered", lambda kind: {"confuses": confuses})
    assert [f.check for f in check(Nothing()).findings] == ["confuses"]
    monkeypatch.setattr(registry, "registered", lambda kind: {"exhausts": exhausts})
    with pytest.raises(RuntimeError, match="memory"):
        check(Nothing())


def test_what_cannot_be_audited_is_a_mistake_and_no_pass():
    class Once(IterableDataset):
        def __init__(self):
            self.rows = iter(tiny_trainer.items(8))

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.rows)

    trainer = tiny_trainer.trainer(train=Once())
    with pytest.raises(UserError, match="cannot be audited: the training data can be read only once"):
        luthier.audit(trainer)
    with pytest.raises(UserError, match="there is nothing to audit"):
        luthier.audit()
    for given in ({"model": "folder"}, {"eval_rows": "rows.jsonl"}):
        with pytest.raises(UserError, match=f"there is a trainer, and {next(iter(given))} as well"):
            luthier.audit(tiny_trainer.trainer(), **given)


def short_labels(items):
    batch = tiny_trainer.Collator()(items)
    return {**batch, "labels": batch["labels"][:, :-1]}


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (
            {"train_dataset": None},
            "the data loader of the train split fails: ValueError: Trainer: training req",
        ),
        ({"train_dataset": {0: None}}, "reading trainer.train_dataset fails: KeyError"),
        (
            {"data_collator": lambda items: {"pixel_values": items}},
            "audited: its collator gives no input_ids",
        ),
        ({"data_collator": short_labels}, "a batch cannot be read: ValueError: .* input_ids, but .* labels"),
        (
            {"data_collator": lambda items: {"input_ids": [item["input_ids"] for item in items]}},
            "a batch cannot be read: AttributeError",
        ),
    ],
    ids=["no data", "data that raise", "no ids", "too few labels", "no tensors"],
)
def test_trainer_that_could_not_train_is_a_mistake(spoiled, said):
    trainer = tiny_trainer.trainer()
    vars(trainer).update(spoiled)
    if trainer.train_dataset:
        trainer._get_train_sampler = lambda *_: range(8)
    with pytest.raises(UserError, match=said):
        luthier.audit(trainer, quick=True)


@pytest.mark.filterwarnings("default")  # of other people's trainers
def test_labels_that_are_none_are_a_finding_and_no_traceback():
    trainer = tiny_trainer.trainer(collator=lambda items: {**tiny_trainer.Collator()(items), "labels": None})
    (finding,) = luthier.audit(trainer, only=["gradients"]).findings
    assert finding.severity == "error" and "a training step fails" in finding.what


@pytest.mark.filterwarnings("default")  # of other people's trainers
def test_a_metric_that_two_rows_are_too_few_for_is_no_error():
    trainer = tiny_trainer.trainer(
        load_best_model_at_end=True,
        metric_for_best_model="roc_auc",
        save_strategy="steps",
        save_steps=5,
    )
    trainer.compute_metrics = lambda prediction: {"roc_auc": float("nan")}
    report = luthier.audit(trainer, only=["best-checkpoint"])
    assert report.findings == [] and "too few" in report.skipped[0]["why"]


class ZeroLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        return 0 * model(**inputs).loss


def test_loss_of_zero_is_a_finding_and_breaks_no_check():
    trainer = tiny_trainer.trainer(gradient_accumulation_steps=2)
    trainer.__class__ = ZeroLoss
    report = luthier.audit(trainer)
    assert not [f for f in report.findings if "itself failed" in f.what]
    assert {"gradients", "step-loss"} <= {f.check for f in report.findings}
    assert [s["why"] for s in report.skipped if s["check"] in ("accumulation", "overfit-batch")] == [
        "the loss is 0 (see step-loss)",
        "the loss is 0 from the start (see step-loss)",
    ]
