"""A faster reading of long texts into tokens by tokie, used only where it was seen to give the very same ids and offsets.

Only plain text is left to it: printable ASCII with tabs and line ends, where a byte is a character. Of other characters tokie
(0.1.4) takes some for another kind than the tokenizers do (Roman numerals are no numbers to it, and some controls are no space),
and it splits ``'s`` behind a tab. All plain strings of five characters out of fourteen that stand for every kind were read by both
once; those of three are read anew for every tokenizer.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from itertools import chain, groupby, product
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from luthier.run_folder import logger

_PLAIN = re.compile(r"[\t\n\r -~]*")
_LINE_START = re.compile(r"(?<=\S\n)(?=[!-~])")  # of longer white space the end depends on what follows
# Characters from which a text is worth a faster reader, which takes a moment to make and to try out.
LONG = 1000
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


class Read(NamedTuple):
    """Tokens of a text.

    Attributes:
        ids: Their ids.
        offsets: First character of each, and the one behind it.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]


class FastReader:
    """A tokenizer that leaves the plain parts of long texts to tokie.

    Texts are parted where a line begins with a sign that is no white space: no tokenizer that was met has a token on both sides.

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

    def read(self, text: str, *, offsets: bool = True) -> Read:
        """Ids, and offsets if they are wanted, of a text without control tokens."""
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        start = 0
        self._slow.encode_special_tokens = True
        for piece, plain in _pieces(text):
            if not plain:
                found: Any = self._slow.encode(piece, add_special_tokens=False)
            elif offsets:
                found = self._fast.encode_with_offsets(piece, add_special_tokens=False)
            else:
                found = self._fast.encode(piece, add_special_tokens=False)
            ids += found.ids
            if offsets:
                places += [(a + start, b + start) for a, b in found.offsets] if start else found.offsets
            start += len(piece)
        return Read(ids, places)


def is_plain(text: str) -> bool:
    """Whether a text is of the kind that both were seen to read alike."""
    return text.isascii() and "\t'" not in text and _PLAIN.fullmatch(text) is not None


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """The text in parts, and whether each is plain."""
    if is_plain(text):
        yield text, True
        return
    for plain, lines in groupby(_LINE_START.split(text), is_plain):
        yield "".join(lines), plain


def trials() -> Iterator[str]:
    """Texts that a tokenizer and its faster reader must read alike: some real ones, and all of three characters, in parts too."""
    short = ("".join(letters) for length in (1, 2, 3) for letters in product(_KINDS, repeat=length))
    for text in chain(_TRIALS, short):
        yield text
        yield f"{text}é\n{text}\n{text}"


def fast_reader(slow: Tokenizer) -> FastReader | None:
    """A faster reader that reads all of the trial texts as the given one does; None without tokie, or if it does not.

    Args:
        slow: The tokenizer that decides what is right.
    """
    try:
        reader = FastReader(slow)
    except ImportError:
        return None
    except Exception as error:  # whatever it raises over settings that it does not know
        logger.info("tokie cannot read this tokenizer (%s); the slower one is used", error)
        return None
    slow.encode_special_tokens = True
    for text in trials():
        right = slow.encode(text, add_special_tokens=False)
        try:
            same = reader.read(text) == (right.ids, right.offsets)
            same = same and reader.read(text, offsets=False).ids == right.ids
        except Exception:  # as above
            same = False
        if not same:
            logger.info(
                "tokie reads %s otherwise than this tokenizer; the slower one is used", json.dumps(text[:40])
            )
            return None
    return reader
