from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from statistics import fmean
from typing import Any

from luthier.errors import UserError
from luthier.execution.python_tests import all_passes
from luthier.registry import metric


def pass_at_k(num_correct: Sequence[int], *, num_samples: int, k: int) -> float:
    """Probability that at least one of ``k`` samples passes, averaged over problems.

    Args:
        num_correct: Passing samples per problem, shape (problem,), each 0..num_samples; not empty.
        num_samples: Samples drawn for every problem, the paper's ``n``.
        k: Attempts allowed; 1..num_samples.

    Returns:
        Mean over problems, in [0, 1]. Unbiased, unlike ``1 - (1 - c/n)**k``.

    Raises:
        UserError: ``k`` needs more samples than were drawn.

    Source: Chen et al. 2021, arXiv:2107.03374, eq. 1.
    """
    if not 1 <= k <= num_samples:
        raise UserError(
            f"pass@{k} needs 1 <= k <= samples, but {num_samples} samples were drawn",
            "pass_at_k",
            f"take k <= {num_samples}, or draw {k} samples and more",
        )
    draws = comb(num_samples, k)
    return fmean(1 - comb(num_samples - c, k) / draws for c in num_correct)


@metric("pass@1")
def pass_at_1(
    outputs: Sequence[str], targets: Sequence[str], *, metas: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Whether the program made of each output passes its tests, run in a sandbox.

    Args:
        outputs: Generated texts, shape (row,).
        targets: Not looked at.
        metas: Of the rows: ``before`` and ``behind`` are the program's text round the output, tests included.

    Returns:
        0.0 or 1.0 for each row; the mean is pass@1 of one greedy sample.

    Raises:
        UserError: A row has no tests.

    Source: Chen et al. 2021, arXiv:2107.03374.
    """
    for meta in metas:
        if not {"before", "behind"} <= meta.keys():
            raise UserError(
                "pass@1 needs rows with tests, and some of the test rows have none",
                "recipe key evaluate.metrics",
                "leave pass@1 out, or take rows with tests, such as data.test_source={type: humaneval-infilling, ...}",
            )
    programs = [meta["before"] + output + meta["behind"] for output, meta in zip(outputs, metas, strict=True)]
    return [pass_at_k([int(passed)], num_samples=1, k=1) for passed in all_passes(programs)]
