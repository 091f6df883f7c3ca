"""Program repair: the fixed code of a buggy function, from the function and the lines that are to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

from luthier.encoding.infill import gap_spans, sentinels
from luthier.encoding.lexer import LANGUAGES, Language, NotCode, without_comments
from luthier.encoding.repair import (
    MARKER,
    VERSION,
    CommentFormat,
    Input,
    Output,
    Place,
    ending,
    input_parts,
    output_text,
    patched,
    place_of,
    single_chunks,
)
from luthier.errors import UserError
from luthier.records import Dropped, Example, Record, Span, Split
from luthier.registry import task
from luthier.tasks import Task

if TYPE_CHECKING:  # naming a task in a recipe must not import transformers
    from luthier.encoding.text_tokenizer import TextTokenizer


@task("repair")
class Repair(Task):
    """The fixed code of a buggy function, in the representations of RepairLLaMA.

    Records have the fields ``before`` and ``after`` (whole functions with their indent), ``language``, and maybe ``context``.
    A row whose output does not give the fixed function back, byte for byte, is dropped as ``no-round-trip``.
    """

    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "edit_similarity", "ast_match")

    input: Input = "IR4"
    """What the model is shown: ``IR1`` the function; ``IR2`` its buggy lines between comments; ``IR3`` a marker in their place; ``IR4`` the buggy lines as comments before the marker."""
    output: Output = "OR2"
    """What it writes: ``OR1`` the fixed function; ``OR2`` the lines from the first changed one to the last; ``OR3`` and ``OR4`` a diff with three lines of context and with one."""
    comments: CommentFormat = "margin"
    """Buggy lines of IR4: the sign of a comment at the ``margin``, or ``indented`` with the line."""
    sentinels: Literal["none", "auto", "codellama", "starcoder", "qwen2.5-coder", "deepseek-coder", "new"] = (
        "none"
    )
    """Infilling tokens in place of the marker (IR3 and IR4 with OR2), as for ``infill``; ``none`` keeps the marker as text."""
    remove_comments: bool = True
    """Leave out the comments and blank lines of both functions."""
    chunks: Literal["one", "apart"] = "one"
    """Several changes of one function: from the first to the last as ``one``, or in training each ``apart``, the others made already."""
    outside: bool = False
    """Show imports, fields and values of the module before the function, where the source knows them; they are the first to be cut."""
    max_input_tokens: int | None = Field(None, ge=1)
    """Rows with a longer input are left out as ``input-too-long``; without it inputs are cut to ``data.max_length``."""
    max_output_tokens: int | None = Field(None, ge=1)
    """Rows with a longer output are left out as ``output-too-long``."""

    @model_validator(mode="after")
    def _possible(self) -> Repair:
        if self.sentinels != "none" and (self.input in ("IR1", "IR2") or self.output != "OR2"):
            raise ValueError(
                f"infilling tokens stand for a gap, which {self.input} x {self.output} has not; take IR3 or IR4 with OR2, or sentinels: none"
            )
        return self

    def examples(
        self, record: Record, split: Split, tokenizer: TextTokenizer, *, max_length: int, seed: int
    ) -> Iterator[Example | Dropped]:
        """One row, or in training with ``chunks: apart`` one for each change."""
        sides = self.sides(record)
        if isinstance(sides, Dropped):
            yield sides
            return
        buggy, fixed, _ = sides
        apart = split == "train" and self.chunks == "apart"
        pairs = single_chunks(buggy, fixed) if apart else [(buggy, fixed)]
        for number, (one, other) in enumerate(pairs):
            name = record.id if len(pairs) == 1 else f"{record.id}#{number}"
            yield self._row(name, record, one, other, tokenizer, max_length)

    def sides(self, record: Record) -> tuple[str, str, Language] | Dropped:
        """Buggy and fixed function as rows are made of them, and their language; or why there is none."""
        fields = record.fields
        if any(not isinstance(fields.get(name), str) for name in ("before", "after", "language")):
            return Dropped(
                record.id, "no-pair", f"before, after and language are needed; it has {', '.join(fields)}"
            )
        if fields["language"] not in LANGUAGES:
            return Dropped(record.id, "unknown-language", repr(fields["language"]))
        language = cast(Language, fields["language"])
        buggy, fixed = str(fields["before"]), str(fields["after"])
        if self.remove_comments:
            try:
                buggy, fixed = without_comments(buggy, language), without_comments(fixed, language)
            except NotCode as error:
                return Dropped(record.id, "not-code", str(error))
        if buggy == fixed:
            return Dropped(
                record.id, "unchanged", "nothing but comments and blank lines changes", budgeted=False
            )
        return buggy, fixed, language

    def prompt_spans(
        self, place: Place, language: Language, context: str, tokenizer: TextTokenizer, max_length: int
    ) -> list[Span]:
        """The spans before the output: what training and inference have in common."""
        return [s for s in self._spans(place, "", language, context, tokenizer, max_length) if not s.weight]

    def repaired(self, place: Place, output: str) -> str | None:
        """The function that a generated output stands for; None if it is a diff that does not fit."""
        return patched(place, output, self.output)

    def identity(self, tokenizer: TextTokenizer) -> dict[str, Any]:
        """What has to be the same in training and inference."""
        shown = "sentinels" if self.sentinels == "none" else sentinels(tokenizer, self.sentinels).tokens
        return {
            "task": "repair",
            "version": VERSION,
            "input": self.input,
            "output": self.output,
            "comments": self.comments,
            "remove_comments": self.remove_comments,
            "outside": self.outside,
            "sentinels": list(shown) if self.sentinels != "none" else "none",
            "tokenizer": type(tokenizer.hf).__name__,
            "marker_ids": tokenizer.encode(MARKER, first=False, control=False),
        }

    def duplicate_text(self, record: Record) -> str:
        """Both functions: fixes of one function that differ are no copies of each other."""
        return f"{record.fields.get('before')}\n{record.fields.get('after')}"

    def _row(
        self, name: str, record: Record, buggy: str, fixed: str, tokenizer: TextTokenizer, max_length: int
    ) -> Example | Dropped:
        language = cast(Language, record.fields["language"])
        place, lines = place_of(buggy, fixed)
        output = output_text(place, lines, self.output)
        if patched(place, output, self.output) != fixed:
            return Dropped(
                name, "no-round-trip", f"the output in {self.output} does not give the fixed function back"
            )
        context = str(record.fields.get("context") or "")
        spans = self._spans(place, output, language, context, tokenizer, max_length)
        for limit, text, reason in (
            (self.max_output_tokens, output, "output-too-long"),
            (self.max_input_tokens, "".join(s.text for s in spans if not s.weight), "input-too-long"),
        ):
            if limit is not None and (count := len(tokenizer.encode(text))) > limit:
                return Dropped(name, reason, f"{count} tokens, over {limit}", budgeted=False)
        meta = {
            "language": language,
            "before": buggy,
            "start": place.start,
            "end": place.end,
            "output": self.output,
        }
        return Example(name, spans, record.group, meta)

    def _spans(
        self,
        place: Place,
        output: str,
        language: Language,
        context: str,
        tokenizer: TextTokenizer,
        max_length: int,
    ) -> list[Span]:
        parts = input_parts(place, self.input, language, self.comments)
        context = context if self.outside else ""
        if self.sentinels != "none":
            # The indent before the marker is the output's own.
            shown = parts.core.removesuffix(f"{place.indent}{MARKER}\n")
            return gap_spans(
                context + parts.before + shown, parts.behind, output, order="psm",
                marks=sentinels(tokenizer, self.sentinels), tokenizer=tokenizer, max_length=max_length,
            )  # fmt: skip
        if tokenizer.eos_id is None:
            raise UserError(
                "the tokenizer has no EOS token, so that an output could not end",
                "recipe key model.name",
                "set eos_token in the model's tokenizer_config.json",
            )
        behind = parts.behind if not parts.behind or parts.behind.endswith("\n") else f"{parts.behind}\n"
        spans = [
            Span(context, "outside", trim="left"),
            Span(parts.before, "before", trim="left", priority=1),
            Span(parts.core, "buggy"),
            Span(behind, "behind", trim="right", priority=1),
            Span(ending(self.input, language), "ending"),
            Span(output, "fixed", weight=1.0),
        ]
        return [
            *(span for span in spans if span.text),
            Span(str(tokenizer.hf.eos_token), "stop", weight=1.0, control=True),
        ]
