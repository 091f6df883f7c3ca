import math

import numpy as np
import pytest

from luthier.projects.bm25 import BM25


def test_scores_equal_a_worked_example() -> None:
    index = BM25([["cat", "sat"], ["dog", "sat", "sat", "down"]])
    rare = math.log(1 + 1.5 / 1.5)  # of 2 documents 1 has it
    usual = math.log(1 + 0.5 / 2.5)
    norms = [1.5 * (0.25 + 0.75 * length / 3) for length in (2, 4)]
    expected = [
        rare * 2.5 / (1 + norms[0]) + usual * 2.5 / (1 + norms[0]),
        usual * 2 * 2.5 / (2 + norms[1]),
    ]
    np.testing.assert_allclose(index.scores(["cat", "sat", "unknown"]), expected)
    assert index.best(["cat"], 5) == [0]
    assert index.best(["bird"], 5) == []
    ties = BM25([["a"], ["a", "a"], ["b"], ["a"], ["a"], ["c"]])
    assert all(ties.best(["a"], count) == [1, 0, 3, 4][:count] for count in range(7))
    assert index.scores(["cat", "cat"])[0] == pytest.approx(2 * index.scores(["cat"])[0])
