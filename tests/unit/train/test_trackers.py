"""Trackers get the numbers of the history, and none of them can stop a run."""

import importlib.util
import json
import os
import sys
from types import SimpleNamespace

import pytest
from tests.fixtures.tiny_run import write_recipe

from luthier import pipeline
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder, read_json, write_json
from luthier.train import trackers
from luthier.train.trackers import Trackers

ROWS = [
    {"step": 0, "epoch": 0.0, "tokens": 0, "eval": {"loss": 6.5, "best": False, "samples": []}},
    {"step": 1, "epoch": 0.5, "tokens": 64, "loss": 6.25, "learning_rate": 0.001, "gradient_norm": 2.0},
    {"step": 2, "epoch": 1.0, "tokens": 128, "loss": 5.5, "learning_rate": 0.0005, "gradient_norm": 1.0,
     "eval": {"loss": 5.75, "best": True, "samples": []}},
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    write_json(run.environment, {"started": "2026-01-01T00:00:00+00:00"})
    return run


def recipe(*names):
    return Recipe(name="tiny", train={"trackers": names})


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def scalars(folder):
    """Values by name and step, as TensorBoard's own reader shows them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_every_number_once_after_a_resumed_run(run):
    pytest.importorskip("tensorboard")
    first = Trackers(recipe("tensorboard"), run, 0, writes=True)
    for row in ROWS[:2]:
        first.log(row)
    first.log({"step": 2, "loss": 99.0})  # behind the checkpoint of step 1: made again below
    first.close()
    second = Trackers(recipe("tensorboard"), run, 1, writes=True)
    second.log(ROWS[2])
    second.close()
    found = scalars(run.path / "trackers" / "tensorboard")
    assert found["train/loss"] == {1: 6.25, 2: 5.5}
    assert found["eval/loss"] == {0: 6.5, 2: 5.75}
    assert found["train/learning_rate"] == pytest.approx({1: 0.001, 2: 0.0005})
    assert "eval/best" not in found and "train/step" not in found
    assert read_json(run.environment)["trackers"] == {"tensorboard": "told of every step"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_wandb_works_offline(run, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    told = Trackers(recipe("wandb"), run, 0, writes=True)
    assert read_json(run.environment)["trackers"] == {"wandb": "told of every step"}
    for row in ROWS:
        told.log(row)
    summary = dict(wandb.run.summary)  # of the steps that another one has followed
    told.close()
    assert summary["train/loss"] == 6.25 and summary["eval/loss"] == 6.5
    (folder,) = (run.path / "trackers" / "wandb").glob("offline-run-*")
    assert next(folder.glob("*.wandb")).stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # mlflow's own
def test_mlflow_goes_on_with_its_run_in_a_file_of_the_run_folder(run, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for step, rows in ((0, ROWS[:2]), (1, ROWS[2:])):
        told = Trackers(recipe("mlflow"), run, step, writes=True)
        assert read_json(run.environment)["trackers"] == {"mlflow": "told of every step"}
        for row in rows:
            told.log(row)
        told.close()
    assert (run.path / "trackers" / "mlflow.db").is_file()
    number = (run.path / "trackers" / "mlflow-run-id").read_text()
    client = mlflow.tracking.MlflowClient()
    assert [(m.step, m.value) for m in client.get_metric_history(number, "train/loss")] == [
        (1, 6.25),
        (2, 5.5),
    ]
    assert client.get_run(number).data.params["train.batch_size"] == "8"


def test_each_run_of_a_process_has_its_own_place_unless_the_user_names_one(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_set_here", {})
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    for name in ("one", "two"):
        trackers._options("trackio", recipe("trackio"), RunFolder(tmp_path / name), 0)
        assert os.environ["TRACKIO_DIR"] == str(tmp_path / name / "trackers" / "trackio")
    monkeypatch.setenv("TRACKIO_DIR", "mine")
    trackers._options("trackio", recipe("trackio"), RunFolder(tmp_path / "three"), 0)
    assert os.environ["TRACKIO_DIR"] == "mine"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # trackio's own
def test_trackio_writes_into_the_run_folder(run, monkeypatch):
    if importlib.util.find_spec("trackio") is None:  # it looks for its folder when it is imported
        pytest.skip("trackio is not installed")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    told = Trackers(recipe("trackio"), run, 0, writes=True)
    for row in ROWS:
        told.log(row)
    told.close()
    assert read_json(run.environment)["trackers"] == {"trackio": "told of every step"}
    assert list((run.path / "trackers" / "trackio").glob("tiny*.db"))


class Failing:
    """A tracker that raises at a given call."""

    at = "start"
    calls = []

    def __init__(self, **options):
        self._call("init")

    def start(self):
        self._call("start")

    def store_init_configuration(self, values):
        assert values["train.batch_size"] == 8 and values["train.trackers"] == "['trackio', 'mlflow']"
        self._call("store")

    def log(self, values, step):
        self._call(f"log {step}")

    def finish(self):
        self._call("finish")

    @property
    def tracker(self):
        return SimpleNamespace(info=SimpleNamespace(run_id="7"))

    def _call(self, name):
        Failing.calls.append(name)
        if name == self.at:
            raise ConnectionError(f"no server\nfor {name}")


class Working(Failing):
    at = None


@pytest.mark.parametrize("at", ["init", "start", "store", "log 0", "log 2", "finish"])
def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(run, monkeypatch, caplog, at):
    monkeypatch.setattr(Failing, "at", at)
    monkeypatch.setattr(Failing, "calls", [])
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "trackio", Failing)
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "mlflow", Working)
    monkeypatch.setenv("TRACKIO_DIR", "x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "x")
    told = Trackers(recipe("trackio", "mlflow"), run, 0, writes=True)
    for row in ROWS:
        told.log(row)
    told.close()
    status = read_json(run.environment)["trackers"]
    assert "ConnectionError: no server for" in status["trackio"], "recorded"
    assert status["mlflow"] == "told of every step"
    assert len(caplog.records) == 1 and "trackio" in caplog.records[0].message, "said once"
    calls = [call for call in Failing.calls if call == "log 2"]
    assert len(calls) == (2 if at in ("log 2", "finish") else 1), "the failed one hears nothing more"


def test_a_run_goes_on_without_a_package_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    path = write_recipe(tmp_path, train={"max_steps": 2, "trackers": ["trackio"], "num_samples": 0})
    run = pipeline.train(path, folder=tmp_path / "run")
    assert run.result() == run.adapter
    assert "left out since start: ModuleNotFoundError" in read_json(run.environment)["trackers"]["trackio"]
    assert "the tracker trackio is left out" in run.log.read_text()


def test_only_the_process_that_writes_tells_trackers(run, monkeypatch):
    monkeypatch.setattr(Failing, "calls", [])
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "mlflow", Failing)
    told = Trackers(recipe("mlflow"), run, 0, writes=False)
    told.log(ROWS[1])
    told.close()
    assert Failing.calls == [] and "trackers" not in json.loads(run.environment.read_text())
