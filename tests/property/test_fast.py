"""The faster reader gives the ids and offsets of the tokenizer itself, or is not used."""

import copy
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.tokenizers import FAMILIES, smollm

from luthier.encoding import fast
from luthier.encoding.text_tokenizer import TextTokenizer

pytest.importorskip("tokie")
CODE = st.lists(
    st.sampled_from(
        [
            "def f(x):",
            "\n",
            "    ",
            "\t",
            " ",
            "return",
            "x_1",
            "HTTPServer",
            "'s",
            "==",
            "123",
            "\r\n",
            "###",
            "aaaa",
            "<|im_end|>",
            "é",
        ]
    ),
    max_size=60,
).map("".join)


@settings(max_examples=100, deadline=None)
@given(st.one_of(CODE, st.text(max_size=80)))
def test_the_faster_reader_gives_the_same_tokens(text: str) -> None:
    for name, family in FAMILIES.items():
        tokenizer = family()
        for reader, slow in zip(tokenizer._fast, (tokenizer._first, tokenizer._next), strict=True):
            if reader is None:
                assert name != "smollm"
                continue
            slow.encode_special_tokens = True
            right = slow.encode(text, add_special_tokens=False)
            [read] = reader.read([text])
            assert (read.ids.tolist(), list(map(tuple, read.offsets.tolist()))) == (right.ids, right.offsets)


def test_it_is_made_when_much_was_read_and_is_used_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    usual = fast.FastReader.read
    monkeypatch.setattr(
        fast.FastReader, "read", lambda self, texts, **how: seen.extend(texts) or usual(self, texts, **how)
    )
    monkeypatch.setattr("luthier.encoding.text_tokenizer.MANY", 1000)
    tokenizer = TextTokenizer(copy.deepcopy(smollm().hf))
    plain, special = "x = 1\n" * 100, "x = 1\n" * 100 + "<|im_end|>"
    slowly = tokenizer.encode_with_starts(plain, first=True, control=False)
    assert not seen
    fastly = tokenizer.encode_with_starts(plain, first=True, control=False)
    assert seen[-1] == plain
    for one, other in zip(slowly, fastly, strict=True):
        assert np.array_equal(one, other)
    tokenizer.encode_with_starts(special, first=True, control=True)
    assert seen[-1] == plain  # control tokens are not for it
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(plain) == tokenizer.encode(plain)


def test_a_reader_that_reads_anything_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = fast.FastReader.read

    def wrong(self: fast.FastReader, texts: Sequence[str], **how: bool) -> list[fast.Read]:
        return [read._replace(ids=read.ids + (len(read.ids) > 90)) for read in usual(self, texts, **how)]

    tokenizer, right = TextTokenizer(copy.deepcopy(smollm().hf)), smollm().encode("x = 1\n" * 400)
    monkeypatch.setattr(fast.FastReader, "read", wrong)
    monkeypatch.setattr("luthier.encoding.text_tokenizer.MANY", 0)
    assert tokenizer._fast == (None, None)
    assert tokenizer.encode("x = 1\n" * 400) == right


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.data())
def test_lossy_is_what_decoding_does_not_give_back(text: str, data: st.DataObject) -> None:
    for family in FAMILIES.values():
        tokenizer = family()
        [ids] = tokenizer.encode_all([text])
        others = np.array(data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=5)), np.int32)
        for tried in (ids, others, np.concatenate([ids, others])):
            assert tokenizer.is_lossy(tried, text) == (tokenizer.decode(tried) != text)


def test_many_texts_are_read_like_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.encoding.text_tokenizer.MANY", 0)
    texts = [
        "x = 1\n" * 300,
        "",
        "é" * 20,
        "a = 'é'  # " + "b c" * 500,
        "short",
        "x <|im_end|> y " * 99,
        "Ⅻ\t'd x",
    ]
    for family in FAMILIES.values():
        tokenizer = family()
        for first in (False, True):
            together = tokenizer.encode_all(texts, first=first)
            assert [ids.tolist() for ids in together] == [
                tokenizer.encode(text, first=first) for text in texts
            ]
