"""Vulnerable code beside its fix, with the CWE: base of the sources of it, and what takes away all that gives the answer."""

from __future__ import annotations

import functools
import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import Literal, cast

from luthier.encoding.anonymous import anonymous
from luthier.encoding.lexer import LINE_COMMENT, Language, NotCode
from luthier.records import Dropped, Record
from luthier.sources.pairs import Pairs, fix

_CWE = re.compile(r"(?i)cwe[-_ ]?0*(\d+)")
VULNERABLE, FIXED, NO_CWE = "vulnerable", "fixed", "none"


class Vulnerable(Pairs):
    """Base of the sources of vulnerable code and its fixes.

    Fields of a fix: ``before`` (vulnerable), ``after``, ``language``, ``cwe`` (``CWE-89``), and that as a comment in ``context``,
    which the task ``repair`` shows with ``outside: true``. Fields of a function: ``text``,
    ``language``, ``label`` (``vulnerable`` or ``fixed``) and ``cwe``, which is ``none`` where it is fixed.
    """

    rows: Literal["fixes", "functions"] = "fixes"
    """``fixes`` are records with both sides, to repair; ``functions`` are records of one side each, to classify."""
    clean: bool = True
    """Take out what gives the answer away: comments and docstrings, names such as ``bad`` and ``CWE89_x``, texts with these or that name a weakness, and all names that a function declares, which are numbered instead, alike on both sides of a fix."""
    names: Literal["own", "all"] = "own"
    """Which names are numbered: those that a function declares itself (``own``), or those of libraries and members as well, so that nothing is left to read but how code is built."""

    texts: Literal["telling", "all"] = "telling"
    """Which pieces of text are numbered beside docstrings: those that give the answer away (``telling``), or ``all`` string literals, queries and formats among them."""

    @abstractmethod
    def pairs(self) -> Iterator[Record | Dropped]:
        """The fixes as they are, with the field ``cwe``."""

    def rewritten(self, item: Record) -> Record | Dropped:
        """A fix, cleaned."""
        return self._cleaned(item) if self.clean else item

    def records(self) -> Iterator[Record | Dropped]:
        """The fixes, or their functions one by one."""
        for item in super().records():
            if self.rows == "fixes" or isinstance(item, Dropped):
                yield item
                continue
            shared = {"language": item.fields["language"]}
            for side, label, cwe in (("before", VULNERABLE, item.fields["cwe"]), ("after", FIXED, NO_CWE)):
                fields = {"text": item.fields[side], **shared, "label": label, "cwe": cwe}
                yield Record(f"{item.id}#{side}", fields, item.group)

    def _cleaned(self, item: Record) -> Record | Dropped:
        sides = str(item.fields["before"]), str(item.fields["after"])
        language = cast(Language, item.fields["language"])
        which = self.names == "all", self.texts == "all"
        try:
            if self.rows == "fixes":
                before, after = _without_names(sides, language, *which)
            else:  # a function alone must not be numbered by its other side
                before, after = (_without_names((side,), language, *which)[0] for side in sides)
        except NotCode as error:
            return Dropped(item.id, "not-code", str(error))
        made = fix(item.id, before, after, language)
        if isinstance(made, Dropped):
            return made
        return Record(made.id, {**item.fields, **made.fields}, item.group)


@functools.lru_cache(maxsize=4096)  # records are read twice
def _without_names(
    sides: tuple[str, ...], language: Language, everything: bool, all_texts: bool
) -> list[str]:
    return anonymous(sides, language, everything=everything, all_texts=all_texts)


def weakness(
    record_id: str, before: object, after: object, language: object, cwe: object, group: str
) -> Record | Dropped:
    """A fix with its CWE as a record, or why it is none."""
    number = _CWE.search(str(cwe))
    if number is None:
        return Dropped(record_id, "no-cwe", f"{cwe!r} names no CWE")
    made = fix(record_id, before, after, language)
    if isinstance(made, Dropped):
        return made
    name, sign = f"CWE-{number[1]}", LINE_COMMENT[cast(Language, language)]
    return Record(made.id, {**made.fields, "cwe": name, "context": f"{sign} {name}\n"}, group)
