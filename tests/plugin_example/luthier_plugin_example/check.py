"""A check: what must hold of the prepared rows before training may start."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.check.context import CheckContext, Skip
from luthier.records import Finding
from luthier.registry import check
from luthier_plugin_example.task import QuestionAnswer


@check("numbers-only")
def numbers_only(context: CheckContext) -> Iterator[Finding]:
    """Every answer of the training rows is a whole number."""
    if not isinstance(context.task, QuestionAnswer):
        raise Skip("it is about the task question-answer")
    odd = [row.id for row in context.spread("train", 1000) if not row.target.strip().isdigit()]
    if odd:
        yield Finding(
            check="numbers-only",
            severity="error",
            what=f"{len(odd)} answers are no whole numbers",
            where=f"train rows {', '.join(odd[:5])}",
            fix="leave those records out of the source",
            measured=len(odd),
            expected=0,
        )
