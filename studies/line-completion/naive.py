"""The old way to make rows of lines: context and line as one text, whose end is cut off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from luthier.records import Dropped, Example, Record, Span, Split
from luthier.registry import task
from luthier.tasks.codexglue import CodeXGlueLine

if TYPE_CHECKING:
    from luthier.encoding.text_tokenizer import TextTokenizer


def what_is_left(example: Example, tokenizer: TextTokenizer, max_length: int) -> tuple[str, str]:
    """Context and target after ``tokenizer(text, truncation=True, max_length=...)``; the target may be empty."""
    context, target = (span.text for span in example.spans)
    cut = tokenizer.hf(context + target, truncation=True, max_length=max_length, return_offsets_mapping=True)
    end = max(end for _, end in cut["offset_mapping"])
    return context[:end], target[: max(0, end - len(context))]


@task("naive-line")
class NaiveLine(CodeXGlueLine):
    """Lines whose training rows are cut off at the right. A row that keeps nothing of its target would teach nothing and is left out."""

    def examples(
        self, record: Record, split: Split, tokenizer: TextTokenizer, *, max_length: int, seed: int
    ) -> Iterator[Example | Dropped]:
        """As of ``codexglue-line``, training rows cut off; rows of the other splits are the same."""
        for example in super().examples(record, split, tokenizer, max_length=max_length, seed=seed):
            if split != "train" or isinstance(example, Dropped):
                yield example
                continue
            context, target = what_is_left(example, tokenizer, max_length)
            if not target:
                yield Dropped(example.id, "no-target-left", "its context fills the row", budgeted=False)
                continue
            spans = [Span(context, "context", trim="left"), Span(target, "target", weight=1.0)]
            yield Example(example.id, spans, example.group, example.meta)
