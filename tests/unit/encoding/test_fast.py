"""What is left to the faster reader, and when it is used at all."""

import sys

import numpy as np
import pytest
from tests.fixtures.plain_tokenizer import plain_tokenizer
from tokenizers import Tokenizer, pre_tokenizers

from luthier.encoding import fast
from luthier.encoding.text_tokenizer import TextTokenizer

pytest.importorskip("tokie")
SLOW = plain_tokenizer(merges=[("Ġ", "a"), ("a", "b")])._first


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", ["+"]),
        ("x = 1\ty\r\n~", ["+x = 1\ty\r\n~"]),
        ("one two é three four", ["+one two", "- é three", "+ four"]),
        ("a é b c ü d", ["+a", "- é b", "+ c", "- ü d"]),
        ("é ü x y", ["-é ü x", "+ y"]),
        ("aé b", ["-aé b"]),
        ("x\n\n\té\n\ty", ["+x", "-\n\n\té\n\ty"]),
        ("ab\x00cd ef", ["-ab\x00cd", "+ ef"]),
        ("a\x7f", ["-a\x7f"]),
        ("a </s> b c", ["+a", "- </s> b", "+ c"]),
        ("a\t'b c d", ["+a", "-\t'b", "+ c d"]),
        ("a\tb 'c", ["+a\tb 'c"]),
    ],
)
def test_texts_are_cut_where_no_token_goes_on(text: str, pieces: list[str]) -> None:
    found = list(fast.FastReader(SLOW)._pieces(text))
    assert [("+" if plain else "-") + piece for piece, plain in found] == pieces


def test_a_vocabulary_with_tokens_over_the_cut_is_read_whole() -> None:
    reader = fast.FastReader(plain_tokenizer(merges=[("a", "Ġ")])._first)
    assert list(reader._pieces("x y é z w")) == [("x y é z w", False)]
    assert list(reader._pieces("x y")) == [("x y", True)]


def test_an_added_token_of_one_letter_is_left_to_the_tokenizer() -> None:
    reader = fast.FastReader(plain_tokenizer(special=["x"])._first)
    assert list(reader._pieces("a x b")) == [("a", True), (" x", False), (" b", True)]


def test_ids_and_places_are_those_of_the_tokenizer() -> None:
    texts = ["ab ab é ab</s> ab", "", "é", " ab" * 9]
    found = fast.FastReader(SLOW).read(texts)
    SLOW.encode_special_tokens = True
    for read, right in zip(found, SLOW.encode_batch(texts, add_special_tokens=False), strict=True):
        assert read.ids.tolist() == right.ids and read.ids.dtype == np.int32
        assert list(map(tuple, read.offsets.tolist())) == right.offsets and read.offsets.dtype == np.int64
    bare = fast.FastReader(SLOW).read(texts, offsets=False)
    assert [read.ids.tolist() for read in bare] == [read.ids.tolist() for read in found]
    assert all(read.offsets.shape == (0, 2) for read in bare)


def test_a_reader_is_used_only_if_it_reads_all_trials_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "trials", lambda: iter(["ab ab", "x é y", "ab</s>"]))
    assert isinstance(fast.fast_reader(SLOW), fast.FastReader)
    usual = fast.FastReader.read
    for change in (
        lambda read: read._replace(ids=read.ids + 1),
        lambda read: read._replace(offsets=read.offsets + 1),
        lambda read: 1 / 0,
    ):
        monkeypatch.setattr(
            fast.FastReader, "read", lambda self, texts, c=change: [c(r) for r in usual(self, texts)]
        )
        assert fast.fast_reader(SLOW) is None
    monkeypatch.setattr(fast.FastReader, "read", usual)
    monkeypatch.setitem(sys.modules, "tokie", None)
    assert fast.fast_reader(SLOW) is None


def test_trials_hold_all_short_strings_alone_and_beside_others() -> None:
    found = list(fast.trials())
    assert len(found) == 3 * (len(fast._TRIALS) + 14 + 14**2 + 14**3)
    assert {"s", "'s\t", "a's\ta é's\t", "'s\té\n's\t\n's\t"} <= set(found)


def test_it_is_made_for_much_text_alone_and_not_asked_for_control_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[object] = []

    class Reader:
        def read(self, texts: list[str], *, offsets: bool) -> list[fast.Read]:
            return [fast.Read(np.array([7], np.int32), np.zeros((1, 2), np.int64)) for _ in texts]

    monkeypatch.setattr("luthier.encoding.text_tokenizer.MANY", 5)
    monkeypatch.setattr(
        "luthier.encoding.text_tokenizer.fast_reader", lambda slow: made.append(slow) or Reader()
    )
    tokenizer = TextTokenizer(plain_tokenizer().hf)
    assert len(tokenizer.encode("abcd")) == 4 and not made
    assert tokenizer.encode("e") == tokenizer.encode("e", first=True) == [7] and len(made) == 1, (
        "both read alike"
    )
    assert tokenizer.encode("a", control=True) == [7] and tokenizer.encode("</s>", control=True) == [
        tokenizer.eos_id
    ]
    assert [ids.tolist() for ids in tokenizer.encode_all(["a", "b"])] == [[7], [7]]


def test_each_place_has_its_own_reader_where_they_read_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tokenizer] = []

    class Reader:
        def __init__(self, slow: Tokenizer) -> None:
            made.append(slow)
            self.number = len(made)

        def read(self, texts: list[str], *, offsets: bool) -> list[fast.Read]:
            return [fast.Read(np.array([self.number], np.int32), np.zeros((1, 2), np.int64)) for _ in texts]

    monkeypatch.setattr("luthier.encoding.text_tokenizer.MANY", 0)
    monkeypatch.setattr("luthier.encoding.text_tokenizer.fast_reader", Reader)
    hf = plain_tokenizer().hf
    hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = TextTokenizer(hf)
    assert (tokenizer.encode("a", first=True), tokenizer.encode("a")) == ([1], [2])
    assert [len(slow.encode("a").ids) for slow in made] == [2, 1]
    assert [ids.tolist() for ids in tokenizer.encode_all(["a"], first=True)] == [[1]]
