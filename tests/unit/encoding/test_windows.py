"""Windows of a text with a token for each character."""

from tests.fixtures.plain_tokenizer import plain_tokenizer

from luthier.encoding.windows import windows

PLAIN = plain_tokenizer()


def parts(text: str, num_tokens: int, num_context: int) -> list[tuple[int, int, int]]:
    return [(w.context, w.start, w.end) for w in windows(text, PLAIN, num_tokens, num_context)]


def test_parts_are_as_long_as_they_may_be_with_their_context() -> None:
    assert parts("abcdefghij", 4, 0) == [(0, 0, 4), (4, 4, 8), (8, 8, 10)]
    assert parts("abcdefghij", 4, 1) == [(0, 0, 4), (3, 4, 7), (6, 7, 10)]
    assert parts("abcd", 4, 1) == [(0, 0, 4)] and parts("", 4, 1) == []


def test_parts_end_with_a_line_that_ends_in_their_last_quarter() -> None:
    assert parts("abcdef\nhijkl", 8, 0) == [(0, 0, 7), (7, 7, 12)]
    assert parts("abcdefg\nijkl", 8, 0) == [(0, 0, 8), (8, 8, 12)]
    assert parts("abcde\nghijkl", 8, 0) == [(0, 0, 8), (8, 8, 12)], "too far from its end"
    assert parts("abcdefghijkl\nnopqrs", 8, 0) == [(0, 0, 8), (8, 8, 16), (16, 16, 19)]
    assert parts("ab\ndefgh", 8, 0) == [(0, 0, 8)], "the last part ends with the text"


def test_a_character_of_several_tokens_is_in_one_part() -> None:
    assert parts("a🙂b", 2, 0) == [(0, 0, 1), (1, 1, 3)]
    assert parts("🙂🙂", 3, 0) == [(0, 0, 1), (1, 1, 2)]
