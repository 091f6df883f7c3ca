"""Lines of a file, and where their spans begin and end."""

from luthier.encoding.code_lines import Line, code_lines, target_spans
from luthier.records import Span

TEXT = "import os\n\n  x = x\n# note\n\ty = x  \nlast"
EVERY = set(range(len(TEXT) + 1))


def lines(boundaries: set[int] = EVERY, least: int = 1, most: int = 99) -> list[Line]:
    return code_lines(TEXT, boundaries, min_chars=least, max_chars=most, comment_prefixes=("#",))


def test_a_line_begins_behind_the_last_visible_character_and_ends_with_its_newline() -> None:
    assert lines() == [
        Line(0, 0, 9, 10, True),
        Line(9, 13, 18, 19, True),
        Line(18, 19, 25, 26, False),
        Line(25, 27, 32, 35, True),
        Line(32, 35, 39, 39, False),  # without a newline
    ]


def test_lines_that_are_too_short_or_too_long_are_no_targets() -> None:
    assert [line.eligible for line in lines(least=6)] == [True, False, False, False, False]
    assert [line.eligible for line in lines(least=5)] == [True, True, False, True, False]
    assert [line.eligible for line in lines(most=9)] == [True, True, False, True, False]
    assert [line.eligible for line in lines(most=8)] == [False, True, False, True, False]


def test_tokens_over_a_border_move_it() -> None:
    # A token of newline, blank line and indent; one of a newline and the next line's tab; one that begins with a visible character.
    first, second, third, fourth, _ = lines(EVERY - {10, 11, 12} - {26} - {32, 33, 34})
    assert (first.stop, second.start) == (13, 9)
    assert (third.stop, fourth.start) == (27, 25)
    assert fourth.stop == 35
    assert lines(EVERY - {9, 10, 11, 12})[1].start == 13, "the next border is the line's first character"
    over = lines(EVERY - {9, 10, 11, 12, 13})
    assert over[0].stop == 10, "the token goes on with what can be seen"
    assert over[1].start == 9, "and no border is left before the line"


def spans(*pieces: str) -> list[Span]:
    return [Span(text[1:], "target", 1.0) if text[0] == "T" else Span(text[1:], "context") for text in pieces]


def test_each_eligible_line_behind_the_context_is_a_target() -> None:
    found = lines()
    assert target_spans(TEXT, found, 1) == spans(
        "Cimport os", "T\n\n  x = x\n", "C# note", "T\n\ty = x  \n", "Clast"
    )
    assert target_spans(TEXT, found, 2) == spans("Cimport os\n\n  x = x\n# note", "T\n\ty = x  \n", "Clast")
    assert target_spans(TEXT, found[1:3], 1) == spans("C\n\n  x = x\n# note\n")
    assert target_spans(TEXT, found[:2], 0) == spans("Timport os\n\n  x = x\n")


def test_a_text_without_visible_lines_has_none() -> None:
    assert code_lines(" \n\n", {0, 3}, min_chars=1, max_chars=9, comment_prefixes=()) == []
