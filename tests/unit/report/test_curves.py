from pathlib import Path

import pytest
from matplotlib import image
from tests.fixtures.synthetic_run import write_run

from luthier.report import curves, history
from luthier.run_folder import RunFolder, write_text


@pytest.mark.parametrize("num_steps", [1, 4, 600])
def test_a_history_of_any_length_is_drawn(tmp_path: Path, num_steps: int) -> None:
    run = write_run(tmp_path, stage="train", num_steps=num_steps)
    [path] = curves.draw(run, 21)
    assert path == run.figures / "learning_curve.png"
    assert image.imread(path).shape[:2] == (1280, 1600)
    assert [file.name for file in run.figures.iterdir()] == ["learning_curve.png"]


def test_gaps_and_missing_series_are_drawn(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_text(
        run.history,
        '{"step": 0, "eval": {"loss": NaN}}\n{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.5}\n',
    )
    assert curves.draw(run, 21)


def test_a_run_whose_name_stands_between_dollar_signs_is_laid_over_others(tmp_path: Path) -> None:
    past = history.from_rows([{"step": 0, "tokens": 0, "eval": {"bits_per_byte": 1.5}}])
    assert curves.overlay({r"$\foo$": past}, tmp_path / "curves.png")


def test_without_a_readable_history_nothing_is_drawn(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert curves.draw(run, 21) == []
    write_text(run.history, "no json\n")
    assert curves.draw(run, 21) == []
