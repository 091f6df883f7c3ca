"""Line completion: the next line of a code file, or the rest of one, from the text before it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.encoding.code_lines import Line, code_lines, target_spans
from luthier.encoding.infill import Infill, infilled
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Dropped, Example, Record, Span, Split
from luthier.registry import task
from luthier.tasks import Task, text_of


@task("line-completion")
class LineCompletion(Task):
    """The next line of code, or the rest of a line, from the text before it.

    A prompt that ends with a newline would cut a token that the model has always seen whole (newline plus indent), so
    the prompt ends where tokens naturally break: as a rule at the last visible character, and the newline and indent
    belong to the target. The token that holds the line's own newline ends the target, so no further stop token is
    needed; it may reach into the next line's indent.

    A training row is a chunk of a file in which every eligible line is a target, given all that stands before it in
    the chunk; a row for evaluation has one cut.
    """

    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "edit_similarity")

    text_field: str = "text"
    """Field of the record that holds the code."""
    cut: Literal["line-start", "inside"] = "line-start"
    """Where evaluation rows are cut: before a whole line, or somewhere inside one."""
    min_chars: int = Field(6, ge=1)
    """Visible characters that a line needs to be a target."""
    max_chars: int = Field(300, ge=1)
    """Visible characters above which a line is only context."""
    comment_prefixes: tuple[str, ...] = ("#", "//", "/*", "*")
    """A line that begins with one of these is only context."""
    min_context_tokens: int = Field(64, ge=1)
    """Tokens repeated from the chunk before, so that the first lines of a chunk have something to go by."""
    max_train_rows_per_file: int | None = Field(None, ge=1)
    """Chunks taken of one file at most, drawn by the seed."""
    max_lines_per_file: int = Field(4, ge=1)
    """Evaluation rows taken of one file at most, drawn by the seed."""
    infill: Infill | None = None
    """Fill-in-the-middle for a share of the training rows."""

    @property
    def stop_pattern(self) -> str:  # type: ignore[override]  # depends on where lines are cut
        """Generation ends with the first visible line, or with the rest of the line."""
        return r"\S[^\n]*\n" if self.cut == "line-start" else r"\n"

    def prompt(self, text: str, tokenizer: TextTokenizer) -> list[Span]:
        """The text; before a whole line it ends at the last visible character, as the contexts of rows do."""
        return super().prompt(text.rstrip() if self.cut == "line-start" else text, tokenizer)

    def answer(self, text: str) -> str:
        """The line that is compared: the first visible one, or the rest of the cut one."""
        lines = text.split("\n")
        return next((line for line in lines if line.strip()), "") if self.cut == "line-start" else lines[0]

    def duplicate_text(self, record: Record) -> str:
        """The code itself."""
        return text_of(record, self.text_field)

    def examples(
        self, record: Record, split: Split, tokenizer: TextTokenizer, *, max_length: int, seed: int
    ) -> Iterator[Example | Dropped]:
        """Chunks with many target lines for training, single cuts for evaluation."""
        text = record.fields.get(self.text_field)
        if not isinstance(text, str):
            yield Dropped(record.id, "no-text", f"the field {self.text_field!r} holds {type(text).__name__}")
            return
        lines = code_lines(
            text,
            tokenizer.boundaries(text),
            min_chars=self.min_chars,
            max_chars=self.max_chars,
            comment_prefixes=self.comment_prefixes,
        )
        if not any(line.eligible for line in lines[1:]):
            yield Dropped(
                record.id,
                "no-eligible-line",
                "every line is blank, a comment, too short or too long",
                budgeted=False,
            )
            return
        draw = random.Random(f"{seed} {record.id}")
        if split == "train":
            rows = list(self._chunks(text, lines, tokenizer, max_length))
            if self.max_train_rows_per_file and len(rows) > self.max_train_rows_per_file:
                rows = [rows[i] for i in sorted(draw.sample(range(len(rows)), self.max_train_rows_per_file))]
        else:
            rows = list(self._cuts(text, lines, tokenizer, draw))
        for number, (place, spans) in enumerate(rows):
            line = text.count("\n", 0, place) + 1
            example = Example(f"{record.id}#{number}", spans, record.group, {"line": line})
            options = self.infill if split == "train" else None
            yield infilled(example, options, tokenizer, max_length=max_length, seed=seed)

    def _chunks(
        self, text: str, lines: list[Line], tokenizer: TextTokenizer, max_length: int
    ) -> Iterator[tuple[int, list[Span]]]:
        """Training rows: each eligible line is a target once, after at least some context."""
        starts = tokenizer.encode_with_starts(text, first=True, control=False)[1]
        # Token index of each line's start, and behind each line's newline.
        begins = np.searchsorted(starts, [line.start for line in lines]).tolist()
        stops = np.searchsorted(starts, [line.stop for line in lines]).tolist()
        budget = max_length - len(tokenizer.prefix_ids)
        new = 1  # the first line of a file has nothing before it and is never a target
        while new < len(lines):
            context = new - 1
            while context and stops[new - 1] - begins[context - 1] <= self.min_context_tokens:
                context -= 1
            end = new
            while end < len(lines) and stops[end] - begins[context] <= budget:
                end += 1
            if end == new:  # too long for any chunk with its context
                new += 1
                continue
            if any(line.eligible for line in lines[new:end]):
                yield lines[new].start, target_spans(text, lines[context:end], new - context)
            new = end

    def _cuts(
        self, text: str, lines: list[Line], tokenizer: TextTokenizer, draw: random.Random
    ) -> Iterator[tuple[int, list[Span]]]:
        eligible = [line for line in lines[1:] if line.eligible]
        chosen = draw.sample(eligible, min(self.max_lines_per_file, len(eligible)))
        borders = sorted(tokenizer.boundaries(text)) if self.cut == "inside" else []
        for line in sorted(chosen, key=lambda line: line.start):
            place = line.start
            if self.cut == "inside":
                inside = [b for b in borders if line.first < b < line.end]
                if not inside:
                    continue
                place = draw.choice(inside)
            yield (
                place,
                [
                    Span(text[:place], "context", trim="left"),
                    Span(text[place : line.stop], "target", weight=1.0),
                ],
            )
