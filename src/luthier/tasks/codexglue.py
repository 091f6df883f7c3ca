"""CodeXGLUE's line completion: the rest of a line in tokens between spaces, from all tokens before it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from luthier.encoding.infill import Gap, Gaps, infilled
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Dropped, Example, Record, Span, Split
from luthier.registry import task
from luthier.tasks import Task

# What ends a line, by language: Python's files mark the end, in Java a statement or block ends.
_ENDS = {"python": {"<EOL>", "</s>"}, "java": {";", "{", "}", "</s>"}}


@task("codexglue-line")
class CodeXGlueLine(Task):
    """Line completion in the format and by the metrics of CodeXGLUE.

    Records with ``tokens`` (token-level files) give lines cut out of them; records with ``input`` and ``gt`` (line-level
    rows) are taken as they are. The target is what stands up to and with the next ``<EOL>`` (Python) or ``;``, ``{`` or
    ``}`` (Java). Too long an input loses its beginning, never the target.
    """

    metrics: ClassVar[tuple[str, ...]] = ("codexglue_exact_match", "codexglue_edit_similarity")

    language: Literal["python", "java"] = "python"
    """Language of the files, which decides what ends a line."""
    cut: Literal["inside", "line-start"] = "inside"
    """Where lines of token-level files are cut: behind any of their tokens but the last, as the published test sets are, or before the first."""
    max_lines_per_file: int = Field(4, ge=1)
    """Lines taken of one token-level file at most, drawn by the seed."""
    min_tokens: int = Field(2, ge=1)
    """Tokens between spaces that a line needs to be a target, its end included; cut ``inside`` at least two."""
    infill: Gaps | None = None
    """Fill-in-the-middle for a share of the training rows: the line is the gap, and what follows it in the file the suffix. Line-level rows have none."""

    @property
    def stop_pattern(self) -> str:  # type: ignore[override]  # depends on the language
        """A line's end."""
        return "<EOL>|</s>" if self.language == "python" else r"(?<!\S)(?:[;{}](?!\S)|</s>)"

    def answer(self, text: str) -> str:
        """The line as the published ``gt`` holds it: without ``<EOL>``, ``</s>`` or ``{`` at its end."""
        if self.language == "python":
            return re.split("<EOL>|</s>", text)[0].strip()
        end = re.search(self.stop_pattern, text)
        if end is None:
            return text.strip()
        return text[: end.start() if end.group() in ("{", "</s>") else end.end()].strip()

    def examples(
        self, record: Record, split: Split, tokenizer: TextTokenizer, *, max_length: int, seed: int
    ) -> Iterator[Example | Dropped]:
        """Some lines of a token-level file, or the one of a line-level row."""
        fields = record.fields
        if isinstance(fields.get("gt"), str) and isinstance(fields.get("input"), str):
            ended = self._with_end(fields["gt"].strip())
            yield Example(
                record.id, _spans(fields["input"].strip(), ended), record.group, {"id": fields.get("id")}
            )
            return
        if not isinstance(fields.get("tokens"), str):
            yield Dropped(
                record.id, "no-tokens", f"neither tokens nor input and gt; the row has: {', '.join(fields)}"
            )
            return
        words = fields["tokens"].split()
        draw = random.Random(f"{seed} {record.id}")
        least = self.min_tokens if self.cut == "line-start" else max(2, self.min_tokens)
        lines = [line for line in self._lines(words) if line[1] - line[0] >= least]
        chosen = sorted(draw.sample(lines, min(self.max_lines_per_file, len(lines))))
        if not chosen:
            yield Dropped(record.id, "no-line", "no line behind the first is long enough", budgeted=False)
        for number, (start, end) in enumerate(chosen):
            place = start if self.cut == "line-start" else draw.randrange(start + 1, end)
            context, line, behind = (
                " ".join(part) for part in (words[:place], words[place:end], words[end:])
            )
            example = Example(f"{record.id}#{number}", _spans(context, line), record.group, {"token": place})
            gap = Gap(context, f" {behind}", f" {line}") if behind else None
            options = self.infill if split == "train" else None

            def given(_: random.Random, gap: Gap | None = gap) -> Gap | None:
                return gap

            yield infilled(example, options, tokenizer, max_length=max_length, seed=seed, gap=given)

    def _lines(self, words: list[str]) -> Iterator[tuple[int, int]]:
        """Start and end of each line behind the first, in words; the end is behind what ends the line."""
        start = 0
        for place, word in enumerate(words):
            if word in _ENDS[self.language]:
                if start > 0:
                    yield start, place + 1
                start = place + 1

    def _with_end(self, line: str) -> str:
        """A published ``gt`` with what ends it, which that leaves out."""
        if self.language == "python":
            return f"{line} <EOL>"
        return line if line.endswith((";", "}")) else f"{line} {{"


def _spans(context: str, target: str) -> list[Span]:
    """Both; tokens break before a space."""
    return [Span(context, "context", trim="left"), Span(f" {target}", "target", weight=1.0)]
