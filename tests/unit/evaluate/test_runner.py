"""An evaluation that was stopped goes on, and ends as if it never had been."""

from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.fixtures.tiny_model import make_model
from tests.fixtures.tiny_run import write_recipe

from luthier import pipeline
from luthier.evaluate import runner
from luthier.models.load import load_tokenizer
from luthier.recipe import build


class Stopped(Exception):
    pass


@pytest.mark.parametrize("generate", [True, False])
def test_a_stopped_evaluation_repeats_no_finished_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generate: bool
) -> None:
    recipe = pipeline.read(
        write_recipe(
            tmp_path,
            evaluate={"generate": generate, "batch_size": 2},
            data={"max_rows": {"train": 8, "eval": 2, "test": 7}},
            train={"micro_batch_tokens": 200},
        )
    )
    tokenizer = load_tokenizer(recipe.model)
    model, batches, stop = make_model(), [], []

    def judged(name: str, stop_behind: int, key: str = "key") -> runner.Judging:
        place = pipeline.prepare(recipe, folder=tmp_path / name)

        @contextmanager
        def lend():
            yield model

        batches.clear()
        stop[:] = [stop_behind]
        return runner.Judging(
            recipe, place, build("task", recipe.task), tokenizer, {"base": lend, "tuned": lend}, key
        )

    scored = runner.row_sums

    def counted(scores, num_rows):
        if len(batches) == stop[0]:
            raise Stopped
        batches.append(num_rows)
        return scored(scores, num_rows)

    monkeypatch.setattr(runner, "row_sums", counted)
    whole = judged("whole", -1)
    runner.evaluate(whole)
    num_batches = len(batches)
    assert num_batches >= 6 and not list(whole.run.path.glob("evaluated"))

    for stop_behind in (2, num_batches // 2):  # in the first model, then in the second
        with pytest.raises(Stopped):
            runner.evaluate(judged("stopped", stop_behind))
    [part] = (tmp_path / "stopped" / "evaluated").glob("tuned-*")
    part.write_text(part.read_text() + '{"0": {"loss')  # cut off while it was written
    runner.evaluate(judged("stopped", -1))
    assert len(batches) == num_batches - (2 + num_batches // 2)
    assert (tmp_path / "stopped/predictions.jsonl").read_bytes() == whole.run.predictions.read_bytes()
    assert not (tmp_path / "stopped" / "evaluated").exists()

    with pytest.raises(Stopped):
        runner.evaluate(judged("other", 3, "another key"))
    runner.evaluate(judged("other", -1, "key"))
    assert len(batches) == num_batches  # results of something else are no results
