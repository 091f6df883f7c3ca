"""Rows with nothing to learn: naive right truncation of line-completion rows against Luthier's, on real code."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import naive

from luthier.encoding.encode import encode
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.models.load import load_tokenizer
from luthier.recipe import Model
from luthier.records import Example, Record, Row
from luthier.sources.codexglue import CodeXGlue
from luthier.tasks.codexglue import CodeXGlueLine

LINES_PER_FILE = 4


def examples(path: Path, tokenizer: TextTokenizer, max_length: int) -> Iterator[Example]:
    """The lines of the files, as the recipe ``codexglue-python`` takes them."""
    task = CodeXGlueLine(max_lines_per_file=LINES_PER_FILE)
    for record in CodeXGlue(path=str(path)).records():
        if isinstance(record, Record):
            made = task.examples(record, "train", tokenizer, max_length=max_length, seed=0)
            yield from (item for item in made if isinstance(item, Example))


def shares(path: Path, *, num_rows: int = 10_000, max_length: int = 512) -> dict[str, float]:
    """Shares of the same rows without a trained token, both ways, with the embedded model's tokenizer.

    A row that Luthier cannot keep with its whole target would be dropped and counted.
    """
    tokenizer = load_tokenizer(Model())
    counts = {"naive": 0, "ours": 0, "dropped": 0, "rows": 0}
    for example in islice(examples(path, tokenizer, max_length), num_rows):
        counts["rows"] += 1
        counts["naive"] += not naive.what_is_left(example, tokenizer, max_length)[1]
        row = encode(example, tokenizer, max_length)
        counts["dropped"] += not isinstance(row, Row)
        counts["ours"] += isinstance(row, Row) and not row.loss_weights.any()
    kept = counts["rows"] - counts["dropped"]
    return {
        "untrained_rows_naive": round(counts["naive"] / counts["rows"], 4),
        "untrained_rows_ours": round(counts["ours"] / kept, 4),
        "dropped_rows_ours": round(counts["dropped"] / counts["rows"], 4),
        "truncation_rows": counts["rows"],
        "truncation_max_length": max_length,
    }
