"""The estimate of a recipe: what fits, how long it takes, and what is said of it."""

import json

import pytest

from luthier import recipe_file
from luthier.errors import UserError
from luthier.estimate import devices
from luthier.estimate.devices import Device
from luthier.estimate.memory import memory
from luthier.estimate.outlook import UTILISATION, outlook, row_counts
from luthier.estimate.shape import shape_of
from luthier.models.memory import MOST_ON_CPU
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
        assert needed[0] <= way.usable < needed[1]


def test_auto_is_what_a_run_would_take(tmp_path):
    """As test_memory.py of the models has it for ``fit``: never more than a step's rows, checkpointing for the longest alone."""
    small = outlook(recipe(train={"batch_size": 8}), "2xA100-80G", run=tmp_path, rows=9).ways[0]
    assert (small.way.name, small.micro_batch_tokens, small.fits) == ("plain", 4 * 512, True)
    many = outlook(recipe(train={"batch_size": 512}), "A100-80G", run=tmp_path, rows=9)
    assert many.ways[0].way.name == "plain" and many.ways[0].fits, "the longest row fits"
    assert 512 <= many.ways[0].micro_batch_tokens == many.ways[0].largest_micro_batch_tokens < 512 * 512
    assert f"micro_batch_tokens=auto comes to {many.ways[0].micro_batch_tokens:,}" in many.words()[1]
    long = {"data": {"max_length": 16_384}, "train": {"batch_size": 2}}
    made = outlook(recipe(**long), "A100-80G", run=tmp_path, rows=9)
    assert made.ways[0].way.name == "checkpointing" and made.ways[0].fits and not made.ways[1].fits
    assert "without, the longest row, of 16,384 tokens, would need" in made.words()[2]
    long["train"]["gradient_checkpointing"] = False
    assert not outlook(recipe(**long), "A100-80G", run=tmp_path, rows=9).ways[0].fits


def test_a_processor_takes_no_more_at_once_than_makes_it_faster(tmp_path, monkeypatch):
    processor = Device("CPU", 4e12, 1e12, 1e12, "a very large one")
    monkeypatch.setattr(devices, "this_processor", lambda: processor)
    way = outlook(recipe(train={"batch_size": 512}), "CPU", run=tmp_path, rows=9).ways[0]
    assert way.micro_batch_tokens == MOST_ON_CPU < way.largest_micro_batch_tokens
    long = recipe(data={"max_length": 16_384}, train={"batch_size": 512})
    assert outlook(long, "CPU", run=tmp_path, rows=9).ways[0].micro_batch_tokens == 16_384, "a whole row"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"train": {"gradient_checkpointing": True}}, "checkpointing"),
        ({"train": {"sharding": "fsdp"}}, "sharding"),
        ({"model": {**LORA, "quantisation": "nf4"}}, "4-bit"),
    ],
)
def test_a_recipe_stands_as_it_says(tmp_path, settings, name):
    made = outlook(recipe(**settings), "2xA100-80G", run=tmp_path, rows=9)
    assert made.ways[0].way.name == name and len({way.way for way in made.ways}) == len(made.ways)


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
        "batch_size=12 is no multiple of 8 GPUs, which do the work of 6: take 16" in w for w in made.words()
    )
    assert not any("multiple" in word for word in even.words())


def test_what_does_not_fit_is_said_with_what_would(tmp_path):
    tight = recipe(train={"micro_batch_tokens": 16_384, "batch_size": 64})
    words = " ".join(outlook(tight, "A100-40G", run=tmp_path, rows=9).words())
    assert "As it stands it does not fit" in words and "most of it activations" in words
    assert "It fits with train.micro_batch_tokens=" in words
    assert "It fits with gradient checkpointing: " in words and "model.quantisation=nf4" in words
    made = outlook(recipe(), "A100-80G", run=tmp_path, rows=9)
    assert made.words()[0].startswith("As it stands it fits: ")
    full = recipe(model={**LORA, "adapter": None})
    none = outlook(full, "1x4090", run=tmp_path, rows=9)
    assert not none.fits and any(word.startswith("No way fits") for word in none.words())
    assert outlook(full, "8xA100-80G", run=tmp_path, rows=9).fits, "sharded"


def test_ways_are_those_that_there_are(tmp_path):
    def names(made):
        return [way.way.name for way in made.ways]

    one = ["plain", "checkpointing", "4-bit+checkpointing"]
    assert names(outlook(recipe(), "L40S", run=tmp_path)) == one
    full = recipe(model={**LORA, "adapter": None}, train={"gradient_checkpointing": False})
    several = ["plain", "checkpointing", "sharding", "sharding+checkpointing"]
    assert names(outlook(full, "2xL40S", run=tmp_path)) == several


def test_an_unknown_number_of_rows_gives_no_hours(tmp_path):
    made = outlook(recipe(), "L40S", run=tmp_path)
    assert made.steps is None and made.ways[0].train_hours is None
    assert any("give --rows" in word for word in made.words())


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
    write_json(run.ledger, {"splits": {"train": train}})
    return run


def test_rows_that_are_prepared_are_counted(tmp_path):
    run = prepared(tmp_path / "run", recipe())
    found = row_counts(recipe(), run.path, None, None)
    assert (found.train, found.tokens, found.longest) == (100, 200.0, 300)
    assert found.trained_share == 0.25 and "prepared" in found.source
    assert found.attended == pytest.approx((149.5**2 + 250**2) / (149.5 + 250)), "long rows weigh more"
    other = row_counts(recipe(data={"max_length": 64}), run.path, None, None)
    assert other.train is None and other.tokens == 64, "prepared from other data"
    told = row_counts(recipe(), run.path, 5000, 128)
    assert (told.train, told.tokens, told.longest) == (5000, 128, 512)


def test_limits_of_the_recipe_stand_in_for_rows(tmp_path):
    limited = recipe(data={"max_rows": {"train": 800}})
    found = row_counts(limited, tmp_path, None, None)
    assert (found.train, found.tokens, found.longest) == (800, 512, 512)
    for rows in (0, 10**400):
        with pytest.raises(UserError, match="1 to 1,000,000,000,000,000 rows"):
            row_counts(limited, tmp_path, rows, None)


def test_json_holds_all_of_it(tmp_path):
    made = outlook(recipe(), "2xA100-80G", run=tmp_path, rows=1000)
    tree = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert tree["estimate"] is True and tree["fits"] is True
    assert tree["model"]["parameters"] == 7_241_732_096 and tree["gpus"]["count"] == 2
    for way in tree["ways"]:
        parts = {key: value for key, value in way["memory"].items() if key != "total"}
        assert sum(parts.values()) == pytest.approx(way["memory"]["total"])
    assert tree["words"] == made.words()
