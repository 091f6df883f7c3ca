import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.fixtures.tiny_model import make_tokenizer

from luthier.encoding.encode import encode, encode_prompt
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.tasks.classification import NO_LABEL, Classification

LABELS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(make_tokenizer())


def only(task: Classification, fields: dict, tokenizer: TextTokenizer, split: str = "train"):
    (item,) = task.examples(Record("r", fields, "g"), split, tokenizer, max_length=64, seed=0)
    return item


def test_row_has_its_weight_on_the_last_token(tokenizer: TextTokenizer) -> None:
    task = Classification(labels=LABELS, class_weights={"b": 2.5})
    example = only(task, {"text": "def add(a, b):", "label": "b"}, tokenizer)
    row = encode(example, tokenizer, 64)
    assert row.input_ids.tolist() == tokenizer.encode("def add(a, b):")
    assert row.loss_weights.tolist() == [0.0] * (len(row.input_ids) - 1) + [2.5]
    assert (row.target, row.meta["label"], row.num_prompt_tokens) == ("b", 1, len(row.input_ids))
    assert encode_prompt(example, tokenizer, 64) == row.input_ids.tolist()


@pytest.mark.parametrize("trim", ["left", "right"])
def test_long_text_is_cut_where_the_recipe_says(tokenizer: TextTokenizer, trim: str) -> None:
    text = " ".join(map(str, range(40)))
    row = encode(
        only(Classification(labels=LABELS, trim=trim), {"text": text, "label": "a"}, tokenizer), tokenizer, 10
    )
    whole = tokenizer.encode(text)
    assert row.input_ids.tolist() == (whole[:10] if trim == "right" else whole[-10:])
    assert row.loss_weights.tolist() == [0.0] * 9 + [1.0]
    assert row.trimmed == {"text": len(whole) - 10}


def test_words_are_a_target_behind_the_question(tokenizer: TextTokenizer) -> None:
    task = Classification(way="words", labels=LABELS, question="\nWhich?")
    example = only(task, {"text": "x = 1", "label": "c"}, tokenizer)
    row = encode(example, tokenizer, 64)
    assert tokenizer.decode(row.input_ids[: row.num_prompt_tokens].tolist(), first=True) == "x = 1\nWhich?"
    assert (row.target, row.input_ids[-1]) == (" c", tokenizer.eos_id)


def test_several_labels(tokenizer: TextTokenizer) -> None:
    task = Classification(labels=LABELS, several=True, separator=";")
    for given, label, target in (
        ("c; a", [1, 0, 1], "c, a"),
        ([], [0, 0, 0], NO_LABEL),
        ("", [0, 0, 0], NO_LABEL),
    ):
        example = only(task, {"text": "x", "label": given}, tokenizer)
        assert (example.meta["label"], example.label) == (label, target)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": "x"}, "no-label"),
        ({"text": "x", "label": ["a", "b"]}, "no-label"),
        ({"text": "x", "label": 1.5}, "no-label"),
        ({"text": " ", "label": "a"}, "no-text"),
        ({"label": "a"}, "missing-field"),
        ({"text": "x", "label": "d"}, "unlisted-label"),
    ],
)
def test_what_cannot_be_labelled_is_counted(tokenizer: TextTokenizer, fields: dict, reason: str) -> None:
    assert only(Classification(labels=LABELS), fields, tokenizer).reason == reason


def test_unknown_labels_are_a_fault_of_training_data_only(tokenizer: TextTokenizer) -> None:
    for split, budgeted in (("train", True), ("eval", False), ("test", False)):
        dropped = only(Classification(labels=LABELS), {"text": "x", "label": "new"}, tokenizer, split)
        assert isinstance(dropped, Dropped)
        assert (dropped.budgeted, dropped.reason) == (
            budgeted,
            "unlisted-label" if budgeted else "unknown-label",
        )


def test_names_and_weights_are_settled_by_the_data() -> None:
    task = Classification(class_weights="balanced").resolved({"b": 6, "a": 2, "c": 0})
    assert task.labels == ["a", "b", "c"]
    assert task.class_weights == {
        "b": 8 / (2 * 6),
        "a": 8 / (2 * 2),
    }  # scikit-learn's, over classes that there are
    assert Classification(labels=["z", "y"]).resolved({"b": 6}).labels == ["z", "y"]
    with pytest.raises(UserError, match="1 labels"):
        Classification().resolved({"b": 6})
    with pytest.raises(UserError, match="no class is called 'q'"):
        Classification(class_weights={"q": 2}).resolved({"a": 1, "b": 1})


def test_labels_of_an_earlier_run_keep_their_order(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    (tmp_path / "labels.json").write_text(json.dumps({"names": ["b", "a"]}))
    (tmp_path / "labels.txt").write_text("b\na\n")
    prints = set()
    for name in ("labels.json", "labels.txt"):
        task = Classification(labels=str(tmp_path / name))
        assert only(task, {"text": "x", "label": "a"}, tokenizer).meta["label"] == 1
        prints.add(task.fingerprint())
    assert len(prints) == 1
    (tmp_path / "labels.txt").write_text("a\nb\n")
    assert Classification(labels=str(tmp_path / "labels.txt")).fingerprint() not in prints
    with pytest.raises(UserError, match="no labels can be read"):
        Classification(labels=str(tmp_path / "none.txt")).resolved({})


@pytest.mark.parametrize(
    "options",
    [
        {"way": "words", "several": True},
        {"way": "words", "focal_gamma": 2.0},
        {"several": True, "class_weights": "balanced"},
        {"several": True, "hierarchy": "/"},
        {"labels": ["a"]},
        {"labels": ["a", "a"]},
    ],
)
def test_options_that_exclude_each_other(options: dict) -> None:
    with pytest.raises(ValidationError):
        Classification(**options)


def test_a_copy_with_another_label_is_a_copy() -> None:
    task = Classification()
    texts = {task.duplicate_text(Record("r", {"text": "same", "label": label}, "g")) for label in "ab"}
    assert texts == {"same"}
