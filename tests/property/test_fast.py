"""The faster reader gives the ids and offsets of the tokenizer itself, or is not used."""

import copy
import pickle

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
            if tokenizer.has_special_string(text):
                continue
            slow.encode_special_tokens = True
            right = slow.encode(text, add_special_tokens=False)
            assert reader.read(text) == (right.ids, right.offsets)
            assert reader.read(text, offsets=False).ids == right.ids


def test_long_texts_go_through_it_and_control_tokens_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    usual = fast.FastReader.read
    monkeypatch.setattr(
        fast.FastReader, "read", lambda self, text, **how: seen.append(text) or usual(self, text, **how)
    )
    tokenizer = smollm()
    plain, special = "x = 1\n" * 400, "x = 1\n" * 400 + "<|im_end|>"
    tokenizer.encode_with_starts(plain, first=True, control=False)
    tokenizer.encode_with_starts(special, first=True, control=True)
    tokenizer.encode_with_starts("x = 1\n", first=True, control=False)
    assert seen == [plain]
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(plain) == tokenizer.encode(plain)


def test_a_reader_that_reads_anything_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = fast.FastReader.read
    wrong = lambda self, text, **how: fast.Read([*usual(self, text).ids, 5], usual(self, text).offsets)  # noqa: E731
    tokenizer, right = TextTokenizer(copy.deepcopy(smollm().hf)), smollm().encode("x = 1\n" * 400)
    monkeypatch.setattr(fast.FastReader, "read", wrong)
    assert tokenizer._fast == (None, None)
    assert tokenizer.encode("x = 1\n" * 400) == right
