"""Rows of other frameworks are read as the model will get them: masks, packs, padding, labels; bad ones are named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_model import make_tokenizer
from transformers import DataCollatorForTokenClassification, DataCollatorWithFlattening

import luthier
from luthier.check.tokenised import RowsContext, to_rows
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError

IDS = [10, 11, 12, 13, 14, 15]
PAD, EOS = 7, 2


def plain(
    encoded: dict[str, Any], pad_id: int | None = PAD
) -> list[tuple[list[int], list[int], dict[str, Any]]]:
    """Ids, places of trained tokens and what was noted of each row."""
    rows = to_rows("r", encoded, TextTokenizer(make_tokenizer()), pad_id)
    return [
        (row.input_ids.tolist(), np.flatnonzero(row.loss_weights).tolist(), dict(row.meta)) for row in rows
    ]


def test_labels_tell_what_is_trained_but_never_the_first_token() -> None:
    labels = [10, -100, 12, 13, -100, 15]
    (row,) = to_rows("r", {"input_ids": IDS, "labels": labels}, None)
    assert np.flatnonzero(row.loss_weights).tolist() == [2, 3, 5]
    assert (row.num_prompt_tokens, row.target, row.meta) == (0, "10 12 13 15", {})
    assert plain({"input_ids": IDS}) == [(IDS, [1, 2, 3, 4, 5], {})]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_taken_off_by_the_mask(side: str) -> None:
    pads, fill = [PAD] * 3, [0] * 3
    order = (lambda a, b: a + b) if side == "left" else (lambda a, b: b + a)
    encoded = {
        "input_ids": order(pads, IDS),
        "attention_mask": order(fill, [1] * 6),
        "labels": order([-100] * 3, [-100] * 4 + IDS[4:]),
    }
    noted = {"first_position": 3} if side == "left" else {}
    assert plain(encoded) == [(IDS, [4, 5], noted)]
    # Positions that were counted by the mask begin at 0.
    counted = np.clip(np.cumsum(encoded["attention_mask"]) - 1, 0, None)
    assert plain(encoded | {"position_ids": counted})[0][2] == {}


def test_padding_without_a_mask_is_found_by_its_id() -> None:
    assert plain({"input_ids": [*IDS, PAD, PAD, PAD]}) == [
        (IDS, [1, 2, 3, 4, 5], {"trained_padding": 3, "attended_padding": 3})
    ]
    labels = [-100, -100, -100, 12, 13, 14, 15]
    assert plain({"input_ids": [PAD, PAD, PAD, 12, 13, 14, 15], "labels": labels}) == [
        ([12, 13, 14, 15], [1, 2, 3], {"attended_before": 3, "first_position": 3})
    ]
    # The first of several stop tokens ends the row; a single token of padding may be its end or its beginning.
    assert plain({"input_ids": [*IDS, EOS, EOS, EOS]}, EOS)[0][0] == [*IDS, EOS]
    assert plain({"input_ids": [PAD, *IDS, PAD]})[0][::2] == ([PAD, *IDS, PAD], {})
    assert plain({"input_ids": [PAD] * 5})[0][0] == [PAD] * 5


def test_labels_on_padding_are_counted() -> None:
    encoded = {"input_ids": [*IDS, PAD, PAD], "attention_mask": [1] * 6 + [0] * 2, "labels": [*IDS, PAD, PAD]}
    assert plain(encoded) == [(IDS, [1, 2, 3, 4, 5], {"trained_padding": 2})]


@pytest.mark.parametrize(
    "columns",
    [
        {"attention_mask": [1, 1, 1, 2, 2, 3, 0, 0]},  # LLaMA-Factory's neat_packing
        {"attention_mask": [1, 1, 1, 2, 2, 3, 0, 0], "position_ids": [0, 1, 2, 0, 1, 0, 0, 0]},
        {
            "position_ids": [0, 1, 2, 0, 1, 0, 0, 0],
            "labels": [*IDS, -100, -100],
        },  # flattened, filled up to a multiple
        {"attention_mask": [1] * 6 + [0] * 2, "position_ids": [0, 1, 2, 0, 1, 0, 1, 2]},  # axolotl's batches
        {"attention_mask": [1] * 6 + [0] * 2, "seq_lengths": [3, 2, 1, 2]},  # TRL's
    ],
)
def test_packs_are_taken_apart(columns: dict[str, Any]) -> None:
    rows = to_rows("p", {"input_ids": [*IDS, PAD, PAD], **columns}, None, PAD)
    assert [row.input_ids.tolist() for row in rows] == [[10, 11, 12], [13, 14], [15]]
    assert [row.id for row in rows] == ["p/0", "p/1", "p/2"]
    assert all(row.meta["pack"] == "p" for row in rows)
    assert not any({"bad_positions", "attended_padding"} & set(row.meta) for row in rows)


def test_transformers_flattening_collator_is_taken_apart_into_its_rows() -> None:
    items = [{k: item[k] for k in ("input_ids", "labels")} for item in tiny_trainer.items(5)]
    batch = DataCollatorWithFlattening()(items)
    rows = to_rows("p", {name: batch[name][0] for name in ("input_ids", "labels", "position_ids")}, None)
    assert [row.input_ids.tolist() for row in rows] == [item["input_ids"] for item in items]


def test_transformers_padding_collator_gives_the_rows_back() -> None:
    items = tiny_trainer.items(6)
    tokenizer = make_tokenizer()
    for tokenizer.padding_side in ("left", "right"):
        batch = DataCollatorForTokenClassification(tokenizer)(items)
        for place, item in enumerate(items):
            (row,) = to_rows("r", {k: v[place] for k, v in batch.items()}, TextTokenizer(tokenizer), 2)
            assert row.input_ids.tolist() == item["input_ids"]
            trained = [label != -100 for label in item["labels"]]
            assert (row.loss_weights != 0).tolist() == trained


@pytest.mark.parametrize(
    ("positions", "bad"),
    [([0] * 6, 6), ([0, 1, 2, 4, 5, 6], 1), ([5, 4, 3, 2, 1, 0], 4), ([0, 1, 2, 3, 4, 5], None)],
)
def test_positions_that_make_no_sense_are_counted(positions: list[int], bad: int | None) -> None:
    found = plain({"input_ids": IDS, "position_ids": positions})
    assert found[0][2].get("bad_positions") == bad


def test_labels_that_are_other_tokens_are_kept_in_a_sample() -> None:
    (row,) = to_rows("r", {"input_ids": IDS, "labels": [*IDS[1:], -100]}, None)
    assert row.meta == {"other_labels": 5, "shifted_labels": 5, "label_sample": [[0, 1, 2, 3, 4], IDS[1:]]}


@pytest.mark.parametrize("label", [3, 0.5, [0, 1, 1], [0.2, 3.5], torch.tensor(1)])
def test_label_of_the_whole_row(label: Any) -> None:
    (row,) = to_rows("r", {"input_ids": IDS, "labels": label}, None)
    assert row.meta["label"] == (label.tolist() if isinstance(label, torch.Tensor) else label)
    assert not row.loss_weights.any()


def test_masks_of_trl_stand_for_labels() -> None:
    assert plain({"input_ids": IDS, "completion_mask": [0, 0, 0, 1, 1, 1]})[0][1] == [3, 4, 5]
    assert plain({"input_ids": IDS, "assistant_masks": [0, 1, 0, 0, 1, 0]})[0][1] == [1, 4]


def folder_of_packs(path: Path) -> None:
    """As LLaMA-Factory writes it with neat_packing, train and validation."""
    splits = {}
    for name, count in (("train", 30), ("validation", 6)):
        packs = []
        items = tiny_trainer.items(count, seed=count)
        for start in range(0, count, 3):
            three = items[start : start + 3]
            pack = {k: [v for item in three for v in item[k]] for k in ("input_ids", "labels")}
            sizes = [len(item["labels"]) for item in three]
            fill = 128 - sum(sizes)
            pack["input_ids"] += [2] * fill
            pack["labels"] += [-100] * fill
            pack["attention_mask"] = [n for n, s in enumerate(sizes, 1) for _ in range(s)] + [0] * fill
            pack["position_ids"] = [i for s in sizes for i in range(s)] + [0] * fill
            packs.append({**pack, "images": None, "videos": None, "audios": None})
        splits[name] = Dataset.from_list(packs)
    DatasetDict(splits).save_to_disk(path)


def test_folder_of_packs_opens_as_it_is(tmp_path: Path) -> None:
    folder_of_packs(tmp_path / "data")
    tiny_trainer.save_folder(tmp_path / "model")
    report = luthier.audit(model=tmp_path / "model", rows=tmp_path / "data", quick=True)
    assert [f for f in report.findings if f.severity == "error"] == []
    (tmp_path / "rows").mkdir()
    context = RowsContext(str(tmp_path / "model"), tmp_path / "data", tmp_path / "rows")
    assert {split: len(rows) for split, rows in context.rows.items()} == {"train": 30, "eval": 6}
    assert context.place("eval") == f"{tmp_path / 'data'} (validation)"
    items = tiny_trainer.items(30, seed=30)
    assert [row.input_ids.tolist() for row in context.rows["train"]] == [i["input_ids"] for i in items]
    assert context.padding_share == pytest.approx(1 - sum(len(i["labels"]) for i in items) / (10 * 128))


def test_code_that_is_trusted_is_trusted_when_the_tokenizer_is_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_trainer.save_folder(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(i) + "\n" for i in tiny_trainer.items(4)))
    trusted, load = [], TextTokenizer.load

    def noted(folder: Any, **given: Any) -> TextTokenizer:
        trusted.append(given["trust_remote_code"])
        return load(folder, **given)

    monkeypatch.setattr(TextTokenizer, "load", noted)
    rows = tmp_path / "rows.jsonl"
    # What is tested is where the flag arrives; this tokenizer has no code of its own.
    luthier.audit(model=tmp_path / "model", rows=rows, only=["tokenizer-reload"], trust_remote_code=True)
    assert trusted == [True, True]


def saved(path: Path, **splits: int) -> Path:
    items = tiny_trainer.items(sum(splits.values()))
    parts = {}
    for name, count in splits.items():
        parts[name], items = Dataset.from_list(items[:count]), items[count:]
    DatasetDict(parts).save_to_disk(path)
    return path


def test_eval_rows_never_take_the_place_of_training_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_trainer.save_folder(tmp_path / "model")
    rows = saved(tmp_path / "rows", train=6, validation=2, valid=1)
    others = saved(tmp_path / "others", train=5, validation=3, eval=4)
    context = RowsContext(str(tmp_path / "model"), rows, tmp_path, others)
    assert {split: len(found) for split, found in context.rows.items()} == {"train": 6, "eval": 3}
    assert context.place("eval") == f"{others} (validation)"
    # What is left out is said.
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "not looked at are the splits valid",
        "not looked at are the splits eval, train",
    ]


def test_data_set_without_training_rows_is_refused(tmp_path: Path) -> None:
    tiny_trainer.save_folder(tmp_path / "model")
    with pytest.raises(UserError) as error:
        luthier.audit(model=tmp_path / "model", rows=saved(tmp_path / "rows", test=3), quick=True)
    assert error.value.what == "none of the splits of the data set is called train: test"
    assert error.value.fix.endswith(str(tmp_path / "rows" / "test"))
    (tmp_path / "rows" / "dataset_dict.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        luthier.audit(model=tmp_path / "model", rows=tmp_path / "rows", quick=True)


def test_a_path_that_leads_nowhere_is_said_before_the_model_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        _ = RowsContext("no-such/model", tmp_path / "none.jsonl", tmp_path).rows


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    items = tiny_trainer.items(20)
    path = tmp_path / ("saved" if kind == "saved" else f"rows.{kind}")
    if kind == "jsonl":
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(items), path)
    else:
        Dataset.from_list(items).save_to_disk(path)
    tiny_trainer.save_folder(tmp_path / "model")
    (tmp_path / "rows").mkdir()
    context = RowsContext(str(tmp_path / "model"), path, tmp_path / "rows", eval_rows=path)
    for split in ("train", "eval"):
        assert [row.input_ids.tolist() for row in context.rows[split]] == [i["input_ids"] for i in items]
    assert context.rows["train"].row(3).id.endswith(":4")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"text": "no ids"}, "no 'input_ids'"),
        ({"input_ids": IDS, "attention_mask": [1] * 5}, "6 input_ids, but an attention_mask of 5"),
        ({"input_ids": IDS, "labels": [*IDS, -100]}, "6 input_ids, but 7 labels"),
        ({"input_ids": IDS, "labels": ["a"] * 6}, "not numbers"),
        ({"input_ids": [1.5, 2.5]}, "not whole numbers"),
        ({"input_ids": ["a", "b"]}, "not whole numbers"),
        ({"input_ids": [[1, 2], [3]]}, "inhomogeneous"),
        ({"input_ids": IDS, "completion_mask": [1]}, "6 input_ids, but a completion_mask of 1"),
        ({"input_ids": IDS, "attention_mask": [1, 1, 1, 1, 1, 0], "seq_lengths": [1]}, "seq_lengths of 1"),
    ],
)
def test_row_that_is_not_tokenised_is_named(tmp_path: Path, bad: dict[str, Any], said: str) -> None:
    lines = [json.dumps(item) for item in tiny_trainer.items(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, json.dumps(bad)]) + "\n")
    tiny_trainer.save_folder(tmp_path / "model")
    with pytest.raises(UserError) as error:
        luthier.audit(model=tmp_path / "model", rows=tmp_path / "rows.jsonl", quick=True)
    assert said in error.value.what and error.value.where == "rows.jsonl:4"


def test_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(tiny_trainer.items(1)[0]) + "\n{oops\n")
    tiny_trainer.save_folder(tmp_path / "model")
    with pytest.raises(UserError, match="a row cannot be read"):
        luthier.audit(model=tmp_path / "model", rows=tmp_path / "rows.jsonl", quick=True)


def test_model_that_cannot_be_loaded_is_named_as_the_model(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in tiny_trainer.items(4)))
    tiny_trainer.save_folder(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"nothing")
    report = luthier.audit(model=tmp_path / "model", rows=tmp_path / "rows.jsonl")
    said = [f for f in report.findings if "cannot be loaded" in f.what]
    assert len(said) == 1 and said[0].where.startswith("model (")


@pytest.mark.parametrize(
    ("odd", "checks"),
    [
        ({"input_ids": [], "labels": []}, {"untrained-row"}),
        ({"input_ids": [*IDS, -100], "labels": [*IDS, -100]}, {"vocabulary", "stop-token"}),
    ],
)
def test_odd_rows_are_named_by_the_checks_for_them_alone(
    tmp_path: Path, odd: dict[str, Any], checks: set[str]
) -> None:
    rows = [odd] * 3 + tiny_trainer.items(30)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_trainer.save_folder(tmp_path / "model")
    report = luthier.audit(model=tmp_path / "model", rows=tmp_path / "rows.jsonl")
    assert {f.check for f in report.findings if f.severity != "note"} - {"duplicate-rows"} == checks
