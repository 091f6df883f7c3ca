"""As many labelled rows as wanted, made while they are read: a source for the benchmark, so that no file of them is needed."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from pydantic import Field

from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources import Source

NUM_CLASSES = 280
_WORDS = 20_000


@source("scale-rows")
class ScaleRows(Source):
    """Texts of about 211 tokens from 280 classes, no two alike; classes by Zipf's law."""

    num_rows: int = Field(300_000, ge=1)
    """Rows."""

    def records(self) -> Iterator[Record | Dropped]:
        """The rows, the same each time."""
        draw = random.Random(0)
        words, ranks = _words()
        classes = list(accumulate(1 / (rank + 10) for rank in range(NUM_CLASSES)))
        for number in range(self.num_rows):
            (label,) = draw.choices(range(NUM_CLASSES), cum_weights=classes)
            own = words[label * 20 : label * 20 + 20]
            text = draw.choices(words, cum_weights=ranks, k=draw.randint(45, 76)) + draw.choices(own, k=8)
            draw.shuffle(text)
            yield Record(
                f"row{number}", {"text": " ".join(text), "label": f"class{label:03}"}, f"group{number // 2}"
            )

    def fingerprint(self) -> str:
        """Of this file: rows come from nothing else."""
        return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


@functools.cache
def _words() -> tuple[list[str], list[float]]:
    draw = random.Random(1)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [1 / (rank + 1) for rank in range(len(letters))]
    words = ["".join(draw.choices(letters, weights, k=draw.randint(2, 9))) for _ in range(_WORDS)]
    return words, list(accumulate(1 / (rank + 3) for rank in range(_WORDS)))
