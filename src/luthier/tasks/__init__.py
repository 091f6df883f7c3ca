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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.recipe import Head, Options
from luthier.records import Dropped, Example, Record, Row, Span, Split

if TYPE_CHECKING:  # pyarrow is needed only where rows are read
    from luthier.rows import Rows


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

    def epoch_weights(self, rows: Rows, seed: int) -> Callable[[Row, int], Row] | None:
        """How loss weights change from one epoch to the next: a function from a training row and an epoch (from 0) to the row with its weights there.

        None: they stay as they are on disk. What is drawn must depend on the seed, the epoch and the row alone, for
        several processes and a resumed run draw it again. Rows for evaluation are never changed.

        Args:
            rows: All training rows.
            seed: The recipe's.
        """
        return None

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

    def neighbourhood(self, record: Record) -> str | None:
        """What a record is to be seen together with, such as its project: then ``examples`` is given all of these records
        as ``record.neighbours[that]``. None: a record is looked at alone.
        """
        return None

    def baseline(self, prompt: str) -> str | None:
        """What a rule without a model would write after a prompt, for a figure beside the models'. None: there is no such rule."""
        return None

    def fingerprint(self) -> str:
        """Hash of the files that the examples depend on beside the options."""
        return ""

    def labels_of(self, record: Record) -> Sequence[str]:
        """Names of a record's labels, for tasks that label rows: all that there are become ``data/labels.json``."""
        return ()

    def resolved(self, counts: Mapping[str, int]) -> Self:
        """The task as rows are made by it, once the labels are known; names in its field ``labels``.

        Args:
            counts: Training records of each label of ``data.source``.
        """
        return self

    def head(self, names: Sequence[str]) -> Head | None:
        """The head that the model gets for these labels; None if it stays a language model."""
        return None

    def identity(self, tokenizer: TextTokenizer) -> dict[str, Any]:
        """What of the task's form has to be the same in training and inference; kept beside the trained weights.

        Args:
            tokenizer: The model's.
        """
        return {}

    def duplicate_text(self, record: Record) -> str:
        """The text by which near and exact copies of a record are found: its text columns, by name; without any it is no copy."""
        fields = record.fields
        return "\n".join(fields[name] for name in sorted(fields) if isinstance(fields[name], str))


def text_of(record: Record, field: str) -> str:
    """The text in a field of a record; empty where there is none."""
    text = record.fields.get(field)
    return text if isinstance(text, str) else ""
