"""What a task is: it turns raw records into examples, ordered lists of spans. One file in this folder a task.

A task is a pydantic class whose fields are its options in the recipe (``task: {type: NAME, option: value}``)::

    @task("reverse")
    class Reverse(Task):
        \"""Write a text backwards.\"""

        field: str = "text"
        \"""Column that holds the text.\"""

        def examples(self, record, split, tokenizer, *, max_length, seed):
            text = record.fields[self.field]
            yield Example(
                record.id, [Span(text, "prompt", trim="left"), Span(text[::-1], "target", weight=1.0)], record.group
            )

"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.recipe import Options
from luthier.records import Dropped, Example, Record, Row, Span, Split

if TYPE_CHECKING:  # transformers takes seconds to import, and naming a task in a recipe must not need it
    from luthier.encoding.text_tokenizer import TextTokenizer


class Task(Options):
    """Base of all tasks.

    Attributes:
        metrics: Registered metrics of generated text that are taken when the recipe says ``auto``.
        stop_pattern: Regular expression; a generation ends once it matches the generated text. None: only a stop
            token ends it.
        open_ended: Whether a row may end anywhere, as windows of a longer text do, and not only with what ends a generation.
    """

    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "edit_similarity")
    stop_pattern: ClassVar[str | None] = None
    open_ended: ClassVar[bool] = False

    @abstractmethod
    def examples(
        self, record: Record, split: Split, tokenizer: TextTokenizer, *, max_length: int, seed: int
    ) -> Iterator[Example | Dropped]:
        """The examples of a record, or why there is none; the same ones each time for the same arguments.

        Args:
            record: One raw row.
            split: What the examples are for; a task may make other ones for training than for the comparison.
            tokenizer: The model's.
            max_length: Tokens that a row may have; encoding trims to it, so a task need not.
            seed: The recipe's. Draw from it together with ``record.id``, so that a record's examples do not depend
                on the records before it.
        """

    def prompt(self, text: str, tokenizer: TextTokenizer) -> list[Span]:
        """The spans of a prompt that a person typed: what stands in a row before its target.

        Args:
            text: The prompt.
            tokenizer: The model's.
        """
        return [Span(text, "context", trim="left")]

    def answer(self, text: str) -> str:
        """The part of a generated text, or of a target, that metrics compare."""
        return text

    def answer_to(self, row: Row, text: str) -> str:
        """The part of the text generated for a row that metrics compare, where that depends on the row."""
        return self.answer(text)

    def identity(self, tokenizer: TextTokenizer) -> dict[str, Any]:
        """What of the task's form has to be the same in training and inference; kept beside the trained weights.

        Args:
            tokenizer: The model's.
        """
        return {}

    def duplicate_text(self, record: Record) -> str:
        """The text by which near and exact copies of a record are found: its text columns, by name."""
        fields = record.fields
        return "\n".join(fields[name] for name in sorted(fields) if isinstance(fields[name], str))
