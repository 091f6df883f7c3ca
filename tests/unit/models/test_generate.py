"""Which prompts are read together with others that begin like them."""

import numpy as np
import pytest

from luthier.models.generate import _families, prompt_row
from luthier.records import Row


def rows_of(num_files: int, num_rows: int, num_tokens: int) -> list[Row]:
    """Rows of files: all tokens of their file, and two of their own."""
    draw = np.random.default_rng(0)
    files = [draw.integers(3, 300, num_tokens) for _ in range(num_files)]
    return [
        prompt_row([*(int(i) for i in files[number % num_files]), 300 + number, 1, 0])
        for number in range(num_files * num_rows)
    ]


@pytest.mark.parametrize(
    ("rows", "max_new_tokens", "num_families"),
    [
        (rows_of(6, 30, 1000), 100, 6),  # nearly whole batches
        (rows_of(3, 32, 40), 100, 3),  # whole ones: a pass for what is shared is all that comes on top
        (rows_of(150, 6, 200), 40, 0),  # many short prompts: so many more steps
        (rows_of(150, 6, 200), 4, 150),  # of which there are few
        (rows_of(150, 6, 3000), 100, 150),  # long prompts
        (rows_of(1, 6, 30), 100, 1),  # they would share no batch with others
        (rows_of(1, 6, 20), 100, 0),
        (rows_of(2, 33, 200), 100, 0),  # a batch of one row
        (rows_of(9, 1, 1000), 1, 0),
    ],
)
def test_prompts_are_read_together_where_that_saves_more_than_it_adds(
    rows: list[Row], max_new_tokens: int, num_families: int
) -> None:
    families, alone = _families(rows, 32, max_new_tokens)
    assert len(families) == num_families
    assert sorted([*(i for family in families for i in family), *alone]) == list(range(len(rows)))
    assert all(len({tuple(rows[i].input_ids[:9]) for i in family}) == 1 < len(family) for family in families)
