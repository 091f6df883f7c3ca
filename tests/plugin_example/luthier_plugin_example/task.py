"""A task: what a record teaches, as spans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from luthier.records import Dropped, Example, Record, Span, Split
from luthier.registry import task
from luthier.tasks import Task

if TYPE_CHECKING:
    from luthier.encoding.text_tokenizer import TextTokenizer


@task("question-answer")
class QuestionAnswer(Task):
    """An answer from a question, each on a line of its own."""

    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "same_number")
    stop_pattern: ClassVar[str | None] = r"\n"

    question: str = "question"
    """Field that holds the question."""
    answer_field: str = "answer"
    """Field that holds the answer."""

    def examples(
        self, record: Record, split: Split, tokenizer: TextTokenizer, *, max_length: int, seed: int
    ) -> Iterator[Example | Dropped]:
        """One example: the question as context, which may be cut from the left, and the answer as target."""
        answer = record.fields[self.answer_field]
        if not answer:
            yield Dropped(record.id, "empty-answer")
            return
        spans = [
            Span(record.fields[self.question], "question", trim="left"),
            Span(f" {answer}\n", "answer", weight=1.0),
        ]
        yield Example(record.id, spans, record.group)

    def answer(self, text: str) -> str:
        """The first line, without the space before it."""
        return text.strip().partition("\n")[0]
