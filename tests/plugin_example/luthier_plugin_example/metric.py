"""A metric: one score for each generated text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from luthier.registry import metric


@metric("same_number")
def same_number(outputs: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Share of outputs whose first whole number is that of the target, whatever stands around it."""

    def first(text: str) -> int | None:
        found = re.search(r"-?\d+", text)
        return int(found.group()) if found else None

    return [
        float(first(output) == first(target) is not None)
        for output, target in zip(outputs, targets, strict=True)
    ]
