"""Windows of a text with a token for each character."""

from tests.fixtures.plain_tokenizer import Plain, plain_tokenizer, spaced_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.encoding.windows import windows

PLAIN = plain_tokenizer()


def parts(
    text: str, num_tokens: int, num_context: int, tokenizer: TextTokenizer = PLAIN
) -> list[tuple[int, int, int]]:
    return [(w.context, w.start, w.end) for w in windows(text, tokenizer, num_tokens, num_context)]


def test_parts_are_as_long_as_they_may_be_with_their_context() -> None:
    assert parts("abcdefghij", 4, 0) == [(0, 0, 4), (4, 4, 8), (8, 8, 10)]
    assert parts("abcdefghij", 4, 1) == [(0, 0, 4), (3, 4, 7), (6, 7, 10)]
    assert parts("abcd", 4, 1) == [(0, 0, 4)] and parts("", 4, 1) == []


def test_parts_end_with_a_line_that_ends_in_their_last_quarter() -> None:
    assert parts("abcdef\nhijkl", 8, 0) == [(0, 0, 7), (7, 7, 12)]
    assert parts("abcdefg\nijkl", 8, 0) == [(0, 0, 8), (8, 8, 12)]
    assert parts("abcde\nghijkl", 8, 0) == [(0, 0, 8), (8, 8, 12)], "too far from its end"
    assert parts("abcdefghijkl\nnopqrs", 8, 0) == [(0, 0, 8), (8, 8, 16), (16, 16, 19)]
    assert parts("abcdef\nhijkl\nn", 8, 0) == [(0, 0, 7), (7, 7, 14)], "a newline behind it is none of its"
    assert parts("abcdef\n\nijkl", 8, 0) == [(0, 0, 8), (8, 8, 12)], "the last newline counts"
    assert parts("ab\ndefgh", 8, 0) == [(0, 0, 8)], "the last part ends with the text"


def test_a_character_of_several_tokens_is_in_one_part() -> None:
    assert parts("a🙂b", 2, 0) == [(0, 0, 1), (1, 1, 3)]
    assert parts("🙂🙂", 3, 0) == [(0, 0, 1), (1, 1, 2)]


def test_the_text_is_read_as_data_that_begins_a_row() -> None:
    assert parts("</s>ab", 4, 0) == [(0, 0, 4), (4, 4, 6)]
    assert parts("ab b", 2, 0, spaced_tokenizer()) == [(0, 0, 2), (2, 2, 4)]


def test_what_has_no_token_is_in_a_part_too() -> None:
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate("abcd")}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = TextTokenizer(Plain(backend, None, None, None))
    assert parts("  abcd ", 2, 1, words) == [(0, 0, 4), (3, 4, 5), (4, 5, 7)]
