from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luthier.check.columns import Offenders, sampled
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Finding, Row, Split
from luthier.registry import check
from luthier.rows import read_batches

# A few damaged rows are in most data, and data about text encodings holds such strings by right.
MOST_SHARE = 0.01
WORTH_A_NOTE = 0.001
# Of texts that are only classified, one or two may well be about such characters.
FEWEST_CLASSIFIED = 3
# Prompts are decoded, about 0.1 ms a row; targets are searched as text, all of them.
NUM_ROWS = 500
# Windows line ends in a tenth of the rows and others in a tenth as well come from two sources.
MIXED = 0.1
FEWEST_ROWS = 20

# How Latin-1 and Windows-1252 show the bytes 80 to BF.
_TAIL = (
    "[\u0080-\u00bf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d\u2018\u2019\u201c\u201d"
    "\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178]"
)
_MOJIBAKE = "|".join(
    (
        "[\u00c2\u00c3][\u0080-\u00aa\u00ac-\u00ba\u00bc-\u00bf]",  # Western letters; a guillemet can really follow
        f"[a-z][\u00c2-\u00c5]{_TAIL}",  # the same and Central European ones within a word, where no capital can stand
        f"(?:[\u00ce-\u00d1\u00d7-\u00d9]{_TAIL}){{3}}",  # Greek, Cyrillic, Hebrew and Arabic words
        f"\u00e2[\u20ac\u0080]{_TAIL}",  # quotes and dashes
        f"(?:[\u00e3-\u00e9]{_TAIL}{{2}}){{2}}",  # Chinese, Japanese and Korean words
        f"\u00f0[\u0178\u009f]{_TAIL}",  # emoji
    )
)
# A replacement character that really is in the data, in the pieces of tokenizers; any other comes from cutting letters.
_REPLACEMENT = ("\ufffd", "\u00ef\u00bf\u00bd", "<0xEF><0xBF><0xBD>")


@dataclass(frozen=True)
class _Damage:
    """A kind of damage: how to find it, what it is, and what to do."""

    pattern: str
    what: str
    fix: str


_KINDS = (
    _Damage(
        _MOJIBAKE,
        "hold letters that were read in the wrong encoding (UTF-8 as Latin-1 or Windows-1252)",
        'read the source as UTF-8; what is stored already, mend with text.encode("cp1252").decode("utf-8")',
    ),
    _Damage(
        "\ufffd",
        "hold the replacement character U+FFFD: bytes that could not be read are lost",
        'read the source anew in its own encoding, and without errors="replace"',
    ),
    _Damage(
        "\x00",
        "hold NUL characters: UTF-16 that was read as UTF-8, or binary data",
        "read the source in its own encoding, or take binary files out",
    ),
    _Damage(
        "\ufeff",
        "hold a byte order mark (U+FEFF) in the text",
        'read files with encoding="utf-8-sig", and join them as text',
    ),
)


_ANY = "|".join(damage.pattern for damage in _KINDS)


@check("encoding")
def encoding(context: CheckContext) -> Iterator[Finding]:
    """Texts were read in the encoding that they were written in.

    What it does: searches the targets of all rows, and the decoded text of 500 rows of each split, for UTF-8 that was
    read as Latin-1, for U+FFFD, NUL and byte order marks, and for Windows line ends in some rows, but not in others. A
    warning from 1% of the rows, a note from 0.1%. Of rows that another framework tokenised only the 500 are read.

    Why is this bad: the model learns to write what nobody wants, and damaged letters take several tokens each. Prompts
    that are typed later hold none of it.

    Example: ``cafÃ©`` in place of ``café``; half of the files with CRLF, so that the model ends lines in either way.

    Fix: read the source in its own encoding; newlines of one kind.

    Catalogue: 20
    """
    if not any(map(len, context.rows.values())):
        raise Skip("there are no rows")
    ends = _LineEnds(context)
    targets = {damage: Offenders(context) for damage in _KINDS}
    for split, batch in _targets(context):
        column = batch.column("target")
        ends.add(split, batch.column("id"), column)
        if not isinstance(context, RunContext):
            continue  # made of ids, which are looked into below
        damaged = _holds(column, _ANY)
        for damage, found in targets.items():
            found.add(split, batch.column("id"), _holds(column, damage.pattern) if damaged.any() else damaged)
    texts = _texts(context)
    for damage, found in targets.items():
        place, worst = max((("target", found), ("text", texts[damage])), key=lambda item: item[1].share)
        fewest = 1 if context.objective == "tokens" else FEWEST_CLASSIFIED
        if worst.share > WORTH_A_NOTE and worst.count >= fewest:
            yield worst.finding(
                "encoding",
                "warning" if worst.share > MOST_SHARE else "note",
                f"the {place}s of {worst} {damage.what}",
                damage.fix,
                WORTH_A_NOTE,
            )
    yield from ends.finding()


def _targets(context: CheckContext) -> Iterator[tuple[Split, pa.RecordBatch]]:
    """The target texts of all rows; none where rows have labels."""
    if context.objective != "tokens":
        return
    context.looked_at(f"the targets of all {sum(map(len, context.rows.values())):,} rows")
    for split, rows in context.rows.items():
        for batch in read_batches(rows.path, ["id", "target"]):
            yield split, batch


def _holds(column: pa.Array, pattern: str) -> np.ndarray:
    found: np.ndarray = pc.match_substring_regex(column, pattern).to_numpy(zero_copy_only=False)
    return found


def _texts(context: CheckContext) -> dict[_Damage, Offenders]:
    """The same over the decoded text of some rows, where there is a tokenizer."""
    found = {damage: Offenders(context) for damage in _KINDS}
    try:
        tokenizer = context.tokenizer
    except Skip:
        return found
    expressions = {damage: re.compile(damage.pattern) for damage in _KINDS}
    for split, rows in sampled(context, NUM_ROWS, "the whole text of "):
        texts = [_text(tokenizer, row) for row in rows]
        for damage, offenders in found.items():
            bad = [bool(expressions[damage].search(text)) for text in texts]
            offenders.add(split, [row.id for row in rows], bad)
    return found


def _text(tokenizer: TextTokenizer, row: Row) -> str:
    """A row's text without control tokens; nothing if its ids are no text.

    Where a row is cut within a letter whose bytes are several tokens, these decode to U+FFFD: at its ends that is usual,
    and elsewhere ids are not those of a text (they are random, or were cut out of the middle).
    """
    ids = [i for i in np.asarray(row.input_ids).tolist() if i not in tokenizer.special_ids]
    text = tokenizer.decode(ids)
    if "\ufffd" not in text:
        return text
    pieces = "".join(str(piece) for piece in tokenizer.hf.convert_ids_to_tokens(ids))
    if any(mark in pieces for mark in _REPLACEMENT):
        return text
    text = text.strip("\ufffd")
    return "" if "\ufffd" in text else text


class _LineEnds:
    """Counts rows whose targets have Windows line ends, others, or both."""

    def __init__(self, context: CheckContext) -> None:
        self._context = context
        self._windows = Offenders(context)
        self._num_unix = 0

    def add(self, split: Split, ids: pa.Array, column: pa.Array) -> None:
        """Counts some targets."""
        windows = pc.match_substring(column, "\r\n").to_numpy(zero_copy_only=False)
        unix = pc.match_substring_regex(column, "(^|[^\r])\n").to_numpy(zero_copy_only=False)
        lines = windows | unix
        self._windows.add(split, ids.filter(pa.array(lines)), windows[lines])
        self._num_unix += int(unix.sum())

    def finding(self) -> Iterator[Finding]:
        """A finding if they are mixed."""
        windows, num_rows = self._windows, self._windows.num_rows
        if num_rows < FEWEST_ROWS or min(windows.count, self._num_unix) < MIXED * num_rows:
            return
        yield Finding(
            "encoding",
            "warning",
            f"of the rows with several lines in their target {windows} have Windows line ends (CRLF), and "
            f"{self._num_unix:,} have others: the model learns to write both",
            windows.where,
            r'make them one: text.replace("\r\n", "\n")',
            measured=round(windows.share, 4),
            expected="none, or all",
        )
