"""Training stages of a recipe: what each comes to, where it goes on from, and what is said of mistakes in them."""

import re
from pathlib import Path

import pytest

from luthier import recipe_file, staged, stages
from luthier.errors import UserError, UserErrors
from luthier.opening import log_in, open_run
from luthier.recipe import Recipe, stage, validate
from luthier.run_folder import RunFolder

TREE = {
    "name": "lesson",
    "task": {"type": "repair", "input": "IR2"},
    "model": {"name": "embedded:smollm2-135m", "new_tokens": ["<fix>"]},
    "data": {"source": {"type": "mutations", "max_lines": 30}},
    "train": {"epochs": 2, "learning_rate": 1e-3},
    "stages": {
        "plain": {},
        "hard": {
            "task": {"output": "OR1"},
            "data": {"source": {"type": "repair-pairs", "path": "a.jsonl"}},
            "train": {"epochs": 1},
        },
    },
}


def given(**model: object) -> Recipe:
    return validate({**TREE, "stages": {"plain": {}, "hard": {"model": model}}})


def test_a_stage_has_the_recipe_s_keys_and_its_own() -> None:
    recipe = validate(TREE)
    plain, hard = (stage(recipe, name) for name in recipe.stages)
    assert (plain.name, hard.name) == ("lesson-plain", "lesson-hard")
    assert plain.task["output"] == "OR2" and hard.task == {**plain.task, "output": "OR1"}
    assert (hard.train.epochs, hard.train.learning_rate) == (1, 1e-3)
    assert hard.data.source["path"] == "a.jsonl" and "max_lines" not in hard.data.source, "of another type"
    assert plain.stages == hard.stages == {}


def test_a_stage_goes_on_from_the_one_before_it() -> None:
    recipe = validate(TREE)
    assert stage(recipe, "plain").model == recipe.model
    hard = stage(recipe, "hard").model
    assert (hard.start_from, hard.start_mode, hard.new_tokens) == ("stage:plain", "continue", ["<fix>"])
    merged = stage(given(start_mode="merge"), "hard").model
    assert merged.start_from == "stage:plain" and merged.new_tokens == [], "they are in the merged model"
    whole = stage(validate({**TREE, "model": {**TREE["model"], "adapter": None}}), "hard").model
    assert (whole.name, whole.start_from, whole.new_tokens) == ("stage:plain", None, [])
    chain = {
        "whole": {"model": {"adapter": None}},
        "lora": {},
        "merged": {"model": {"start_mode": "merge"}},
        "on": {},
    }
    models = [stage(validate({**TREE, "stages": chain}), name).model for name in chain]
    starts = [(model.name, model.start_from, model.new_tokens) for model in models[1:]]
    assert starts == [("stage:whole", before, []) for before in (None, "stage:lora", "stage:merged")]
    for own in ({"start_from": "elsewhere"}, {"start_from": None}, {"name": "other"}):
        assert stage(given(**own), "hard").model.start_from == own.get("start_from")


def test_what_changed_between_stages_is_told_by_key() -> None:
    plain, hard = stages.changes(validate(TREE))
    assert plain == {"stage": "plain", "goes_on_from": None, "changes": {}}
    assert hard["goes_on_from"] == "plain"
    assert hard["changes"]["train.epochs"] == [2, 1]
    assert hard["changes"]["task.output"] == ["OR2", "OR1"]
    assert hard["changes"]["data.source.type"] == ["mutations", "repair-pairs"]
    assert hard["changes"]["data.source.max_lines"] == [30, None]
    assert "train.learning_rate" not in hard["changes"]


def test_all_mistakes_are_told_at_once_with_the_stage_s_name(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "train:\n  epochs: -1\nstages:\n  one:\n    train: {epochz: 1}\n    name: x\n  two:\n"
        "    train: {learning_rate: 0}\n    model: {start_from: stage:three}\n  three:\n    task: {type: repayr}\n"
    )
    with pytest.raises(UserErrors) as raised:
        recipe_file.load(path)
    told = [f"{error.what} @ {error.where}" for error in raised.value.errors]
    wanted = [
        r"^Input should be greater than 0, not -1 @ recipe key train.epochs \(.*r.yaml:2\)",
        r"^stage 'one': a stage has no 'name' @ recipe key stages.one.name \(.*:6\)",
        r"^stage 'two': Input should be greater than 0, not 0 @ recipe key train.learning_rate \(.*:8\)",
        r"^stage 'two': 'stage:three' is no earlier stage @ recipe key model.start_from \(.*:9\)",
        r"^stage 'three': there is no task named 'repayr'",
    ]
    for pattern in wanted:
        assert [text for text in told if re.search(pattern, text)], (pattern, told)
    assert len(told) == len(wanted), told


@pytest.mark.parametrize(
    "wrong", [["a"], {"a b": {}}, {"a": None}, {"a": {"stages": {}}}, {"a": {"model": 3}}]
)
def test_stages_of_another_form_are_refused(wrong: object) -> None:
    with pytest.raises(UserErrors):
        validate({"stages": wrong})


def test_a_mistake_in_the_start_of_a_stage_is_said_with_its_name() -> None:
    with pytest.raises(UserErrors, match=r"stage 'hard': .*start_mode=stack needs model\.adapter"):
        given(adapter=None, start_mode="stack")


def test_a_stage_can_be_set_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("stages:\n  one: {}\n  two: {}\n")
    recipe = recipe_file.load(path, ["stages.two.train.epochs=3"])
    assert [stage(recipe, name).train.epochs for name in recipe.stages] == [1, 3]


def begin(recipe: Recipe, folder: Path) -> dict[str, RunFolder]:
    """The folders of the stages with their recipes in them, as preparing leaves them."""
    runs = {name: RunFolder(folder).training(name) for name in recipe.stages}
    for name, run in runs.items():
        run.create()
        run.recipe.write_text(recipe_file.dump(stage(recipe, name)))
    return runs


def test_an_earlier_stage_s_result_is_found_wherever_the_folder_lies(tmp_path: Path) -> None:
    recipe = validate(TREE)
    runs = begin(recipe, tmp_path)
    model = stage(recipe, "hard").model
    assert stages.waits_for(model, runs["hard"]) == "plain"
    standing_in = stages.in_run(model, runs["hard"])
    assert standing_in.start_from is None and standing_in.name == recipe.model.name
    runs["plain"].adapter.mkdir()
    assert stages.waits_for(model, runs["hard"]) is None
    assert stages.in_run(model, runs["hard"]).start_from == str(runs["plain"].path)
    tmp_path.joinpath("stages").rename(tmp_path / "moved")
    moved = RunFolder(tmp_path / "moved" / "hard")
    assert stages.in_run(model, moved).start_from == str(tmp_path / "moved" / "plain")


def test_a_whole_model_s_stand_in_has_its_new_tokens(tmp_path: Path) -> None:
    recipe = validate({**TREE, "model": {**TREE["model"], "adapter": None}})
    runs = begin(recipe, tmp_path)
    model = stage(recipe, "hard").model
    standing_in = stages.in_run(model, runs["hard"])
    assert (standing_in.name, standing_in.new_tokens) == (recipe.model.name, ["<fix>"])
    runs["plain"].model.mkdir()
    settled = stages.in_run(model, runs["hard"])
    assert (settled.name, settled.new_tokens) == (str(runs["plain"].model), [])


def test_a_stage_alone_is_refused(tmp_path: Path) -> None:
    model = stage(validate(TREE), "hard").model
    with pytest.raises(UserError, match="'plain' that this one goes on from has not begun"):
        stages.in_run(model, RunFolder(tmp_path / "stages" / "hard"))


def test_a_folder_holds_one_training_or_stages(tmp_path: Path) -> None:
    recipe = validate(TREE)
    single, several = RunFolder(tmp_path / "single"), RunFolder(tmp_path / "several")
    single.adapter.mkdir(parents=True)
    with pytest.raises(UserError, match="one training, and the recipe has stages"):
        staged._begin(recipe, single)
    assert not single.recipe.exists()
    with log_in(several):
        staged._begin(recipe, several)
        before = several.recipe.read_text()
        with pytest.raises(UserError, match="training stages of another recipe"):
            open_run(recipe.model_copy(update={"stages": {}}), (), several.path)
    assert several.recipe.read_text() == before
