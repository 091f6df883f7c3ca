"""A check's documentation as it is read in a terminal."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from rich.text import Text

from luthier.check.catalogue import ENTRIES, REPORTED
from luthier.display.findings import broken
from luthier.display.text import safe

_WIDEST = 100
_HEADING = re.compile(r"^([A-Z][a-z]+(?: [a-z]+)*):\s")
_MARKUP = re.compile(r"``([^`]+)``|`([^`]+)`")


def lines(name: str, entry: Any, width: int | None) -> Iterator[Text]:
    """The check's name, what is true if it passes, and its paragraphs, each under its heading.

    Args:
        name: The check.
        entry: Its function.
        width: Columns to break lines at; none for whole paragraphs.
    """
    width = width and min(width, _WIDEST)
    text = safe(inspect.getdoc(entry) or "It has no documentation.").partition("\n\nArgs:")[0]
    yield Text(safe(name), "bold")
    for paragraph in re.split(r"\n\s*\n", text):
        yield Text()
        heading = _HEADING.match(paragraph)
        if heading is None:
            yield from broken(Text(), _prose(paragraph), width)
            continue
        body = paragraph[heading.end() :]
        yield Text(heading[1], "bold")
        if heading[1] == "Catalogue":
            for number in map(int, re.findall(r"\d+", body)):
                yield from broken(Text(f"  {number:>2}  "), _entry(number), width)
        else:
            yield from broken(Text("  "), _prose(body), width)


def _prose(text: str) -> Text:
    """A paragraph in one line, its code in another colour."""
    line = " ".join(text.split())
    shown = Text()
    place = 0
    for found in _MARKUP.finditer(line):
        shown.append(line[place : found.start()])
        shown.append(found[1] or found[2], "cyan")
        place = found.end()
    return shown.append(line[place:])


def _entry(number: int) -> Text:
    """What an entry of the catalogue is, and where people met it."""
    reported = f" ({REPORTED[number]})" if number in REPORTED else ""
    return Text.assemble(ENTRIES.get(number, "unknown"), (reported, "dim"))
