"""Checks of tokens name the cause, leave real tokenizers alone, and agree with what others compute."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.faults.suite import check_recipe
from tests.fixtures import chats, tiny_trainer
from tests.fixtures.tiny_model import TEXTS, make_tokenizer
from tests.fixtures.tokenizers import FAMILIES
from tests.unit.check.given import Given, found
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    Trainer,
)

from luthier.check.checks import padding_waste
from luthier.check.checks.padding_waste import MOST_SHARE
from luthier.check.checks.template_prefix import _is_dated
from luthier.check.checks.untrained_embeddings import _never_trained
from luthier.check.context import CheckContext, Skip
from luthier.check.trainer import TrainerContext
from luthier.encoding.batches import Classes, shuffled
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.recipe import Recipe, Train
from luthier.records import Finding

# peft 0.21 asks transformers 5.23 by a name that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

Item = dict[str, Any]
IGNORED = -100
CHECKS = [
    *(
        "bos",
        "labels",
        "padding",
        "positions",
        "prompt-parity",
        "special-ids",
        "stop-token",
        "template-prefix",
    ),
    *("tokenizer-loss", "tokenizer-reload", "trained-role", "truncation", "untrained-row", "vocabulary"),
    *("natural-boundary", "untrained-embeddings"),
]


def only(context: CheckContext, check: str, severity: str = "error") -> Finding:
    (finding,) = found(context, check)
    assert finding.severity == severity, finding
    return finding


def answered(prompt: list[int], answer: list[int]) -> Item:
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


# Real tokenizers


@pytest.mark.parametrize("family", FAMILIES)
def test_real_tokenizers_are_left_alone(tmp_path: Path, family: str) -> None:
    """Code through the tokenizer's own call, with its BOS, and EOS behind it."""
    hf = FAMILIES[family]().hf
    lines = [line for text in TEXTS for line in text.splitlines() if line.strip()]
    made = []
    for index in range(40):
        text = f"{lines[index % len(lines)]}\n    name_{index} = {lines[(index * 7) % len(lines)].lower()}"
        ids = list(hf(text)["input_ids"])
        ids = ids if ids[-1] == hf.eos_token_id else [*ids, hf.eos_token_id]
        made.append(answered(ids[:4], ids[4:]))
    context = Given(tmp_path, made, hf)
    for check in (
        "bos",
        "prompt-parity",
        "tokenizer-reload",
        "stop-token",
        "truncation",
        "labels",
        "padding",
    ):
        try:
            assert [f for f in found(context, check) if f.severity != "note"] == [], check
        except Skip as why:
            assert "no BOS" in str(why) or "decode to text" in str(why), (check, why)


def test_random_ids_are_no_other_tokenizer(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    made = [{"input_ids": draw.integers(3, 200, int(draw.integers(5, 30))).tolist()} for _ in range(300)]
    with pytest.raises(Skip, match="decode to text"):
        Given(tmp_path, made, make_tokenizer()).found("prompt-parity")


@pytest.mark.parametrize("turns", [1, 3])
def test_chats_that_our_encoder_makes_are_left_alone(tmp_path: Path, turns: int) -> None:
    hf = chats.llama3()
    made = chats.items(hf, chats.conversations(30, turns, tool=turns == 3))
    context = Given(tmp_path, made, hf, chats.model(hf, made))
    for check in CHECKS:
        try:
            assert found(context, check) == [], check
        except Skip as why:
            assert check == "tokenizer-loss", (check, why)


# Stop tokens


def ending(hf: Any, *, answer: str = " 12", behind: list[int] | None = None, labels: int = 0) -> list[Item]:
    """Rows whose answers end with some ids, of which the last ``labels`` have none."""
    made = []
    for index in range(20):
        prompt = hf.encode(f"{TEXTS[index % 5][: 9 + index % 5]} {index} =", add_special_tokens=False)
        item = answered(prompt, hf.encode(f"{answer}{index}", add_special_tokens=False) + (behind or []))
        if labels:
            item["labels"] = item["labels"][:-labels] + [IGNORED] * labels
        made.append(item)
    return made


def test_stop_token_names_padding_that_is_the_end(tmp_path: Path) -> None:
    finding = only(
        Given(tmp_path, ending(make_tokenizer(), behind=[2], labels=1), make_tokenizer()), "stop-token"
    )
    assert "it is the padding token too" in finding.what and finding.measured == 20
    assert "tokenizer.pad_token" in finding.fix


def test_stop_token_names_the_mask_where_padding_is_another_token(tmp_path: Path) -> None:
    hf = chats.tokenizer(tokens=["<|pad|>"], pad_token="<|pad|>")
    finding = only(Given(tmp_path, ending(hf, behind=[2], labels=1), hf), "stop-token")
    assert "leaves out the end of the turn" in finding.what and "generation" in finding.fix


def test_stop_token_blames_no_collator_when_some_ends_are_trained(tmp_path: Path) -> None:
    made = ending(make_tokenizer(), behind=[2], labels=1)[:8] + ending(make_tokenizer(), behind=[2])[8:]
    finding = only(Given(tmp_path, made, make_tokenizer()), "stop-token", "warning")
    assert "leaves out the end" in finding.what and finding.measured == 8


def test_stop_token_names_another_control_token(tmp_path: Path) -> None:
    finding = only(Given(tmp_path, ending(make_tokenizer(), behind=[0]), make_tokenizer()), "stop-token")
    assert "end with '<|endoftext|>', which nothing takes for an end" in finding.what
    assert "eos_token_id in generation_config.json" in finding.fix


def test_stop_token_tells_what_is_missing_in_each_share(tmp_path: Path) -> None:
    hf = make_tokenizer()
    made = ending(hf)[:10] + ending(hf, behind=[2, 20, 21])[10:15] + ending(hf, behind=[0])[15:]
    finding = only(Given(tmp_path, made, hf), "stop-token")
    assert "10 have no stop token at all" in finding.what and "5 have one elsewhere" in finding.what
    assert "5 end with '<|endoftext|>'" in finding.what and finding.measured == 20


def test_whole_texts_without_an_end_are_a_warning(tmp_path: Path) -> None:
    made = [{"input_ids": item["input_ids"]} for item in ending(make_tokenizer())]
    assert (
        "no stop token at all" in only(Given(tmp_path, made, make_tokenizer()), "stop-token", "warning").what
    )


@pytest.mark.parametrize(
    ("ends", "severity", "said"),
    [
        ("trained", None, ""),
        ("masked", "error", "in none of the"),
        ("none", "note", "none of 40 holds a stop token"),
    ],
)
def test_blocks_of_a_stream(tmp_path: Path, ends: str, severity: str | None, said: str) -> None:
    draw = np.random.default_rng(0)
    ids = draw.integers(5, 300, 64 * 40)
    if ends != "none":
        ids[::17] = 2
    labels = np.where((ids == 2) & (ends == "masked"), IGNORED, ids)
    made = [
        {"input_ids": ids[at : at + 64].tolist(), "labels": labels[at : at + 64].tolist()}
        for at in range(0, len(ids), 64)
    ]
    findings = Given(tmp_path, made, make_tokenizer()).found("stop-token")
    assert [f.severity for f in findings] == ([severity] if severity else [])
    assert not findings or said in findings[0].what


# Truncation


@pytest.mark.parametrize(("share", "severity"), [(0.02, "note"), (0.2, "warning"), (0.7, "error")])
def test_truncation_by_its_share(tmp_path: Path, share: float, severity: str) -> None:
    draw = np.random.default_rng(0)
    made = []
    for index in range(400):
        long = index < 400 * share
        prompt = draw.integers(5, 300, int(draw.integers(5, 40))).tolist()
        answer = draw.integers(5, 300, 120 if long else int(draw.integers(3, 40))).tolist()
        item = answered(prompt, [*answer, 2])
        made.append({name: values[:100] for name, values in item.items()})
    context = Given(tmp_path, made, make_tokenizer())
    finding = only(context, "truncation", severity)
    assert finding.measured == pytest.approx(share) and "cut off at 100 tokens" in finding.what
    assert context.found("stop-token") == []  # said once


def test_rows_of_classes_that_are_cut(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    lengths = np.minimum(draw.lognormal(4, 0.8, 500), 128).astype(int)
    made = [{"input_ids": draw.integers(5, 300, n).tolist(), "labels": i % 3} for i, n in enumerate(lengths)]
    finding = only(Given(tmp_path, made, make_tokenizer()), "truncation", "note")
    assert finding.measured == pytest.approx((lengths == 128).mean(), abs=1e-4)
    few = [{"input_ids": [5] * (9 + i % 3), "labels": i % 2} for i in range(60)]
    (tmp_path / "few").mkdir()
    assert Given(tmp_path / "few", few, make_tokenizer()).found("truncation") == []


# Labels


def labelled(change: Any) -> list[Item]:
    return [
        {"input_ids": item["input_ids"], "labels": change(list(item["input_ids"]))}
        for item in tiny_trainer.items(30)
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ids: [*ids[1:], IGNORED], "shifted by one already"),
        (lambda ids: [IGNORED, *ids[:-1]], "1 places before"),
        (lambda ids: [*ids[4:], *[IGNORED] * 4], "4 places further on"),
        (lambda ids: [(i * 7 + 3) % 300 for i in ids], "has the label"),
    ],
)
def test_labels_are_traced_to_where_they_come_from(tmp_path: Path, change: Any, said: str) -> None:
    finding = only(Given(tmp_path, labelled(change), make_tokenizer()), "labels")
    assert said in finding.what, finding.what
    assert f"{finding.measured:,} of " in finding.what


def test_labels_of_other_rows_are_named(tmp_path: Path) -> None:
    whole = tiny_trainer.items(30)
    width = max(len(item["input_ids"]) for item in whole)
    ids = [item["input_ids"] + [5] * (width - len(item["input_ids"])) for item in whole]
    made = [{"input_ids": row, "labels": ids[(place + 3) % 30]} for place, row in enumerate(ids)]
    finding = only(Given(tmp_path, made, make_tokenizer()), "labels")
    assert "row 0 has those of row 3" in finding.what


def test_a_few_other_labels_are_a_warning(tmp_path: Path) -> None:
    made = tiny_trainer.items(30)
    made[3]["labels"][-1] = 77
    assert only(Given(tmp_path, made, make_tokenizer()), "labels", "warning").measured == 1


def test_shifted_labels_are_a_warning_where_the_loss_is_another(tmp_path: Path) -> None:
    class OwnLoss(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            return model(inputs["input_ids"]).logits.mean()

    for cls, severity in ((Trainer, "error"), (OwnLoss, "warning")):
        trainer = tiny_trainer.trainer(train=labelled_items(), cls=cls)
        (tmp_path / cls.__name__).mkdir()
        context = TrainerContext(trainer, tmp_path / cls.__name__)
        assert only(context, "labels", severity).measured > 0


def labelled_items() -> list[Item]:
    return [{**item, "labels": [*item["input_ids"][1:], IGNORED]} for item in tiny_trainer.items(24)]


def test_masked_language_models_are_left_alone(tmp_path: Path) -> None:
    hf = chats.tokenizer(tokens=["<|mask|>", "<|pad|>"], pad_token="<|pad|>", mask_token="<|mask|>")
    config = BertConfig(vocab_size=len(hf), hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    made = [{"input_ids": item["input_ids"]} for item in tiny_trainer.items(24)]
    collator = DataCollatorForLanguageModeling(hf, mlm=True)
    trainer = tiny_trainer.trainer(
        BertForMaskedLM(config), train=made, eval=made, collator=collator, tokenizer=hf
    )
    context = TrainerContext(trainer, tmp_path)
    assert len(context.rows["train"]) == 24
    for check in ("labels", "stop-token", "untrained-row", "truncation"):
        with pytest.raises(Skip, match="masked"):
            found(context, check)


# Padding


def test_padding_with_labels_and_without_a_mask(tmp_path: Path) -> None:
    hf = chats.tokenizer(tokens=["<|pad|>"], pad_token="<|pad|>")
    pad = hf.pad_token_id
    made = [{"input_ids": item["input_ids"] + [pad] * 40} for item in tiny_trainer.items(10)]
    context = Given(tmp_path, made, hf, tiny_trainer.model(), pad)
    trained, attended = context.found("padding")
    assert (trained.severity, trained.measured) == ("error", 400) and "400 of " in trained.what
    assert (attended.severity, attended.measured) == ("note", 400) and "only looks back" in attended.what


def test_left_padding_moves_only_learned_positions(tmp_path: Path) -> None:
    made = [
        {
            "input_ids": [2] * 5 + item["input_ids"],
            "attention_mask": [0] * 5 + item["attention_mask"],
            "labels": [IGNORED] * 5 + item["labels"],
        }
        for item in tiny_trainer.items(10)
    ]
    for family, expected in (("llama", []), ("gpt2", ["warning"])):
        (tmp_path / family).mkdir()
        context = Given(tmp_path / family, made, make_tokenizer(), tiny_trainer.model(family), 2)
        findings = context.found("padding")
        assert [f.severity for f in findings] == expected
        assert not findings or "on average, at 5" in findings[0].what


@pytest.mark.parametrize("factor", [1, 8])
def test_padding_share_is_that_of_the_batches(tmp_path: Path, factor: int) -> None:
    draw = np.random.default_rng(0)
    made = [{"input_ids": [5] * int(n), "labels": i % 3} for i, n in enumerate(draw.integers(4, 60, 64))]
    made[0]["input_ids"] = [5] * (60 * factor)
    collator = DataCollatorWithPadding(make_tokenizer(), padding="max_length", max_length=60 * factor)
    trainer = tiny_trainer.class_trainer(num_labels=3, train=made)
    trainer.data_collator = collator
    context = TrainerContext(trainer, tmp_path)
    lengths = [len(item["input_ids"]) for item in made]
    width = pad_sequence([torch.ones(n) for n in lengths], batch_first=True).numel()
    share = 1 - sum(lengths) / width
    findings = found(context, "padding-waste")
    assert len(findings) == (share > MOST_SHARE)
    for finding in findings:
        assert finding.measured == pytest.approx(share, abs=1e-3)
        assert f"{1 / (1 - share):.1f} times" in finding.what


def test_rows_in_packs_have_no_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding_waste, "MOST_SHARE", 0.001)
    for packing in (False, "auto"):
        said = check_recipe(tmp_path, train={"packing": packing})
        names = {finding["check"] for finding in said["findings"]}
        assert ("padding-waste" in names) == (packing is False)


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_padding_is_that_of_the_rows_that_are_drawn(balance: float) -> None:
    labels, lengths = np.repeat([0, 1], [90, 10]), np.repeat([10, 100], [90, 10])
    said: list[str] = []
    context: Any = SimpleNamespace(
        recipe=Recipe(train=Train(balance_classes=balance, batch_size=4)),
        rows={"train": SimpleNamespace(labels=lambda: labels)},
        training=SimpleNamespace(plan=SimpleNamespace(num_steps=25)),
        looked_at=said.append,
    )
    share = padding_waste._of_run(context, lengths)
    drawn = shuffled(0, 100, 100, 0, Classes(labels, balance) if balance else None)
    tokens = lengths[drawn].sum()
    assert tokens == (5500 if balance else 1900)
    width = sum(4 * lengths[drawn[i : i + 4]].max() for i in range(0, 100, 4))
    assert share == pytest.approx(1 - tokens / width)
    assert said == [f"25 steps of 4 rows, {tokens:,} tokens and {width - tokens:,} of padding ({share:.0%})"]


# Roles and templates


def test_whole_conversations_are_a_note(tmp_path: Path) -> None:
    hf = chats.llama3()
    made = [{"input_ids": item["input_ids"]} for item in chats.items(hf, chats.conversations(20, 2))]
    finding = only(Given(tmp_path, made, hf), "trained-role", "note")
    assert "train the whole conversation" in finding.what and finding.measured == 20


def test_a_mask_that_reaches_over_the_next_header(tmp_path: Path) -> None:
    hf = chats.llama3()
    user = TextTokenizer(hf).encode("<|start_header_id|>user<|end_header_id|>", control=True)
    made = chats.items(hf, chats.conversations(20, 2))
    for item in made:
        ids = item["input_ids"]
        (second,) = [i for i in range(9, len(ids)) if ids[i : i + len(user)] == user]
        for place in range(second, second + len(user)):
            item["labels"][place] = ids[place]
    finding = only(Given(tmp_path, made, hf), "trained-role")
    assert f"train {20 * len(user)} of user in 20 turns" in finding.what and "spills over" in finding.what
    few = chats.items(hf, chats.conversations(20, 2))[1:] * 1 + made[:1]
    (tmp_path / "few").mkdir()
    assert only(Given(tmp_path / "few", few, hf), "trained-role", "warning").measured == 1


@pytest.mark.parametrize(("turns", "last_only", "expected"), [(1, False, 0), (3, False, 1), (3, True, 0)])
def test_rewritten_history_counts_where_several_answers_are_trained(
    tmp_path: Path, turns: int, last_only: bool, expected: int
) -> None:
    hf = chats.tokenizer(chats.QWEN3)
    made = chats.items(hf, chats.conversations(20, turns))
    for item in made if last_only else []:
        ends = [place for place, i in enumerate(item["labels"]) if i == 2]
        item["labels"][: ends[-2] + 1] = [IGNORED] * (ends[-2] + 1)
    findings = Given(tmp_path, made, hf).found("template-prefix")
    assert [f.severity for f in findings] == ["warning"] * expected
    assert not findings or "'<think>\\n\\n</think>\\n\\ngiven0answer'" in findings[0].what


def test_generation_prompt_that_rows_have_is_no_fault(tmp_path: Path) -> None:
    hf = chats.tokenizer(chats.R1, ["<|User|>", "<|Assistant|>", "<think>"])
    made = []
    for index, (asked, said) in enumerate(chats.conversations(20)):
        prompt = hf.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
        texts = (prompt, f"So {index}.\n</think>\n\n{said['content']}<|im_end|>")
        made.append(answered(*(hf.encode(text, add_special_tokens=False) for text in texts)))
    assert Given(tmp_path, made, hf).found("template-prefix") == []


def test_templates_that_ask_for_the_time() -> None:
    dated, plain = (TextTokenizer(chats.llama3(t)) for t in (chats.LLAMA32, chats.LLAMA3))
    assert _is_dated(dated, {}) and not _is_dated(plain, {})
    assert not _is_dated(dated, {"date_string": "26 Jul 2024"})


# Tokenizers and models


def test_another_end_in_the_generation_config(tmp_path: Path) -> None:
    model = tiny_trainer.model()
    context = Given(tmp_path, tiny_trainer.items(20), make_tokenizer(), model)
    assert context.found("special-ids") == []
    model.generation_config.eos_token_id = [0, 9]
    finding = only(context, "special-ids", "warning")
    assert finding.measured == 2 and "20 of 20 rows end with <|im_end|> (2)" in finding.what
    assert "[0, 2, 9]" in finding.fix
    model.config.bos_token_id = model.generation_config.bos_token_id = 5
    assert {f.severity for f in context.found("special-ids")} == {"warning", "note"}


def test_rows_that_no_training_made() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(500, 16, generator=draw)
    assert _never_trained(weight) == {}
    weight[3] = 0
    weight[7] = weight[400] = weight[9]
    weight[20] = weight.mean(0)
    assert _never_trained(weight) == {
        3: "zero",
        7: "equal to 2 others",
        9: "equal to 2 others",
        400: "equal to 2 others",
        20: "the mean of all",
    }
    assert set(_never_trained(weight.bfloat16())) == {3, 7, 9, 400, 20}


def test_rows_that_transformers_adds_are_known() -> None:
    model = tiny_trainer.model()
    before = len(make_tokenizer())
    model.resize_token_embeddings(before + 4)  # drawn around the mean
    assert {i for i in _never_trained(model.get_input_embeddings().weight.detach()) if i != 2} == set(
        range(before, before + 4)
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "error"),
        ({"trainable_token_indices": {"embed_tokens": [376]}, "ensure_weight_tying": False}, "note"),
        ({"modules_to_save": ["embed_tokens"]}, "note"),
    ],
)
def test_embeddings_that_stay_as_they_are(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    hf = chats.tokenizer(tokens=["<|new|>"])
    made = tiny_trainer.items(20)
    for item in made:
        item["input_ids"][0] = 376
    base = tiny_trainer.model()
    base.resize_token_embeddings(377)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], **options))
    finding = only(Given(tmp_path, made, hf, model), "untrained-embeddings", expected)
    assert "'<|new|>' (376: the mean of all)" in finding.what and "20 of 20 rows" in finding.what


def test_unknown_tokens_are_counted(tmp_path: Path) -> None:
    hf = FAMILIES["wordpiece"]().hf
    texts = [f"def add {chr(0x4E00 + i)} ( a )" if i < 5 else "def add ( a )" for i in range(20)]
    made = [answered([2], list(hf(text)["input_ids"])[1:]) for text in texts]
    finding = only(Given(tmp_path, made, hf), "tokenizer-loss", "warning")
    assert finding.measured == 5 and "5 of 20 rows" in finding.what
    with pytest.raises(Skip, match="bytes"):
        Given(tmp_path, made, chats.tokenizer(tokens=["<|unk|>"], unk_token="<|unk|>")).found(
            "tokenizer-loss"
        )


def test_ids_that_the_tokenizer_does_not_know(tmp_path: Path) -> None:
    made = tiny_trainer.items(20)
    model = tiny_trainer.model()
    model.resize_token_embeddings(400)
    context = Given(tmp_path, made, make_tokenizer(), model)
    assert context.found("vocabulary") == []
    for item in made[:3]:
        item["input_ids"][1] = 390
    (tmp_path / "more").mkdir()
    context = Given(tmp_path / "more", made, make_tokenizer(), model)
    finding = only(context, "vocabulary", "warning")
    assert finding.measured == 3 and "ids from 376 to 399" in finding.what


def test_ids_without_an_embedding_are_found_without_a_tokenizer(tmp_path: Path) -> None:
    made = tiny_trainer.items(24)
    made[2]["input_ids"][1] = 390
    trainer = tiny_trainer.trainer(train=made)
    trainer.processing_class = None
    assert "ids up to 390" in only(TrainerContext(trainer, tmp_path), "vocabulary").what
