"""Metrics of generated text, registered with ``@metric``, and the quantities that come from losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from luthier.records import Row


def scores_of(
    metric: Callable[..., list[float]], answers: Sequence[str], targets: Sequence[str], rows: Sequence[Row]
) -> list[float]:
    """A metric's scores, one a row; one with a parameter ``metas`` is given what the rows know beside their text."""
    if "metas" in inspect.signature(metric).parameters:
        return metric(answers, targets, metas=[row.meta for row in rows])
    return metric(answers, targets)
