"""A source: where raw records come from."""

from __future__ import annotations

import random
from collections.abc import Iterator

from pydantic import Field

from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources import Source


@source("sums")
class Sums(Source):
    """Sums of two whole numbers, made up by a seed."""

    count: int = Field(200, ge=1)
    """How many sums."""
    largest: int = Field(99, ge=1)
    """Largest number that is added."""
    seed: int = 0
    """Seed of the numbers."""

    def records(self) -> Iterator[Record | Dropped]:
        """One record a sum, with the fields ``question`` and ``answer``."""
        draw = random.Random(self.seed)
        for number in range(self.count):
            left, right = draw.randint(0, self.largest), draw.randint(0, self.largest)
            fields = {"question": f"{left} + {right} =", "answer": str(left + right)}
            # The same two numbers in either order are the same thing to learn: they must not straddle a split.
            yield Record(f"sum-{number}", fields, group=f"{min(left, right)}+{max(left, right)}")

    def fingerprint(self) -> str:
        """Empty: the records depend on nothing but the options."""
        return ""
