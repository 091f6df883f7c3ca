"""Language modelling: every token of a text from those before it, with or without gaps to be filled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from luthier.encoding.infill import (
    Infill,
    Order,
    before_line_break,
    gap_spans,
    infilled,
    sentinels,
    without_overlap,
)
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.encoding.windows import windows
from luthier.errors import UserError
from luthier.records import Dropped, Example, Record, Row, Span, Split
from luthier.registry import task
from luthier.tasks import Task, text_of

# Tokens by which a window may grow when it is encoded by itself.
_SLACK = 4
_GAP = ("prefix", "suffix", "middle")


@task("language-modelling")
class LanguageModelling(Task):
    """Pretraining and further training on plain text: all tokens are trained, in windows of ``data.max_length``.

    Documents are told apart by the tokenizer's end-of-text token: before a document (where the tokenizer has no BOS) and,
    trained, behind it. Short rows share a batch without padding (``train.packing``) and never see each other.

    With ``infill`` a share of the windows of every split gets a gap. Records that have their own gap (the fields
    ``prefix``, ``suffix``, ``middle``) become one row each, in which only the middle is trained; with ``test`` and
    ``entry_point`` beside them the metric ``pass@1`` runs what was generated.
    """

    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "edit_similarity")
    open_ended: ClassVar[bool] = True

    text_field: str = "text"
    """Field of the record that holds the text."""
    context_tokens: int = Field(16, ge=1)
    """Tokens that a window repeats from the one before it, as context that is not trained again."""
    infill: Infill | None = None
    """Fill-in-the-middle for a share of the rows."""

    def examples(
        self, record: Record, split: Split, tokenizer: TextTokenizer, *, max_length: int, seed: int
    ) -> Iterator[Example | Dropped]:
        """The windows of a text, or the one gap that a record has."""
        if all(isinstance(record.fields.get(name), str) for name in _GAP):
            yield self._gap(record, tokenizer, max_length)
            return
        text = record.fields.get(self.text_field)
        if not isinstance(text, str):
            yield Dropped(record.id, "no-text", f"the field {self.text_field!r} holds {type(text).__name__}")
            return
        if not text.strip():
            yield Dropped(record.id, "blank", "no visible character", budgeted=False)
            return
        room = 2 + len(tokenizer.prefix_ids) + _SLACK + (4 if self.infill else 0)
        budget = max(2, max_length - room)
        context = min(self.context_tokens, budget // 4)
        mark = self._mark(tokenizer)
        for number, part in enumerate(windows(text, tokenizer, budget, context)):
            spans = [
                *([mark] if mark and not part.start and not tokenizer.prefix_ids else []),
                Span(text[part.context : part.start], "context", trim="left"),
                Span(text[part.start : part.end], "text", weight=1.0),
            ]
            if mark and part.end == len(text):
                spans.append(Span(mark.text, "end", weight=1.0, control=True, apart=True))
            line = text.count("\n", 0, part.start) + 1
            example = Example(f"{record.id}#{number}", spans, record.group, {"line": line})
            yield infilled(example, self.infill, tokenizer, max_length=max_length, seed=seed)

    def duplicate_text(self, record: Record) -> str:
        """The text itself, wherever it lies; of a gap with what stands around it."""
        gap = [text_of(record, name) for name in ("prefix", "middle", "suffix")]
        return text_of(record, self.text_field) or "".join(gap)

    def answer_to(self, row: Row, text: str) -> str:
        """The text without what of it already stands behind the gap."""
        suffix = row.meta.get("suffix")
        return without_overlap(text, suffix) if isinstance(suffix, str) else text

    def _mark(self, tokenizer: TextTokenizer) -> Span | None:
        """What stands between two documents."""
        token = tokenizer.hf.eos_token
        return Span(str(token), "start", control=True, apart=True) if token else None

    def _gap(self, record: Record, tokenizer: TextTokenizer, max_length: int) -> Example:
        if self.infill is None:
            raise UserError(
                "the records have gaps (prefix, suffix, middle), but the task knows no sentinel tokens",
                f"recipe key task.infill (record {record.id})",
                "set task.infill={rate: 0.5}",
            )
        prefix, suffix, middle = (record.fields[name] for name in _GAP)
        marks = sentinels(tokenizer, self.infill.sentinels)
        order: Order = "spm" if self.infill.order == "spm" else "psm"
        before, line_break = before_line_break(prefix, marks)
        spans = gap_spans(
            before,
            suffix,
            line_break + middle,
            order=order,
            marks=marks,
            tokenizer=tokenizer,
            max_length=max_length,
        )
        meta: dict[str, Any] = {"infill": order, "suffix": suffix}
        if isinstance(record.fields.get("test"), str):
            check = f"\n{record.fields['test']}\ncheck({record.fields.get('entry_point')})\n"
            meta |= {"before": before, "behind": suffix + check}
        return Example(record.id, spans, record.group, meta)
