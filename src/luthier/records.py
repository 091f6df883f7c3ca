"""The types in which stages meet: raw records, examples made of spans, encoded rows, findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "eval", "test"]
SPLITS: tuple[Split, ...] = ("train", "eval", "test")
Trim = Literal["never", "left", "right", "drop"]
Severity = Literal["error", "warning", "note"]
Progress = Callable[[str, int, int | None], None]
"""Called with a label, what is done and the total (or None)."""


@dataclass(frozen=True, slots=True)
class Record:
    """One raw row as a source gives it.

    Attributes:
        id: Unique in its source and stable over runs, for example ``rows.jsonl:17`` or a file's path.
        fields: Named values: the columns of a row, or ``text`` and ``path`` of a file.
        group: What must never straddle a split (file, project, release, template).
        neighbours: For a task that asks for them: the records of the same source that belong together, by what holds
            them together (``Task.neighbourhood``), this one included.
    """

    id: str
    fields: Mapping[str, Any]
    group: str
    neighbours: Mapping[str, Sequence[Record]] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record, or a row made of it, that is left out: ``reason`` is a short kebab-case word to count by.

    ``budgeted`` is false for what a rule of the recipe leaves out on purpose (a generated file, a
    duplicate): it is counted like the rest, but not held against the recipe's drop budget.
    """

    id: str
    reason: str
    detail: str = ""
    budgeted: bool = True


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text that says how much it is trained and how it may be cut.

    Attributes:
        text: The text, exactly as it stands in the row.
        name: What it is (``context``, ``target``, ``user`` ...), for the ledger and the report.
        weight: Loss weight of its tokens: 0 is context, 1 is target, anything else scales.
        trim: What may happen when the row is longer than ``max_length``: nothing, tokens cut from the
            left, from the right, or the span dropped whole.
        priority: Spans of the lowest priority give way first.
        control: Whether special-token strings in it are control tokens. Text from data never is.
        apart: Whether it is encoded by itself, even between spans that are all context or all trained.
    """

    text: str
    name: str
    weight: float = 0.0
    trim: Trim = "never"
    priority: int = 0
    control: bool = False
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """What a task makes of a record: an ordered list of spans.

    Attributes:
        id: Unique over the data, for example ``os.py#3``.
        spans: The row's text, in order.
        group: As in ``Record``.
        meta: Small JSON values that metrics and the report may use. Of a labelled example, ``label`` is the number of its
            class; where several are possible, a list of 0 and 1, one for each class.
        label: The names of the classes, if a head labels the row as a whole; its spans are all context then.
        weight: Loss weight of a labelled example, over 0.
    """

    id: str
    spans: Sequence[Span]
    group: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """An encoded example, as it lies in the Arrow files.

    Attributes:
        id, group: As in ``Example``.
        input_ids: Token ids, shape (num_tokens,).
        loss_weights: Weight of each token *as a target*, shape (num_tokens,); 0 is context. Of a row with a label, the last
            token has the row's weight: that is what the head reads.
        span_ids: Index into ``span_names`` of each token's span, shape (num_tokens,).
        span_names: Names of the spans, in order; a span that was dropped is not there.
        num_prompt_tokens: Tokens before the first trained one, or all of a row with a label: exactly what inference feeds.
        target: Text of the trained spans, joined; or the label.
        target_bytes: UTF-8 bytes of ``target`` without control tokens, for bits per byte.
        lossy: Whether decoding the untrimmed ids does not give the text back.
        trimmed: Tokens cut, by span name.
        meta: As in ``Example``.
    """

    id: str
    group: str
    input_ids: NDArray[np.int32]
    loss_weights: NDArray[np.float32]
    span_ids: NDArray[np.int16]
    span_names: Sequence[str]
    num_prompt_tokens: int
    target: str
    target_bytes: int
    lossy: bool = False
    trimmed: Mapping[str, int] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has to say, in the form of ``findings.json``.

    Attributes:
        check: Name of the check.
        severity: ``error`` stops the run, ``warning`` and ``note`` do not.
        what: The problem with its measured value.
        where: Recipe key, file or row ids.
        fix: What to change.
        measured, expected: The two figures, as text or numbers.
    """

    check: str
    severity: Severity
    what: str
    where: str
    fix: str
    measured: Any = None
    expected: Any = None
