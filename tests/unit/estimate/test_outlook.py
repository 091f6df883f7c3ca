"""The estimate of a recipe: what fits, how long it takes, and what is said of it."""

import json

import pytest

from luthier import recipe_file
from luthier.errors import UserError
from luthier.estimate.memory import memory
from luthier.estimate.outlook import UTILISATION, outlook, row_counts
from luthier.estimate.shape import shape_of
from luthier.recipe import Recipe, validate
from luthier.run_folder import RunFolder, write_json, write_text

LORA = {"name": "mistralai/Mistral-7B-v0.1", "precision": "bf16"}


def recipe(**settings) -> Recipe:
    return validate({"name": "mine", "model": LORA, **settings})


def test_the_largest_micro_batch_fits_and_one_token_more_does_not(tmp_path):
    made = outlook(recipe(), "2xA100-40G", run=tmp_path, rows=100)
    shape = shape_of(recipe().model, "bf16")
    for way in made.ways:
        most = way.largest_micro_batch_tokens
        needed = [
            memory(shape, way.way, tokens=n, row_tokens=512, num_gpus=2).total for n in (most, most + 1)
        ]
        assert needed[0] <= made.device.usable < needed[1]


def test_hours_are_operations_over_the_peak(tmp_path):
    made = outlook(recipe(train={"batch_size": 16, "epochs": 2}), "8xA100-80G", run=tmp_path, rows=1000)
    assert made.steps == 125
    plain = made.ways[0]
    work = 2000 * 512 * made.flops.training(1.0)
    assert plain.train_hours[0] == pytest.approx(work / (8 * 312e12 * UTILISATION[1]) / 3600)
    assert plain.train_hours[1] == pytest.approx(work / (8 * 312e12 * UTILISATION[0]) / 3600)
    assert plain.tokens_per_s[0] * plain.train_hours[1] * 3600 == pytest.approx(2000 * 512)
    assert made.ways[1].train_hours > plain.train_hours


def test_gpus_without_a_row_of_the_step_do_no_work(tmp_path):
    made = outlook(recipe(train={"batch_size": 12}), "8xH100-80G", run=tmp_path, rows=1000)
    even = outlook(recipe(train={"batch_size": 16}), "8xH100-80G", run=tmp_path, rows=1000)
    assert made.ways[0].tokens_per_s[0] == pytest.approx(even.ways[0].tokens_per_s[0] * 6 / 8)
    assert any(
        "batch_size=12 is no multiple of 8 GPUs, which do the work of 6: take 16" in w for w in made.words
    )
    assert not any("multiple" in word for word in even.words)


def test_what_does_not_fit_is_said_with_what_would(tmp_path):
    tight = recipe(train={"micro_batch_tokens": 16_384, "batch_size": 64})
    words = " ".join(outlook(tight, "A100-40G", run=tmp_path, rows=9).words)
    assert "As it stands it does not fit" in words and "most of it activations" in words
    assert "It fits with train.micro_batch_tokens=" in words
    assert "It fits with gradient checkpointing: " in words and "QLoRA" in words
    made = outlook(recipe(), "A100-80G", run=tmp_path, rows=9)
    assert made.words[0].startswith("As it stands it fits: ")
    full = recipe(model={**LORA, "adapter": None})
    none = outlook(full, "1x4090", run=tmp_path, rows=9)
    assert not none.fits and any(word.startswith("No way fits") for word in none.words)
    assert outlook(full, "8xA100-80G", run=tmp_path, rows=9).fits, "sharded"


def test_ways_are_those_that_there_are(tmp_path):
    def names(made):
        return [way.way.name for way in made.ways]

    one = ["plain", "checkpointing", "4-bit+checkpointing"]
    assert names(outlook(recipe(), "L40S", run=tmp_path)) == one
    full = recipe(model={**LORA, "adapter": None})
    several = ["plain", "checkpointing", "sharding", "sharding+checkpointing"]
    assert names(outlook(full, "2xL40S", run=tmp_path)) == several


def test_evaluation_is_held_against_the_memory_too(tmp_path):
    long = recipe(data={"max_length": 3000}, evaluate={"batch_size": 400})
    made = outlook(long, "A100-80G", run=tmp_path, rows=100)
    most = made.evaluation.largest_batch_size
    assert any(f"take {most}" in word for word in made.words) and most < 400
    fitting = outlook(
        recipe(data={"max_length": 3000}, evaluate={"batch_size": most}), "A100-80G", run=tmp_path, rows=100
    )
    assert fitting.evaluation.fits
    beyond = outlook(recipe(data={"max_length": 5000}), "A100-80G", run=tmp_path, rows=100)
    assert beyond.evaluation.batch_size == 1 and any("window of 4096" in word for word in beyond.words)


def test_generating_costs_time(tmp_path):
    with_text = outlook(recipe(), "L40S", run=tmp_path, rows=1000).evaluation
    without = outlook(recipe(evaluate={"generate": False}), "L40S", run=tmp_path, rows=1000).evaluation
    assert with_text.final_hours[0] > 2 * without.final_hours[0] > 0
    assert with_text.cache_bytes > without.cache_bytes


def test_an_unknown_number_of_rows_gives_no_hours(tmp_path):
    made = outlook(recipe(), "L40S", run=tmp_path)
    assert made.steps is None and made.ways[0].train_hours is None
    assert any("give --rows" in word for word in made.words)


def test_bf16_where_there_is_none(tmp_path):
    with pytest.raises(UserError, match="multiplies no bf16"):
        outlook(recipe(), "V100-32G", run=tmp_path)
    auto = recipe(model={"name": LORA["name"]})
    made = outlook(auto, "V100-32G", run=tmp_path)
    assert made.precision == "fp32" and made.shape.product_bytes == 4


def prepared(folder, made: Recipe) -> RunFolder:
    run = RunFolder(folder)
    write_text(run.recipe, recipe_file.dump(made))
    length = {"max": 300, "histogram": {"edges": [100, 200, 301], "counts": [50, 50]}}
    train = {"rows": 100, "tokens": 20_000, "trained_tokens": 5_000, "length": length}
    write_json(run.ledger, {"splits": {"train": train, "eval": {"rows": 7}, "test": {"rows": 9}}})
    return run


def test_rows_that_are_prepared_are_counted(tmp_path):
    run = prepared(tmp_path / "run", recipe())
    found = row_counts(recipe(), run.path, None, None)
    assert (found.train, found.eval, found.test, found.tokens, found.longest) == (100, 7, 9, 200.0, 300)
    assert found.trained_share == 0.25 and "prepared" in found.source
    assert found.attended == pytest.approx((149.5**2 + 250**2) / (149.5 + 250)), "long rows weigh more"
    other = row_counts(recipe(data={"max_length": 64}), run.path, None, None)
    assert other.train is None and other.tokens == 64, "prepared from other data"
    told = row_counts(recipe(), run.path, 5000, 128)
    assert (told.train, told.tokens, told.longest, told.test) == (5000, 128, 512, 625)


def test_limits_of_the_recipe_stand_in_for_rows(tmp_path):
    limited = recipe(data={"max_rows": {"train": 800, "test": 20}})
    found = row_counts(limited, tmp_path, None, None)
    assert (found.train, found.eval, found.test) == (800, 100, 20)
    with pytest.raises(UserError, match="a row with a token"):
        row_counts(limited, tmp_path, 0, None)


def test_json_holds_all_of_it(tmp_path):
    made = outlook(recipe(), "2xA100-80G", run=tmp_path, rows=1000)
    tree = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert tree["estimate"] is True and tree["fits"] is True
    assert tree["model"]["parameters"] == 7_241_732_096 and tree["gpus"]["count"] == 2
    for way in tree["ways"]:
        parts = {key: value for key, value in way["memory"].items() if key != "total"}
        assert sum(parts.values()) == pytest.approx(way["memory"]["total"])
    assert tree["words"] == list(made.words)
