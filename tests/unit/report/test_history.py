import json
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import savgol_filter

from luthier.report import history
from luthier.run_folder import RunFolder, write_text


def test_smoothing_is_savitzky_golay_with_the_window_asked_for() -> None:
    losses = [float(x) for x in np.random.default_rng(0).normal(size=100)]
    smoothed = history.smooth(losses, 21)
    assert smoothed.window == 21
    np.testing.assert_allclose(smoothed.values, savgol_filter(losses, 21, 2))


def test_a_short_run_gets_a_shorter_window_and_says_so() -> None:
    smoothed = history.smooth([1.0] * 20, 21)
    assert smoothed.window == 5
    assert "window 5 steps instead of 21, as the run has 20" in smoothed.note
    assert history.smooth([1.0] * 4, 21).values == []
    assert "4 steps are too few" in history.smooth([1.0] * 4, 21).note


def test_a_step_without_a_finite_loss_is_a_gap_and_does_not_spread() -> None:
    losses: list[float | None] = [1.0] * 40
    losses[20] = None
    smoothed = history.smooth(losses, 11).values
    assert smoothed[20] is None
    assert [value for value in smoothed if value is not None] == pytest.approx([1.0] * 39)
    assert history.finite(float("nan")) is None and history.finite("1") is None and history.finite(2) == 2.0


def test_of_a_step_written_twice_the_later_counts(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rows = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 1, "loss": 3.0}]
    write_text(run.history, "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "lo')
    assert history.read(run).series("loss") == [3.0, 4.0]


def test_key_figures() -> None:
    rows = [{"step": 0, "epoch": 0.0, "tokens": 0, "eval": {"loss": 2.0, "best": True}}]
    rows += [
        {"step": n, "epoch": n / 2, "tokens": 10 * n, "loss": 2.0 - n / 10, "seconds": n}
        for n in (1, 2, 3, 4)
    ]
    rows[2]["eval"] = {"loss": 1.0, "best": True}
    rows[4]["eval"] = {"loss": 1.5, "best": False}
    past = history.from_rows(rows)
    key = history.key_figures(past, history.smooth(past.series("loss"), 21))
    assert (key.eval_first, key.eval_best, key.eval_last) == (2.0, 1.0, 1.5)
    assert (key.best_step, key.best_epoch, key.improvement) == (2, 1.0, 0.5)
    assert key.generalisation_gap == pytest.approx(1.5 - 1.6)
    assert (key.last_step, key.tokens, key.seconds) == (4, 40, 4.0)
    # What training marked is the best, not what has the lowest loss: another metric may have chosen it.
    rows[1]["eval"] = {"loss": 0.5, "best": False}
    past = history.from_rows(rows)
    key = history.key_figures(past, history.smooth(past.series("loss"), 21))
    assert (key.eval_best, key.best_step) == (1.0, 2)


def test_epochs_begin_after_the_step_that_ends_the_one_before() -> None:
    past = history.from_rows({"step": n, "epoch": n / 3, "loss": 1.0} for n in range(1, 10))
    assert history.epoch_starts(past) == [3, 6]
    uneven = history.from_rows({"step": n, "epoch": n * 0.4, "loss": 1.0} for n in range(1, 8))
    assert history.epoch_starts(uneven) == [2, 5]  # 0.8 | 1.2 ... 2.0 ends its epoch at step 5
