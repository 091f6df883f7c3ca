from itertools import combinations
from statistics import fmean

import pytest

from luthier.errors import UserError
from luthier.metrics.pass_at_k import pass_at_1, pass_at_k


@pytest.mark.parametrize(("samples", "k"), [(5, 1), (5, 3), (6, 6), (4, 2)])
def test_pass_at_k_is_the_share_of_draws_with_a_passing_sample(samples: int, k: int) -> None:
    for correct in range(samples + 1):
        draws = combinations([i < correct for i in range(samples)], k)
        wanted = fmean(any(draw) for draw in draws)
        assert pass_at_k([correct], num_samples=samples, k=k) == pytest.approx(wanted)
    assert pass_at_k([0, samples], num_samples=samples, k=k) == 0.5


def test_attempts_that_samples_cannot_tell_of_are_refused() -> None:
    for k in (10, 5, 0, -1):
        with pytest.raises(UserError, match=f"pass@{k} needs"):
            pass_at_k([1], num_samples=4, k=k)


def test_pass_at_1_runs_the_programs() -> None:
    meta = {
        "before": "def f(x):\n",
        "behind": "    return y\n\ndef check(c):\n    assert c(1) == 2\ncheck(f)\n",
    }
    outputs = ["    y = x + 1\n", "    y = x\n", "    return 2\n"]
    assert pass_at_1(outputs, [""] * 3, metas=[meta] * 3) == [1.0, 0.0, 1.0]
    with pytest.raises(UserError, match="rows with tests"):
        pass_at_1(["x"], [""], metas=[{"infill": "psm"}])
