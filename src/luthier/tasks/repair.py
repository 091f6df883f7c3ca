"""Program repair: the fixed code of a buggy function, from the function and the lines that are to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from luthier.encoding.chat import chat_spans
from luthier.encoding.encode import encode
from luthier.encoding.infill import gap_spans, sentinels
from luthier.encoding.lexer import LANGUAGES, LINE_COMMENT, Language, NotCode, without_comments
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
from luthier.encoding.replies import extract, fenced, last_block
from luthier.encoding.templates import RowError
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.execution import feedback
from luthier.execution.feedback import Feedback
from luthier.recipe import Options
from luthier.records import Dropped, Example, Record, Span, Split
from luthier.registry import task
from luthier.run_folder import hash_value
from luthier.tasks import Task, text_of

_NAMES: dict[Language, str] = {"python": "Python", "java": "Java", "c": "C"}
_ANSWER = "Answer with the whole fixed function in one fenced block."
# Changed whenever the same attempts give another text.
_TURNS = 1


class Attempt(Options):
    """An earlier patch of the same bug, and what became of it."""

    output: str
    """What the model wrote."""
    function: str | None
    """The function that it stands for."""
    feedback: Feedback
    """What its tests said."""


_ATTEMPTS = TypeAdapter(list[Attempt])


@task("repair")
class Repair(Task):
    """The fixed code of a buggy function, in the representations of RepairLLaMA.

    Records have the fields ``before`` and ``after`` (whole functions with their indent), ``language``, and maybe ``context``,
    ``span`` (the first line that is to change and the one behind the last, from 0) and ``attempts`` (earlier patches with their
    ``output``, ``function`` and ``feedback``): context that is never trained, before the fix.
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
    format: Literal["completion", "chat"] = "completion"
    """``completion`` goes on with the text of the function; ``chat`` asks through the model's chat template, and takes the function out of the reply (``output: OR1``)."""

    @model_validator(mode="after")
    def _possible(self) -> Repair:
        if self.sentinels != "none" and (self.input in ("IR1", "IR2") or self.output != "OR2"):
            raise ValueError(
                f"infilling tokens stand for a gap, which {self.input} x {self.output} has not; take IR3 or IR4 with OR2, or sentinels: none"
            )
        if self.format == "chat" and self.output != "OR1":
            raise ValueError(
                f"a reply holds a whole function, not {self.output}; take output: OR1, or format: completion"
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
        apart = split == "train" and self.chunks == "apart" and not record.fields.get("attempts")
        pairs = single_chunks(buggy, fixed) if apart else [(buggy, fixed)]
        for number, (one, other) in enumerate(pairs):
            if len(pairs) == 1:
                yield self._row(
                    record.id, record, one, other, record.fields.get("span"), tokenizer, max_length
                )
            else:
                yield self._row(f"{record.id}#{number}", record, one, other, None, tokenizer, max_length)

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
        self,
        place: Place,
        language: Language,
        context: str,
        tokenizer: TextTokenizer,
        max_length: int,
        attempts: Sequence[Attempt] = (),
    ) -> list[Span]:
        """The spans before the output: what training and inference have in common.

        Raises:
            RowError: The chat template refuses.
        """
        output = "x" if self.format == "chat" else ""  # templates may leave out a turn without text
        spans = self._spans(place, output, language, context, tokenizer, max_length, attempts)
        return [span for span in spans if not span.weight]

    def messages(
        self, place: Place, language: Language, context: str, attempts: Sequence[Attempt] = ()
    ) -> list[dict[str, str]]:
        """The conversation before the reply, for a chat template or a server."""
        shown = fenced(input_parts(place, self.input, language, self.comments).text, language)
        around = (
            f"It stands behind this:\n\n{fenced(context, language)}\n\n" if context and self.outside else ""
        )
        asked = f"Fix the bug in this {_NAMES[language]} function. {_ANSWER}\n\n{around}{shown}"
        turns = [{"role": "user", "content": asked}]
        for attempt in attempts:
            said = "\n".join(feedback.words(attempt.feedback))
            answer = attempt.output if attempt.function is None else fenced(attempt.function, language)
            turns += [
                {"role": "assistant", "content": answer.strip() or "(nothing)"},
                {"role": "user", "content": f"{said}\n{_ANSWER}"},
            ]
        return turns

    def repaired(self, place: Place, output: str, language: Language) -> tuple[str | None, str]:
        """The function that a generated output stands for, or None; and the step that found it or failed."""
        if self.format == "chat":
            found = extract(output, place.text, language)
            return found.code, found.step
        function = patched(place, output, self.output)
        return function, "output" if function is not None else "no-fit"

    def answer(self, text: str) -> str:
        """What stands in the last fenced block of a reply; an output of another form as it is."""
        return last_block(text) if self.format == "chat" else text

    def identity(self, tokenizer: TextTokenizer) -> dict[str, Any]:
        """What has to be the same in training and inference."""
        marked = self.sentinels != "none"
        return {
            "task": "repair",
            "version": VERSION,
            "input": self.input,
            "output": self.output,
            "comments": self.comments,
            "remove_comments": self.remove_comments,
            "outside": self.outside,
            "sentinels": list(sentinels(tokenizer, self.sentinels).tokens) if marked else "none",
            "tokenizer": type(tokenizer.hf).__name__,
            "marker_ids": tokenizer.encode(MARKER),
            "format": self.format,
            "chat_template": hash_value(tokenizer.hf.chat_template) if self.format == "chat" else "none",
            "attempts": [_TURNS, feedback.VERSION],
        }

    def duplicate_text(self, record: Record) -> str:
        """Both functions, and earlier patches: fixes of one function that differ are no copies of each other."""
        attempts = record.fields.get("attempts")
        found = attempts if isinstance(attempts, list) else []
        tried = [str(one.get("output")) for one in found if isinstance(one, Mapping)]
        return "\n".join([text_of(record, "before"), *tried, text_of(record, "after")])

    def _row(
        self,
        name: str,
        record: Record,
        buggy: str,
        fixed: str,
        span: Any,
        tokenizer: TextTokenizer,
        max_length: int,
    ) -> Example | Dropped:
        language = cast(Language, record.fields["language"])
        place, _ = place_of(buggy, fixed)
        if span is not None:
            try:
                start, end = map(int, span)
            except (TypeError, ValueError):
                start, end = -1, -1
            if not 0 <= start <= end <= len(place.lines):
                detail = f"{span!r} is no first line and the one behind the last of {len(place.lines)}"
                return Dropped(name, "bad-span", detail)
            place = replace(place, start=start, end=end)
        output = self._written(place, "", fixed)
        if self.format == "chat":
            output = fenced(output, language)
        if self.repaired(place, output, language)[0] != fixed:
            return Dropped(
                name, "no-round-trip", f"the output in {self.output} does not give the fixed function back"
            )
        context = str(record.fields.get("context") or "")
        try:
            attempts = _ATTEMPTS.validate_python(record.fields.get("attempts") or [])
            spans = self._spans(place, output, language, context, tokenizer, max_length, attempts)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            return Dropped(name, "bad-attempts", f"{problem['loc']}: {problem['msg']}")
        except RowError as error:
            return Dropped(name, error.reason, error.detail)
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
        if "provenance" in record.fields:
            meta["provenance"] = record.fields["provenance"]
        return Example(name, spans, record.group, meta)

    def _spans(
        self,
        place: Place,
        output: str,
        language: Language,
        context: str,
        tokenizer: TextTokenizer,
        max_length: int,
        attempts: Sequence[Attempt] = (),
    ) -> list[Span]:
        if self.format == "chat":
            return self._chat(place, output, language, context, tokenizer, max_length, attempts)
        parts = input_parts(place, self.input, language, self.comments)
        context = context if self.outside else ""
        if self.sentinels != "none" and attempts:
            raise UserError(
                "infilling tokens leave no place for earlier patches",
                "recipe key task.sentinels",
                "train and repair in rounds with task.sentinels=none",
            )
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
            Span(parts.before, "before", trim="left", priority=len(attempts) + 1),
            Span(parts.core, "buggy"),
            Span(behind, "behind", trim="right", priority=len(attempts) + 1),
            Span(ending(self.input, language), "ending"),
            *self._tried(place, language, attempts),
            Span(output, "fixed", weight=1.0),
        ]
        return [
            *(span for span in spans if span.text),
            Span(str(tokenizer.hf.eos_token), "stop", weight=1.0, control=True),
        ]

    def _tried(self, place: Place, language: Language, attempts: Sequence[Attempt]) -> list[Span]:
        """Each earlier output, and behind it as comments what became of it; where room is short the oldest go first."""
        spans: list[Span] = []
        for number, attempt in enumerate(attempts, 1):
            said = "".join(f"{LINE_COMMENT[language]} {line}\n" for line in feedback.words(attempt.feedback))
            output = self._written(place, attempt.output, attempt.function)
            output = output if not output or output.endswith("\n") else f"{output}\n"
            trim: Literal["drop", "never"] = "drop" if number < len(attempts) else "never"
            spans += [
                Span(output, "attempt", trim=trim, priority=number),
                Span(said + ending(self.input, language), "feedback", trim=trim, priority=number),
            ]
        return spans

    def _written(self, place: Place, output: str, function: str | None) -> str:
        """A patch in the form of outputs, whatever form it was written in; as it is where that cannot hold it."""
        if function is None:
            return output
        if self.output == "OR2":
            lines = _lines_at(place, function)
            return output if lines is None else lines
        whole = replace(place, start=0, end=len(place.lines))
        return output_text(whole, function, self.output)

    def _chat(
        self,
        place: Place,
        output: str,
        language: Language,
        context: str,
        tokenizer: TextTokenizer,
        max_length: int,
        attempts: Sequence[Attempt],
    ) -> list[Span]:
        """The conversation with as many of the last attempts as fit; what was asked at first always stays."""
        for first in range(max(1, len(attempts))):
            turns = self.messages(place, language, context, attempts[first:])
            turns.append({"role": "assistant", "content": output})
            weights = [0.0] * (len(turns) - 1) + [1.0]
            spans = [
                replace(span, trim="never", priority=0) for span in chat_spans(turns, weights, tokenizer)
            ]
            if not isinstance(encode(Example("", spans, ""), tokenizer, max_length), Dropped):
                break
        return spans


def _lines_at(place: Place, function: str) -> str | None:
    """The lines that stand in the place of the changed ones in another version of the function; None if more differs."""
    if len(function) < len(place.before) + len(place.behind):
        return None
    if not function.startswith(place.before) or not function.endswith(place.behind):
        return None
    return function[len(place.before) : len(function) - len(place.behind)]
