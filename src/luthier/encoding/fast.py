"""A faster reading of long plain texts into tokens by tokie, used only where it was seen to give the very same ids and offsets.

Plain is printable ASCII with tabs and line ends. Of other characters tokie (0.1.4) takes some for another kind than the tokenizers
do (Roman numerals are no numbers to it, and some controls are no space), and it splits ``'s`` behind a tab: texts with any of these
are left to the tokenizer itself. All strings of five characters out of fourteen that stand for every kind of plain ones were read by both
once; those of three are read anew for every tokenizer. In ASCII a byte is a character, so that offsets are of both.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from luthier.run_folder import logger

_PLAIN = re.compile(r"[\t\n\r -~]*")
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
    """tokie's tokenizer of the same settings.

    Args:
        settings: The tokenizer's JSON, without post-processor, truncation and padding.
    """

    def __init__(self, settings: str) -> None:
        from tokie import Tokenizer as Fast

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            path.write_text(settings, encoding="utf-8")
            self._fast: Any = Fast.from_json(str(path))

    def ids(self, text: str) -> list[int]:
        """The ids of a plain text without control tokens."""
        found: list[int] = self._fast.encode(text, add_special_tokens=False).ids
        return found

    def read(self, text: str) -> Read:
        """Ids and offsets of a plain text without control tokens."""
        found = self._fast.encode_with_offsets(text, add_special_tokens=False)
        return Read(found.ids, found.offsets)


def is_plain(text: str) -> bool:
    """Whether a text is of the kind that both were seen to read alike."""
    return text.isascii() and "\t'" not in text and _PLAIN.fullmatch(text) is not None


def trials() -> Iterator[str]:
    """Plain texts that a tokenizer and its faster reader must read alike: some real ones, and all of three characters."""
    yield from _TRIALS
    for length in (1, 2, 3):
        yield from filter(is_plain, map("".join, product(_KINDS, repeat=length)))


def fast_reader(slow: Tokenizer) -> FastReader | None:
    """A faster reader that reads all of the trial texts as the given one does; None without tokie, or if it does not.

    Args:
        slow: The tokenizer that decides what is right.
    """
    try:
        reader = FastReader(slow.to_str())
    except ImportError:
        return None
    except Exception as error:  # whatever it raises over settings that it does not know
        logger.info("tokie cannot read this tokenizer (%s); the slower one is used", error)
        return None
    slow.encode_special_tokens = True
    for text in trials():
        right = slow.encode(text, add_special_tokens=False)
        try:
            same = reader.read(text) == (right.ids, right.offsets) and reader.ids(text) == right.ids
        except Exception:  # as above
            same = False
        if not same:
            logger.info(
                "tokie reads %s otherwise than this tokenizer; the slower one is used", json.dumps(text[:40])
            )
            return None
    return reader
