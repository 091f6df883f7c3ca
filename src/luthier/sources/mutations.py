"""Fixes that are made: functions of real code with a bug planted into each, for machines that have no mined ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, cast

from pydantic import Field

from luthier.encoding.mutation import OPERATORS, Operator, planted
from luthier.encoding.syntax import PARSED, Parsed, functions, outside
from luthier.recipe import build
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources.pairs import Pairs, fix


@source("mutations")
class Mutations(Pairs):
    """Functions of code files with planted bugs: an operator swapped, a constant, a variable or a bound wrong, a statement or a branch gone.

    The fix is the function as it was. Nothing says that its tests would notice the bug.
    """

    code: dict[str, Any] = Field(default_factory=lambda: {"type": "stdlib"})
    """``type`` and options of a source of code files, such as ``stdlib``, ``code`` or ``sdists``."""
    operators: list[Operator] = Field(list(OPERATORS), min_length=1)
    """Kinds of bugs."""
    bugs_per_function: int = Field(1, ge=1)
    """Bugs planted in one function at most, each a fix of its own."""
    functions_per_file: int | None = Field(None, ge=1)
    """Functions taken of one file at most, drawn by the seed."""
    max_lines: int = Field(60, ge=1)
    """Longer functions are left out."""
    seed: int = 0
    """Of the draw."""

    def pairs(self) -> Iterator[Record | Dropped]:
        """Some for each function."""
        for item in build("source", self.code, "recipe key data.source.code").records():
            if isinstance(item, Dropped):
                yield item
                continue
            text, language = item.fields.get("text"), item.fields.get("language")
            if not isinstance(text, str) or language not in PARSED:
                yield Dropped(
                    item.id,
                    "unknown-language",
                    f"{language!r} is none of {', '.join(PARSED)}",
                    budgeted=False,
                )
                continue
            yield from self._of_file(item, text.encode("utf-8", "surrogatepass"), cast(Parsed, language))

    def own_fingerprint(self) -> str:
        """Of the code."""
        fingerprint: str = build("source", self.code, "recipe key data.source.code").fingerprint()
        return fingerprint

    def _of_file(self, item: Record, text: bytes, language: Parsed) -> Iterator[Record | Dropped]:
        found = functions(text, language)
        if not found:
            yield Dropped(item.id, "no-function", "the file has none", budgeted=False)
        if self.functions_per_file is not None and len(found) > self.functions_per_file:
            draw = random.Random(f"{self.seed} {item.id}")
            found = sorted(draw.sample(found, self.functions_per_file), key=lambda f: f.start)
        for function in found:
            name = f"{item.id}:{function.name}"
            good = text[function.start : function.end]
            if good.count(b"\n") > self.max_lines:
                yield Dropped(name, "function-too-long", f"{good.count(bytes([10]))} lines", budgeted=False)
                continue
            context = outside(text, language, function)
            number = 0
            for mutation in planted(
                text, language, function, random.Random(f"{self.seed} {name}"), tuple(self.operators)
            ):
                if number == self.bugs_per_function:
                    break
                bad = mutation.applied(text)[
                    function.start : function.end + len(mutation.text) - (mutation.end - mutation.start)
                ]
                before, after = (side.decode("utf-8", "replace") for side in (bad, good))
                yield fix(
                    f"{name}#{number}", before, after, language, context=context, operator=mutation.operator
                )
                number += 1
            if not number:
                yield Dropped(name, "nothing-to-plant", "", budgeted=False)
