"""The harness of Long Code Arena, by hand and against the library whose ratio it prints."""

import pytest
from fuzzywuzzy import fuzz

from luthier.metrics.long_code_arena import long_code_arena_edit_similarity, long_code_arena_exact_match
from luthier.metrics.text import edit_similarity, exact_match


def test_space_around_a_line_does_not_count_and_space_inside_does() -> None:
    outputs = ["    x = 1  ", "x  =  1", "x=1", "y = 1"]
    targets = ["x = 1"] * 4
    assert long_code_arena_exact_match(outputs, targets) == [1.0, 0.0, 0.0, 0.0]
    assert exact_match(outputs, targets) == [1.0, 1.0, 0.0, 0.0]  # words only


def test_edit_similarity_is_a_whole_per_cent_of_the_lines_as_they_are() -> None:
    # Common characters in order, twice, over both lengths: 2 of 6, 6 of 8, all; an indent of four, 8 of 12; nothing of 4.
    outputs, targets = ["abc", "abcd", "same", "    four", "ab"], ["axx", "abXd", "same", "four", "xy"]
    assert long_code_arena_edit_similarity(outputs, targets) == [0.33, 0.75, 1.0, 0.67, 0.0]
    assert long_code_arena_edit_similarity(outputs, targets) == [
        fuzz.ratio(output, target) / 100 for output, target in zip(outputs, targets, strict=True)
    ]
    assert long_code_arena_edit_similarity(["\nX\n"], ["X"]) == [1.0]
    assert edit_similarity(["abc"], ["axx"]) == [pytest.approx(1 / 3)]
