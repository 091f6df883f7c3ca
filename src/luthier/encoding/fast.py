"""A faster reading of texts into tokens by tokie, used only where it was seen to give the very same ids and offsets.

Only plain text is left to it: printable ASCII with tabs and line ends, where a byte is a character, and no added token. Of other characters tokie
(0.1.4) takes some for another kind than the tokenizers do (Roman numerals are no numbers to it, and some controls are no space),
and it splits ``'s`` behind a tab. All plain strings of five characters out of fourteen that stand for every kind were read by both
once; those of three are read anew for every tokenizer.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from luthier.run_folder import logger

_PLAIN = b"\t\n\r" + bytes(range(32, 127))
_NOT_PLAIN = r"[^\t\n\r -~]+|\t(?=')"
# White space behind a letter or a digit: no tokenizer whose vocabulary is without _ACROSS has a token on both sides.
_CUT = re.compile(r"(?<=[0-9A-Za-z])(?=[ \t\n\r])")
_LAST_CUT = re.compile(rf".*{_CUT.pattern}", re.DOTALL)
# White space as byte-level and other vocabularies spell it.
_ACROSS = re.compile(r"[0-9A-Za-z][ \t\n\rĠĊĉč\u2581]")
# Characters that must have been read before a faster reader pays, which takes a second to make and to try out.
MANY = 300_000
# Letters with and without a part in contractions, a capital, a digit, an apostrophe, white space of all kinds, signs.
_KINDS = "stleaS1' \t\n\r.="
# Code, white space, digits, quotes, capitals, contractions, repetitions, signs, and what is no word of any language.
_TRIALS = (
    'def f(x, *, y=1):\n    """Doc."""\n    return {**x, "a": [1, 2.5e-3, 0xFF]}  # note\n\n\nclass A(B):\n\tpass\r\n',
    "public static void main(String[] args) { int i = 0; i += 1 << 3; /* x */ }\n",
    "".join(f"{'    ' * i}if a_{i} >= {10**i}:\n" for i in range(12)) + " " * 70 + "x" + "\t" * 9 + "\n" * 7,
    "it's I'm WE'RE don't  O'Neill \"'quoted'\" 'S 'll'd  'tis rock'n'roll",
    "".join(map(chr, range(32, 127))),
    "a" * 40 + "=" * 20 + "!" * 9 + "......->->=>::<<>>&&||??:;," + "ab" * 30,
    "HTTPServer2XMLParser __init__ snake_case_name camelCaseName SCREAMING_CASE x1y2z3 v1.2.3-rc4+b5",
    "https://example.org/a?b=c&d=%20e#f <a href='x'>y</a> {{ t }} $HOME ${a} `cmd` \\n\\t\\\\ C:\\path",
    "0 00 000 0000 00000 1234567 12,345.678 1e10 1_000_000 0b1010 3.14159265358979",
    " leading", "trailing ", "  two  ", "\n", "\n\n  \n", "x \n y\r\r\n z", "x", "",
)  # fmt: skip
_NO_OFFSETS = np.empty((0, 2), np.int64)


class Read(NamedTuple):
    """Tokens of a text.

    Attributes:
        ids: Their ids, shape (num_tokens,).
        offsets: First character of each, and the one behind it, shape (num_tokens, 2).
    """

    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, encoding: Encoding) -> Read:
        """The tokens of the tokenizer itself."""
        offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding.ids))
        return cls(np.array(encoding.ids, np.int32), offsets.reshape(-1, 2))


class FastReader:
    """A tokenizer that leaves the plain parts of texts to tokie.

    Args:
        slow: The tokenizer, without post-processor, truncation and padding.
    """

    def __init__(self, slow: Tokenizer) -> None:
        from tokie import Tokenizer as Fast

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            path.write_text(slow.to_str(), encoding="utf-8")
            self._fast: Any = Fast.from_json(str(path))
        self._slow = slow
        vocabulary = slow.get_vocab()
        # Characters of each token in plain text.
        self._widths = np.zeros(max(vocabulary.values()) + 1, np.int64)
        self._widths[list(vocabulary.values())] = list(map(len, vocabulary))
        self._can_be_cut = not any(map(_ACROSS.search, vocabulary))
        added = [token.content for token in slow.get_added_tokens_decoder().values()]
        self._not_plain_strings = ["\t'", *added]
        self._not_plain = re.compile(
            "|".join([_NOT_PLAIN, *map(re.escape, sorted(added, key=len, reverse=True))])
        )

    def read(self, texts: Sequence[str], *, offsets: bool = True) -> list[Read]:
        """The tokens of texts, of all at once on all cores; special-token strings are plain text.

        Args:
            texts: Any.
            offsets: Whether they are wanted; else those of the tokens are empty.
        """
        pieces = [list(self._pieces(text)) for text in texts]
        plain = [piece for parts in pieces for piece, is_plain in parts if is_plain]
        all_ids, lengths = self._fast.encode_batch_flat(plain, add_special_tokens=False)
        all_ids = all_ids.view(np.int32)
        stops = np.cumsum(lengths).tolist()
        places = map(slice, [0, *stops], stops)
        self._slow.encode_special_tokens = True
        found = []
        for parts in pieces:
            ids, spans, start = [], [_NO_OFFSETS], 0
            for piece, is_plain in parts:
                if is_plain:
                    ids.append(all_ids[next(places)])
                    if offsets:
                        widths = self._widths[ids[-1]]
                        ends = np.cumsum(widths) + start
                        spans.append(np.stack([ends - widths, ends], axis=1))
                else:
                    one = Read.of(self._slow.encode(piece, add_special_tokens=False))
                    ids.append(one.ids)
                    if offsets:
                        spans.append(one.offsets + start)
                start += len(piece)
            found.append(Read(ids[0] if len(ids) == 1 else np.concatenate(ids), np.concatenate(spans)))
        return found

    def _pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """The text in parts, at least one, and whether each is plain."""
        if self._is_plain(text):
            yield text, True
            return
        start = 0
        for spot in self._not_plain.finditer(text):
            if not self._can_be_cut:
                yield text, False
                return
            if spot.start() < start:
                continue
            before = _LAST_CUT.match(text, start, spot.start() + 1)
            behind = _CUT.search(text, spot.end())
            first, last = before.end() if before else start, behind.start() if behind else len(text)
            if first > start:
                yield text[start:first], True
            yield text[first:last], False
            start = last
        if start < len(text):
            yield text[start:], True

    def _is_plain(self, text: str) -> bool:
        return (
            text.isascii()
            and not text.encode().translate(None, _PLAIN)
            and not any(string in text for string in self._not_plain_strings)
        )


def trials() -> Iterator[str]:
    """Texts that a tokenizer and its faster reader must read alike: some real ones, and all of three characters, in parts too."""
    short = ("".join(letters) for length in (1, 2, 3) for letters in product(_KINDS, repeat=length))
    for text in chain(_TRIALS, short):
        yield text
        yield f"{text}é\n{text}\n{text}"
        yield f"a{text}a é{text}"


def fast_reader(slow: Tokenizer) -> FastReader | None:
    """A faster reader that reads all of the trial texts as the given one does; None without tokie, or if it does not.

    Args:
        slow: The tokenizer that decides what is right.
    """
    texts = list(trials())
    try:
        reader = FastReader(slow)
        found = reader.read(texts)
    except ImportError:
        return None
    except Exception as error:  # whatever it raises over settings that it does not know
        logger.info("tokie cannot read with this tokenizer (%s); the slower one is used", error)
        return None
    slow.encode_special_tokens = True
    rights = slow.encode_batch(texts, add_special_tokens=False)
    for text, mine, right in zip(texts, found, rights, strict=True):
        if mine.ids.tolist() != right.ids or list(map(tuple, mine.offsets.tolist())) != right.offsets:
            logger.info(
                "tokie reads %s otherwise than this tokenizer; the slower one is used", json.dumps(text[:40])
            )
            return None
    return reader
