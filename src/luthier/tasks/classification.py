"""Classification: one label of a text, or several, from a head on its last token or as words that the model writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.encoding.templates import RowError, check_template, render
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.recipe import Head, Share
from luthier.records import Dropped, Example, Record, Span, Split
from luthier.registry import task
from luthier.run_folder import hash_value
from luthier.tasks import Task

_ONLY_HEAD = ("several", "label_smoothing", "focal_gamma", "hierarchy")
# What stands for the labels of a row that has none.
NO_LABEL = "(none)"


@task("classification")
class Classification(Task):
    """Labels of texts: by a head on the last token (``head``), or as words that the language model writes (``words``).

    The names of the labels, in the order of the head's outputs, are kept in ``data/labels.json`` and with the trained
    model. A record whose label is not among them is left out and counted, never guessed: as ``unknown-label`` in the eval and
    test splits, as ``unlisted-label`` in training, where ``labels`` lists names.
    """

    metrics: ClassVar[tuple[str, ...]] = ()

    way: Literal["head", "words"] = "head"
    """``head`` trains a new layer on the last token of a text; ``words`` trains the model to write the label behind it, and compares the probabilities of all labels."""
    text: str = "{{ text }}"
    """Jinja template of the text over a row's columns, for example ``"{{ title }}\\n\\n{{ body }}"``."""
    label: str = "label"
    """Column that holds the label; with ``several`` a list of labels."""
    labels: list[str] | str = "auto"
    """Names of the labels: ``auto`` takes those of ``data.source``, sorted; or a list; or a file (one name a line, or the ``labels.json`` of an earlier run), which keeps their order from run to run."""
    several: bool = False
    """Whether a row may have several labels, or none: a probability for each class by itself."""
    separator: str | None = None
    """What stands between the labels of a row in a text column, such as ``";"``."""
    trim: Literal["left", "right"] = "right"
    """Where a text that is too long is cut: at its beginning (``left``) or its end."""
    question: str = "\n\nLabel:"
    """With ``words``: what stands between the text and the label, which begins with a space."""
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]] = "none"
    """Weight of a row in the loss by its class: ``balanced`` gives all classes the same sum over the training records; a class that is not named has 1."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    focal_gamma: float = Field(0.0, ge=0)
    """Focal loss: a row's loss is multiplied by (1 - probability of its class) to this power; 0 is cross entropy."""
    hierarchy: str | None = None
    """What stands between the levels of a label's name, such as ``"/"``: the levels above the class are learned and measured as well."""
    hierarchy_weight: Share = 0.5
    """With ``hierarchy``: share of the loss that the levels above the class have."""
    threshold: Literal["fit"] | Annotated[float, Field(gt=0, lt=1)] = "fit"
    """With ``several``: the probability from which a class is given; ``fit`` chooses one for each class, by F1 on the eval split."""

    @model_validator(mode="after")
    def _possible(self) -> Classification:
        check_template(self.text, "recipe key task.text")
        if self.way == "words":
            given = [
                name for name in _ONLY_HEAD if getattr(self, name) != type(self).model_fields[name].default
            ]
            if given:
                raise ValueError(f"{', '.join(given)} needs a head; take way=head, or leave it out")
        if self.several and self.class_weights != "none":
            raise ValueError("class_weights is for rows of one label; with several, leave it out")
        if self.several and self.hierarchy:
            raise ValueError("hierarchy is for rows of one label; with several, leave it out")
        if isinstance(self.labels, list) and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError("labels must be at least two names, each once")
        return self

    def examples(
        self, record: Record, split: Split, tokenizer: TextTokenizer, *, max_length: int, seed: int
    ) -> Iterator[Example | Dropped]:
        """One example a record."""
        try:
            names, text = self._names(record), render(self.text, record.fields)
        except RowError as error:
            yield Dropped(record.id, error.reason, error.detail)
            return
        if not text.strip():
            yield Dropped(record.id, "no-text", "the text has no visible character")
            return
        known = {name: number for number, name in enumerate(self._known())}
        if unknown := [name for name in names if name not in known]:
            training = split == "train"
            reason = "unlisted-label" if training else "unknown-label"
            yield Dropped(record.id, reason, f"{unknown[0]!r}", budgeted=training)
            return
        numbers = [known[name] for name in names]
        label: int | list[int] = (
            [int(i in numbers) for i in range(len(known))] if self.several else numbers[0]
        )
        weight = self.class_weights.get(names[0], 1.0) if isinstance(self.class_weights, dict) else 1.0
        spans = [Span(text, "text", trim=self.trim)]
        if self.way == "head":
            yield Example(
                record.id, spans, record.group, {"label": label}, ", ".join(names) or NO_LABEL, weight
            )
            return
        spans += [
            Span(self.question, "question", priority=1),
            Span(self.word(names[0]), "label", weight=weight),
            *([Span(str(tokenizer.hf.eos_token), "stop", weight=weight, control=True)] if tokenizer.eos_id is not None else []),
        ]  # fmt: skip
        yield Example(record.id, spans, record.group, {"label": label})

    def prompt(self, text: str, tokenizer: TextTokenizer) -> list[Span]:
        """The text, and what stands before its label."""
        spans = [Span(text, "text", trim=self.trim)]
        return spans if self.way == "head" else [*spans, Span(self.question, "question", priority=1)]

    def duplicate_text(self, record: Record) -> str:
        """The text without its label: a copy with another label is a copy."""
        try:
            return render(self.text, record.fields)
        except RowError:
            return super().duplicate_text(record)

    def word(self, name: str) -> str:
        """A label as it stands behind the question."""
        return f" {name}"

    def fingerprint(self) -> str:
        """Hash of the names in a file of labels."""
        return (
            "" if isinstance(self.labels, list) or self.labels == "auto" else hash_value(list(self._known()))
        )

    def labels_of(self, record: Record) -> Sequence[str]:
        """The names of a record's labels."""
        try:
            return self._names(record)
        except RowError:
            return ()

    def resolved(self, counts: Mapping[str, int]) -> Classification:
        """The task with names of labels and weights of classes in place of ``auto`` and ``balanced``."""
        names = sorted(counts) if self.labels == "auto" else self._known()
        if len(names) < 2:
            raise UserError(
                f"the data have {len(names)} labels in the column {self.label!r}, and two are needed",
                "recipe key task.label",
                "name the column that holds the label, or list the names in task.labels",
            )
        weights = self.class_weights
        if weights == "balanced":
            total, present = sum(counts.values()), sum(count > 0 for count in counts.values())
            weights = {name: total / (present * count) for name, count in counts.items() if count}
        elif isinstance(weights, dict) and (unknown := sorted(set(weights) - set(names))):
            raise UserError(
                f"no class is called {unknown[0]!r}",
                "recipe key task.class_weights",
                f"names look like {', '.join(names[:5])}",
            )
        return self.model_copy(update={"labels": names, "class_weights": weights})

    def head(self, names: Sequence[str]) -> Head | None:
        """The head for these labels; none for words."""
        if self.way == "words":
            return None
        return Head(
            names=tuple(names),
            several=self.several,
            label_smoothing=self.label_smoothing,
            focal_gamma=self.focal_gamma,
            hierarchy=self.hierarchy,
            hierarchy_weight=self.hierarchy_weight,
        )

    def _known(self) -> list[str]:
        if isinstance(self.labels, list):
            return self.labels
        if self.labels == "auto":
            raise RuntimeError("names of labels are known only once the data have been read")
        return list(_read(self.labels))

    def _names(self, record: Record) -> list[str]:
        value = record.fields.get(self.label)
        if value is None:
            raise RowError("no-label", f"no column {self.label!r}; the row has: {', '.join(record.fields)}")
        parts = value if isinstance(value, list | tuple) else [value]
        if self.separator and isinstance(value, str):
            parts = [part.strip() for part in value.split(self.separator)]
        if any(not isinstance(part, str | int) for part in parts):
            raise RowError("no-label", f"{self.label} is {value!r}, neither text nor a whole number")
        names = [name for name in map(str, parts) if name]
        if not self.several and len(names) != 1:
            raise RowError("no-label", f"{self.label} holds {len(names)} labels; task.several allows that")
        return names


def _read(path: str) -> Sequence[str]:
    """Names from a file, one a line, or from ``labels.json``."""
    where, fix = (
        f"recipe key task.labels ({path})",
        "name a text file with one label a line, or a labels.json",
    )
    try:
        text = Path(path).read_text(encoding="utf-8")
        names = json.loads(text)["names"] if path.endswith(".json") else text.split("\n")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no labels can be read: {error}", where, fix) from error
    names = [name for name in map(str, names) if name]
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"{len(names)} names, {len(set(names))} of them different", where, fix)
    return names
