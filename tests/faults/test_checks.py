"""Every check stays quiet on a healthy run and catches the defect it is for, planted where such a defect occurs."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fixtures import tiny_trainer
from tests.fixtures.juliet import write_juliet
from tests.fixtures.tiny_model import make_model, make_tokenizer
from tests.fixtures.tiny_run import write_recipe
from tokenizers import AddedToken, normalizers
from tokenizers.processors import TemplateProcessing
from torch.nn import functional

from luthier import recipe_file, registry
from luthier.check import runner
from luthier.check.checks import padding as padding_check
from luthier.check.context import RunContext, Skip
from luthier.encoding.batches import collate
from luthier.encoding.encode import encode
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.models.forward import token_scores
from luthier.models.load import load_model
from luthier.prepare.build import prepare
from luthier.records import Example, Finding, Row, Span
from luthier.rows import Rows, RowWriter, to_batch
from luthier.run_folder import RunFolder, read_json, write_json
from luthier.tasks.instruction import Instruction
from luthier.train.rehearsal import Rehearsal

# peft 0.21 asks transformers 5.23 by a name that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

BUILT_IN = [
    n for n, f in registry.registered("check").items() if f.__module__.startswith("luthier.check.checks")
]


def rehearsal(context: RunContext) -> Rehearsal:
    return Rehearsal(context.recipe, context.run, lambda: context.model, lambda: context.tokenizer)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    """A prepared run over generated code, and a model that has learned a little."""
    folder = tmp_path_factory.mktemp("healthy")
    recipe = recipe_file.load(write_recipe(folder))
    run = RunFolder(folder / "run")
    run.create()
    tokenizer = TextTokenizer(make_tokenizer())
    prepare(recipe, run, tokenizer)
    context = RunContext(recipe, run, rehearsal)
    teach(Path(recipe.model.name), context.rows["train"])
    return context


def teach(folder: Path, rows: Rows) -> None:
    """Saves a tiny Llama that 40 steps have brought well under ln V."""
    model = make_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(40):
        scores = token_scores(model, collate([rows.row((8 * step + i) % len(rows)) for i in range(8)], 0))
        (scores.weighted_sum() / scores.weights_N.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def load(context: RunContext) -> Any:
    """The taught model of its own, with a fresh adapter, to damage."""
    context.model = load_model(context.recipe.model, len(context.tokenizer), training=True, seed=0)
    return context.model


@pytest.fixture
def context(healthy: RunContext, tmp_path: Path) -> RunContext:
    """The healthy run in a folder of its own, to plant a defect in."""
    shutil.copytree(healthy.run.path, tmp_path / "run")
    copy = RunContext(healthy.recipe, RunFolder(tmp_path / "run"), rehearsal)
    copy.tokenizer, copy.model = healthy.tokenizer, healthy.model
    return copy


def with_recipe(context: RunContext, *overrides: str) -> RunContext:
    recipe = recipe_file.with_overrides(context.recipe.model_dump(mode="json"), overrides)
    changed = RunContext(recipe, context.run, rehearsal)
    changed.tokenizer, changed.model = context.tokenizer, context.model
    return changed


def rewrite(context: RunContext, split: str, rows: Iterable[Row]) -> None:
    """Puts these rows in the place of a split's file."""
    batch = to_batch(list(rows))
    with RowWriter(context.run.data / "new.arrow") as writer:
        writer.write(batch)
    (context.run.data / "new.arrow").replace(context.run.rows(split))
    context.__dict__.pop("rows", None)


def change(context: RunContext, split: str, index: int, **values: Any) -> str:
    """Changes one row on disk; its id."""
    rows = list(context.rows[split])
    rows[index] = dataclasses.replace(rows[index], **values)
    rewrite(context, split, rows)
    return rows[index].id


def found(context: RunContext, name: str) -> list[Finding]:
    findings = list(registry.lookup("check", name, "test")(context))
    assert all(finding.check == name and finding.fix and finding.where for finding in findings)
    return findings


def only(context: RunContext, name: str, severity: str = "error") -> Finding:
    """The one finding there must be."""
    (finding,) = found(context, name)
    assert finding.severity == severity, finding
    return finding


def encoded(spans: list[Span], tokenizer: TextTokenizer, name: str = "planted") -> Row:
    row = encode(Example(name, spans, name), tokenizer, 512)
    assert isinstance(row, Row)
    return row


def test_healthy_run_has_no_findings(healthy: RunContext) -> None:
    before = {name: p.detach().clone() for name, p in healthy.model.named_parameters()}
    random_state = torch.get_rng_state()
    report = runner.check(healthy)
    assert [f for f in report.findings if f.severity != "note"] == []
    assert report.ok
    # What does not apply says so; whatever passed says how much it looked at.
    skipped = {s["check"] for s in report.skipped}
    assert set(BUILT_IN) <= set(report.passed) | skipped
    assert set(report.passed) <= set(report.seen)
    assert not skipped & {
        "accumulation", "adapter-targets", "bos", "dropout-off", "gradient-norm", "gradients", "initial-loss", "merge",
        "overfit-batch", "padding-invariance", "parameter-groups", "prompt-parity", "resume", "save-reload", "schedule",
        "split-overlap", "step-loss", "stop-token", "target-whole", "update-size", "vocabulary",
    }  # fmt: skip
    # A check leaves the model as it found it, to the bit, gradients and generator included.
    after = dict(healthy.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in after.values())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert healthy.model.training


def test_model_that_cannot_be_loaded_is_said_once(context: RunContext) -> None:
    context = with_recipe(context, "model.adapter.targets=[no_such_layer]")
    del context.model
    report = runner.check(context)
    assert ["matches no linear layer" in f.what for f in report.findings] == [True]
    assert not report.ok
    assert {s["check"] for s in report.skipped if "cannot be loaded" in s["why"]} >= {
        "gradients",
        "initial-loss",
        "padding-invariance",
        "positions",
        "vocabulary",
    }
    assert len(report.skipped) + len(report.passed) + 1 == len(registry.registered("check"))


@pytest.mark.parametrize("name", BUILT_IN)
def test_docstring_documents_the_check_like_a_rule(name: str) -> None:
    lines = (registry.registered("check")[name].__doc__ or "").splitlines()
    assert lines[0].endswith(".")
    heads = [line.strip().partition(":")[0] for line in lines if line.startswith("    ") and ": " in line]
    expected = ["What it does", "Why is this bad", "Example", "Fix", "Catalogue"]
    assert [head for head in heads if head in expected] == expected
    numbers = next(line.partition(":")[2] for line in lines if line.strip().startswith("Catalogue:"))
    assert re.fullmatch(r" \d+(, \d+)*", numbers)


@pytest.mark.parametrize("target", ["", " \n\t\u00a0"])
def test_empty_target(context: RunContext, target: str) -> None:
    name = change(context, "eval", 2, target=target)
    finding = only(context, "empty-target")
    total = sum(map(len, context.rows.values()))
    assert finding.what.startswith(f"1 of {total} rows")
    assert finding.where == f"data/eval.arrow: {name}"


def test_untrained_row(context: RunContext) -> None:
    rows = list(context.rows["train"])
    nothing = np.zeros(len(rows[0].input_ids), np.float32)
    first_only = nothing.copy()
    first_only[0] = 1.0  # nothing stands before it, so nothing predicts it
    planted = [
        dataclasses.replace(rows[0], loss_weights=w, id=n) for w, n in ((nothing, "a"), (first_only, "b"))
    ]
    empty = dataclasses.replace(rows[0], input_ids=[], loss_weights=[], span_ids=[], id="c")
    rewrite(context, "train", [empty, *rows, *planted])
    finding = only(context, "untrained-row")
    assert finding.measured == 3
    assert finding.where == "data/train.arrow: c, a, b"


def test_target_cut_at_its_end(context: RunContext) -> None:
    row = context.rows["eval"].row(0)
    name = change(
        context,
        "eval",
        0,
        input_ids=row.input_ids[:-2],
        loss_weights=row.loss_weights[:-2],
        span_ids=row.span_ids[:-2],
    )
    finding = only(context, "target-whole")
    assert "1 of " in finding.what and "0 lossy rows left out" in finding.what
    assert finding.where == f"data/eval.arrow: {name}"


def test_mask_that_spills_into_the_prompt(context: RunContext) -> None:
    row = context.rows["eval"].row(0)
    weights = row.loss_weights.copy()
    weights[row.num_prompt_tokens - 1] = 1.0
    change(context, "eval", 0, loss_weights=weights)
    assert only(context, "target-whole").measured == 1


def test_target_whole_knows_control_tokens_and_lossy_rows(context: RunContext) -> None:
    chat = Instruction(format="chat")
    record = {
        "messages": [
            {"role": "user", "content": "say <|im_end|>"},
            {"role": "assistant", "content": "é <|im_end|>\n"},
        ]
    }
    from luthier.records import Record

    (example,) = chat.examples(Record("r", record, "r"), "train", context.tokenizer, max_length=512, seed=0)
    row = encode(example, context.tokenizer, 512)
    lossy = dataclasses.replace(row, target="other", lossy=True)
    rewrite(context, "train", [row, lossy])
    assert found(context, "target-whole") == []
    for split in context.rows:
        rewrite(context, split, [lossy])
    with pytest.raises(Skip, match="all 3 rows"):
        found(context, "target-whole")


def test_names_that_give_vulnerable_code_away(context: RunContext, tmp_path: Path) -> None:
    tree = write_juliet(tmp_path / "juliet", variants=1)
    raw = with_recipe(context, f"data.source={{type: juliet, path: {tree}, clean: false}}")
    assert only(raw, "name-leak").measured > 0.99
    only(with_recipe(raw, "data.source.clean=true"), "name-leak", "note")


def test_target_without_an_end(context: RunContext) -> None:
    name = change(context, "test", 1, target=context.rows["test"].row(1).target.rstrip())
    finding = only(context, "stop-token")
    assert finding.measured == 1 and finding.where == f"data/test.arrow: {name}"


def test_stop_token_where_only_a_token_ends(context: RunContext) -> None:
    context.task = Instruction(format="plain")
    total = sum(map(len, context.rows.values()))
    assert only(context, "stop-token").measured == total  # no row of line completion ends with EOS
    spans = [Span("1 + 1 =", "prompt"), Span(" 2", "response", weight=1.0)]
    good = encoded([*spans, Span("<|im_end|>", "stop", weight=1.0, control=True)], context.tokenizer)
    for split in context.rows:
        rewrite(context, split, [good])
    assert found(context, "stop-token") == []
    # The classic: EOS is there, but its label is masked because padding is EOS too.
    masked = np.where(np.array(good.input_ids) == 2, 0, good.loss_weights).astype(np.float32)
    change(context, "train", 0, loss_weights=masked)
    assert only(context, "stop-token").measured == 1


def test_bos_is_missing_or_doubled(context: RunContext) -> None:
    hf = make_tokenizer()
    hf.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    context.tokenizer = TextTokenizer(hf)
    finding = only(context, "bos")
    assert finding.measured == sum(map(len, context.rows.values()))
    assert "do not begin with '<|im_start|>'" in finding.what
    spans = [Span("a = ", "prompt"), Span("1", "response", weight=1.0)]
    good = encoded(spans, context.tokenizer)
    for split in context.rows:
        rewrite(context, split, [good])
    assert found(context, "bos") == []
    twice = {
        name: [getattr(good, name)[0], *getattr(good, name)]
        for name in ("input_ids", "loss_weights", "span_ids")
    }
    change(context, "train", 0, **twice)
    finding = only(context, "bos")
    assert finding.measured == 1 and "twice" in finding.what


def test_stored_ids_are_stale(context: RunContext) -> None:
    ids = context.rows["test"].row(0).input_ids.copy()
    ids[0] += 1
    name = change(context, "test", 0, input_ids=ids)
    other_ids, other_prompt = found(context, "prompt-parity")
    assert other_ids.severity == other_prompt.severity == "error"
    assert other_ids.measured == other_prompt.measured == 1
    assert other_ids.where == f"data/test.arrow: {name}"


def test_task_has_changed_since_preparing(context: RunContext) -> None:
    context = with_recipe(context, "task.min_chars=20")
    finding = found(context, "prompt-parity")[-1]
    assert finding.severity == "error" and finding.measured > 0


def test_source_has_changed_since_preparing(context: RunContext, tmp_path: Path) -> None:
    code = Path(context.recipe.data.source["path"])
    shutil.copytree(code, tmp_path / "code")
    context = with_recipe(context, f"data.source.path={tmp_path / 'code'}")
    assert found(context, "prompt-parity") == []
    gone = context.rows["test"].row(0).group
    next(p for p in (tmp_path / "code").iterdir() if p.name in gone).unlink()
    finding = only(context, "prompt-parity")
    assert "are made of no record of the sources any more" in finding.what


def test_tokenizer_changes_when_it_is_saved(context: RunContext) -> None:
    hf = make_tokenizer()
    context.tokenizer = TextTokenizer(hf)
    # What is encoded with was made before this token was added; what is saved has it.
    hf.backend_tokenizer.add_tokens([AddedToken("return", normalized=False)])
    finding = found(context, "prompt-parity")[0]
    assert finding.severity == "error" and finding.measured > 0
    assert "have other ids" in finding.what


def test_own_sources_of_splits_are_met(context: RunContext, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{i} plus 1 is", "response": f"{i + 1} of course", "when": "2026-01-01"}
        for i in range(90)
    ]
    for name, part in (("train", rows[:50]), ("eval", rows[50:70]), ("test", rows[70:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    source = {
        name: {"type": "files", "path": str(tmp_path / f"{name}.jsonl")} for name in ("train", "eval", "test")
    }
    recipe = recipe_file.with_overrides(
        {
            "task": {"type": "instruction", "format": "plain"},
            "data": {
                "source": source["train"],
                "eval_source": source["eval"],
                "test_source": source["test"],
                "near_duplicates": "off",
                "num_workers": 1,
            },
        },
        [],
    )
    own = RunContext(recipe, RunFolder(tmp_path / "own"))
    own.tokenizer = context.tokenizer
    own.run.create()
    prepare(recipe, own.run, own.tokenizer)
    assert found(own, "prompt-parity") == []
    (tmp_path / "eval.jsonl").write_text((tmp_path / "test.jsonl").read_text())
    assert {split.split(":")[0] for f in found(own, "prompt-parity") for split in f.where.split("; ")} == {
        "data/eval.arrow"
    }


def test_prompt_ends_before_the_indent(context: RunContext) -> None:
    cut = [
        encoded(
            [Span(f"def f{i}(a):\n", "context"), Span("    return a\n", "target", weight=1.0)],
            context.tokenizer,
            f"r{i}",
        )
        for i in range(3)
    ]
    good = list(context.rows["train"])
    rewrite(context, "train", good + cut)
    finding = only(context, "natural-boundary", "warning")
    assert finding.what.startswith(f"in 3 of {len(good) + 3} rows")
    assert finding.where.endswith("r0, r1, r2")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda b: {"loss_weights_BT": b.loss_weights_BT.masked_fill(b.input_ids_BT == 2, 0)}, "other loss weights on 1"),
        (lambda b: {"attention_mask_BT": (b.input_ids_BT != 2).long()}, "and its mask"),
        (lambda b: {"loss_weights_BT": b.loss_weights_BT.clamp(min=0.1)}, "a loss weight on padding"),
        (
            lambda b: {"position_ids_BT": torch.arange(b.input_ids_BT.shape[1]).expand(b.input_ids_BT.shape)},
            "positions that do not count from 0",
        ),
    ],
)  # fmt: skip
def test_collator_is_wrong(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], dict[str, Any]], said: str
) -> None:
    stop = Span("<|im_end|>", "stop", weight=1.0, control=True)
    texts = ["a", "b\nc = a + 1\n"]
    rows = [
        encoded([Span("x =", "prompt"), Span(t, "response", weight=1.0), stop], context.tokenizer, t)
        for t in texts
    ]
    rewrite(context, "train", rows)
    assert found(context, "padding") == []
    whole = collate

    def wrong(*arguments: Any) -> Any:
        batch = whole(*arguments)
        return dataclasses.replace(batch, **spoil(batch))

    monkeypatch.setattr(padding_check, "collate", wrong)
    findings = found(context, "padding")
    assert {f.severity for f in findings} == {"error"}
    assert any(said in f.what for f in findings), findings


def test_tokenizer_that_loses_text(context: RunContext, tmp_path: Path) -> None:
    hf = make_tokenizer()
    hf.backend_tokenizer.normalizer = normalizers.Lowercase()
    hf.save_pretrained(tmp_path / "tokenizer")
    context.tokenizer = TextTokenizer.load(tmp_path / "tokenizer")
    prepare(context.recipe, context.run, context.tokenizer)
    context.__dict__.pop("rows", None)
    finding = only(context, "tokenizer-loss", "warning")
    assert finding.measured > 0
    assert re.search(r"[1-9]\d* of \d+ rows", finding.what)
    change(context, "train", 0, lossy=True, target="Wörter in A\n")
    assert "'A' (U+0041)" in only(context, "tokenizer-loss", "warning").what


def test_id_without_embedding(context: RunContext) -> None:
    ids = context.rows["train"].row(3).input_ids.copy()
    ids[5] = 9999
    name = change(context, "train", 3, input_ids=ids)
    finding = only(context, "vocabulary")
    assert finding.measured == 9999 and finding.where == f"data/train.arrow: {name}"
    rewrite(context, "train", [context.rows["train"].row(3)])
    for check in ("initial-loss", "gradients", "dropout-off", "padding-invariance"):
        with pytest.raises(Skip, match="vocabulary"):  # and no crash inside the model
            found(context, check)


def test_tokenizer_is_larger_than_the_model(context: RunContext) -> None:
    context.tokenizer = TextTokenizer(make_tokenizer()).add_tokens(["<|new|>"])
    size = len(context.tokenizer)
    finding = only(context, "vocabulary")
    assert (
        finding.measured == size
        and f"{size} tokens, but the model's embedding has {size - 1} rows" in finding.what
    )


def test_rows_are_longer_than_the_model(context: RunContext) -> None:
    context.model = make_model(max_position_embeddings=64)
    finding = only(context, "positions")
    assert finding.measured == max(rows.lengths().max() for rows in context.rows.values()) > 64
    assert "model.rope={factor: " in finding.fix
    scaled = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    context.model = make_model(max_position_embeddings=64, rope_parameters=scaled)
    assert found(context, "positions") == []
    context.model = make_model(max_position_embeddings=100)
    finding = only(with_recipe(context, "data.max_length=101"), "positions", "warning")
    assert finding.measured == 101


def test_targets_that_stand_as_lines_in_training_rows_are_counted(context: RunContext) -> None:
    train = [context.tokenizer.decode(row.input_ids, first=True) for row in context.rows["train"]]
    known = next(line.strip() for line in train[3].split("\n")[1:-1] if len(line.strip()) > 8)
    rows = list(context.rows["test"])
    targets = [f"\n    {known}\n", known, known[:-1] + "\N{SNOWMAN}", f"{known}\n{known}", "\n"]
    made = [dataclasses.replace(row, target=text) for row, text in zip(rows, targets, strict=False)]
    assert len(made) == len(targets)
    rewrite(context, "test", made)
    context.seen.clear()
    found(context, "ngram-overlap")
    num = len(train)
    said = f"2 of 3 test targets of one line (66.7%) stand as lines in {num} of {num} training rows"
    assert said in context.seen
    rewrite(context, "test", made[3:4])
    context.seen.clear()
    found(context, "ngram-overlap")
    assert not any("test targets" in text for text in context.seen)


def test_generated_text_goes_on_behind_the_positions(context: RunContext) -> None:
    longest = max(int(rows.lengths().max()) for rows in context.rows.values())
    prompt = int(context.rows["test"].column("num_prompt_tokens").to_numpy().max())
    context.model = make_model(max_position_embeddings=longest)
    sampled = ("evaluate.generate=true", "train.num_samples=0")
    room = longest - prompt + 1  # the last token needs no position
    assert found(with_recipe(context, *sampled, f"evaluate.max_new_tokens={room}"), "positions") == []
    long = f"evaluate.max_new_tokens={room + 1}"
    finding = only(with_recipe(context, *sampled, long), "positions", "warning")
    assert (finding.measured, finding.expected) == (longest + 1, f"at most {longest}")
    assert f"evaluate.max_new_tokens={room}" in finding.fix
    assert found(with_recipe(context, sampled[1], "evaluate.generate=false", long), "positions") == []
    samples = ("evaluate.generate=false", "train.num_samples=2", f"evaluate.max_new_tokens={longest}")
    assert only(with_recipe(context, *samples), "positions", "warning").where.startswith("data/eval.arrow")
    context.model = tiny_trainer.model("gpt2")  # a table of 512 positions, which ends there
    only(with_recipe(context, *sampled, "evaluate.max_new_tokens=513"), "positions", "error")


def test_group_and_row_in_two_splits(context: RunContext) -> None:
    train, test = (list(context.rows[split]) for split in ("train", "test"))
    rewrite(context, "test", [*test, dataclasses.replace(test[0], id="leak", group=train[0].group)])
    group, row = found(context, "split-overlap"), None
    assert [(f.severity, f.measured) for f in group] == [("error", 1)]
    assert "groups of the train split" in group[0].what and group[0].where == "data/test.arrow: leak"
    rewrite(context, "test", [*test, dataclasses.replace(train[1], id="copy", group="another")])
    row = only(context, "split-overlap")
    assert (
        row.measured == 1 and "rows of the train split" in row.what and row.where == "data/test.arrow: copy"
    )


def test_copies_in_train(context: RunContext) -> None:
    rows = list(context.rows["train"])
    copies = [dataclasses.replace(rows[0], id=f"copy{i}") for i in range(7)]
    rewrite(context, "train", [*rows, *copies])
    finding = only(context, "duplicate-rows", "warning")
    assert finding.what.startswith(f"7 of {len(rows) + 7} rows")
    assert finding.where == "data/train.arrow: copy0, copy1, copy2, copy3, copy4"


def test_too_much_was_dropped(context: RunContext, tmp_path: Path) -> None:
    shutil.copytree(context.recipe.data.source["path"], tmp_path / "code")
    for i in range(6):
        (tmp_path / "code" / f"latin_{i}.py").write_bytes(b"name = '\xe9t\xe9'\n" * (i + 3))
    context = with_recipe(context, f"data.source.path={tmp_path / 'code'}")
    prepare(context.recipe, context.run, context.tokenizer)
    finding = only(context, "drop-budget")
    assert finding.what.startswith("20.00% were dropped: 6 records ")
    assert finding.fix.endswith("data.drop_budget=0.2")
    assert found(with_recipe(context, "data.drop_budget=0.2"), "drop-budget") == []


def test_rows_disappeared(context: RunContext) -> None:
    rows = list(context.rows["train"])
    rewrite(context, "train", rows[:-2])
    kept = context.ledger["rows"]["kept"]
    assert only(context, "drop-budget").what == f"the ledger keeps {kept} rows, but the files hold {kept - 2}"
    rewrite(context, "train", rows)
    ledger = read_json(context.run.ledger)
    ledger["records"]["in"] += 1
    write_json(context.run.ledger, ledger)
    del context.ledger
    assert only(context, "drop-budget").what.startswith("25 records came in, but 24 kept + 0 dropped")


def test_most_rows_are_trimmed(context: RunContext) -> None:
    rows = list(context.rows["train"])
    half = len(rows) // 2 + 1
    trimmed = [dataclasses.replace(row, trimmed={"context": 5000}) for row in rows[:half]]
    rewrite(context, "train", trimmed + rows[half:])
    finding = only(context, "trim-share", "note")
    assert (
        finding.what.startswith(f"{half} of {len(rows)} rows")
        and f"{half} of them by more than half" in finding.what
    )


def test_special_strings_in_data(context: RunContext) -> None:
    spans = [Span("a <|im_start|> b", "context"), Span("ends <|im_end|>\n", "target", weight=1.0)]
    rows = [encoded(spans, context.tokenizer, "x")]
    rows.append(encoded([spans[0], Span(" c\n", "target", weight=1.0)], context.tokenizer, "y"))
    chat = [Span("<|im_start|>user", "markup", control=True), Span("c\n", "target", weight=1.0)]
    rewrite(context, "train", [*rows, encoded(chat, context.tokenizer, "z"), *context.rows["train"]])
    finding = only(context, "special-strings", "note")
    assert finding.measured == 1 and "and 2 of" in finding.what
    assert finding.where == "data/train.arrow: x"


@pytest.mark.parametrize(
    ("overrides", "severity", "said"),
    [
        (["train.warmup_steps=120"], "error", "rises to 0.0025 only, 25% of 0.01: warm-up takes 120 steps, and the run has 30"),
        (["train.eval_every_steps=31"], "warning", "of 30 steps is evaluated at its end only: the first evaluation is planned after step 31"),
        (["train.eval_every_steps=null", "train.eval_every_tokens=9000000"], "warning", "evaluated at its end only"),
        (["train.batch_size=4000", "train.eval_every_steps=1"], "warning", "a step takes 4000 rows"),
    ],
)  # fmt: skip
def test_schedule_does_not_fit_the_run(
    context: RunContext, overrides: list[str], severity: str, said: str
) -> None:
    assert said in only(with_recipe(context, *overrides), "schedule", severity).what


def test_schedule_without_eval_rows(context: RunContext) -> None:
    with RowWriter(context.run.rows("eval")):
        pass
    assert "0 eval rows" in only(context, "schedule").what


def test_one_target_for_most_rows(context: RunContext) -> None:
    rows = list(context.rows["train"])
    half = len(rows) // 2 + 1
    rewrite(context, "train", [dataclasses.replace(row, target="N/A") for row in rows[:half]] + rows[half:])
    finding = only(context, "constant-target", "warning")
    assert finding.what.startswith(f"{half} of {len(rows)} rows") and "'N/A'" in finding.what
    two = [dataclasses.replace(row, target="yes" if i % 3 else "no") for i, row in enumerate(rows)]
    rewrite(context, "train", two)
    assert found(context, "constant-target") == []  # two classes, two to one: usual


def test_random_weights(context: RunContext) -> None:
    context.model = make_model(initializer_range=0.02)
    finding = only(context, "initial-loss")
    measured = float(re.search(r"is ([\d.]+),", finding.what).group(1))  # type: ignore[union-attr]
    assert measured == pytest.approx(np.log(len(context.tokenizer)), rel=0.05)


def test_loss_that_is_scaled(context: RunContext) -> None:
    load(context)
    base = context.model.get_base_model()
    whole = base.loss_function
    base.loss_function = lambda **inputs: 12 * whole(**inputs)  # GAS times world size
    finding = only(context, "initial-loss")
    ours, theirs, ratio = map(float, re.findall(r"\d+\.\d+", finding.what))
    assert theirs / ours == pytest.approx(12, rel=1e-3) == pytest.approx(ratio, rel=1e-3)


def test_loss_is_not_finite(context: RunContext) -> None:
    load(context)
    with torch.no_grad():
        context.model.get_base_model().lm_head.weight[7, 3] = torch.nan
    findings = found(context, "initial-loss")
    assert findings and "nan" in findings[0].what
    json.dumps([dataclasses.asdict(f) for f in findings], allow_nan=False)


def test_gradient_is_cut_off(context: RunContext) -> None:
    load(context)
    layers = context.model.get_base_model().model.layers
    layers[0].register_forward_hook(lambda module, inputs, output: output.detach())
    finding = only(context, "gradients")
    assert (
        finding.what == "14 of 28 trainable parameters get no gradient"
    )  # A and B of the seven matrices of layer 0
    assert "layers.0" in finding.where


def test_nothing_is_trainable(context: RunContext) -> None:
    context.model = load(context).requires_grad_(False)
    assert only(context, "gradients").what.startswith("none of the model's ")


def test_frozen_parameter_gets_a_gradient(context: RunContext) -> None:
    load(context)
    embedding = context.model.get_base_model().model.embed_tokens.weight
    embedding.grad = torch.ones_like(embedding)
    assert only(context, "gradients").what == "1 frozen parameters get a gradient"


def test_gradient_is_not_finite(context: RunContext) -> None:
    context.model = make_model()
    with torch.no_grad():
        context.model.model.norm.weight[0] = torch.inf
    finding = found(context, "gradients")[-1]
    assert "not finite" in finding.what and finding.measured > 0


def test_new_token_that_nothing_trains(context: RunContext) -> None:
    context = with_recipe(context, "model.new_tokens=[<|new|>]")
    context.tokenizer = TextTokenizer(make_tokenizer()).add_tokens(["<|new|>"])
    load(context)
    finding = only(context, "gradients")
    assert finding.measured > 0 and "token" in finding.where
    ids = context.rows["train"].row(-1).input_ids.copy()
    ids[0] = (
        len(context.tokenizer) - 1
    )  # in one row of all, and not one of the two that are spread over the split
    change(context, "train", -1, input_ids=ids)
    assert found(context, "gradients") == []


def test_new_token_far_before_what_is_trained(context: RunContext) -> None:
    context = with_recipe(context, "model.new_tokens=[<|new|>]")
    context.tokenizer = TextTokenizer(make_tokenizer()).add_tokens(["<|new|>"])
    load(context)
    ids = np.resize(context.rows["train"].row(-1).input_ids, 300)
    ids[0] = len(context.tokenizer) - 1
    weights = np.zeros(300, np.float32)
    weights[-2:] = 1
    change(context, "train", -1, input_ids=ids, loss_weights=weights, span_ids=np.zeros(300, np.int16))
    assert found(context, "gradients") == []


def test_dropout_that_stays_on(context: RunContext) -> None:
    load(context)
    norm = context.model.get_base_model().model.norm
    norm.register_forward_hook(lambda module, inputs, output: functional.dropout(output, 0.2, training=True))
    finding = only(context, "dropout-off")
    assert finding.measured > 0.01 and f"{finding.measured:.4f} nats" in finding.what


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_model_that_ignores_the_mask_or_the_positions(context: RunContext, ignored: str) -> None:
    context.model = make_model()

    def drop(module: torch.nn.Module, arguments: Any, inputs: dict[str, Any]) -> Any:
        if ignored == "position_ids":  # rotary positions do not mind a shift, but they do mind another scale
            changed = inputs["position_ids"] * inputs["input_ids"].shape[0]
        else:
            changed = torch.ones_like(inputs["input_ids"])
        return arguments, {**inputs, ignored: changed}

    context.model.model.register_forward_pre_hook(drop, with_kwargs=True)
    findings = found(context, "padding-invariance")
    assert findings and all(f.severity == "error" for f in findings)
    assert any("padded on the left" in f.what and f.measured > 1e-3 for f in findings), findings
