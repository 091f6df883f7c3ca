"""Text from data on its way to people: what the eye cannot see is named, and nothing in it steers a terminal."""

from __future__ import annotations

import re

# Control characters, invisible spaces, what turns the direction of text (and so hides code), lone surrogates.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def name_of(character: str) -> str:
    """What stands for a character that cannot be seen."""
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures, such as a small NUL
    return f"⟨U+{code:04X}⟩"


def plain(text: str) -> str:
    """The text with every character that cannot be seen, or not be written as UTF-8, replaced by its name."""
    return UNSEEN.sub(lambda found: name_of(found[0]), text)


def safe(text: str) -> str:
    """Text that cannot steer a terminal and that any stream takes: other control characters are spelt out."""
    spelt = "".join(c if c in "\n\t" or c.isprintable() else repr(c)[1:-1] for c in text)
    return spelt.encode("utf-8", "backslashreplace").decode()


def duration(seconds: float) -> str:
    """A time for people: ``42 s``, ``3:20``, ``1:05:00`` (hours, minutes, seconds)."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(count: int, noun: str) -> str:
    """``1 warning``, ``2 warnings``, ``1,204 rows``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
