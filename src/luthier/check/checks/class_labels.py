from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.check.columns import Offenders
from luthier.check.context import CheckContext, Skip
from luthier.check.tokenised import IGNORED
from luthier.check.trainer import TrainerContext
from luthier.models.forward import base_model
from luthier.records import Finding, Split
from luthier.registry import check
from luthier.rows import read_batches

# With fifty rows for each class on average, one that is ten times rarer than the rest is absent once in 150 data sets.
ROWS_FOR_EACH_CLASS = 50
# As in constant-target: a class that has more is worth knowing, since accuracy must be read against it ...
MOST_SHARE, MOST_SHARE_OF_TWO = 0.5, 0.8
# ... and beyond this, the way to the lowest loss is to ignore the text.
NEARLY_ALL = 0.95
# Numbers of a scale have many values; so few whole ones look like classes.
MOST_CLASS_NUMBERS = 20
FEWEST_ROWS = 20


@check("class-labels")
def class_labels(context: CheckContext) -> Iterator[Finding]:
    """Labels of whole rows fit the classification head, and mean for the loss what they mean in the data.

    What it does: reads the labels of all rows and the model's ``num_labels``, ``problem_type`` and ``id2label``: labels
    outside of 0 to ``num_labels`` - 1, labels that begin at 1, classes without a row where there are 50 rows for each on
    average, label types that make transformers choose another loss than meant, and names in another order than those of
    the data set. It says the accuracy of always giving the most frequent class where one has over half of the rows.

    Why is this bad: a label outside ends in a crash, on a GPU one that does not say why. All else trains silently: a class
    that is never shown, a binary loss for each class, a squared error on class numbers, or names that are swapped when
    the model is used.

    Example: labels 1 to 5 with ``num_labels=6``; one-hot labels as floats, for which transformers takes binary cross
    entropy.

    Fix: number classes from 0 without gaps, as integers; set ``num_labels``, ``problem_type`` and ``id2label``.

    Catalogue: 24, 43, 44
    """
    _ = context.rows  # what kind of labels there are shows when they are read
    if context.objective != "classes":
        raise Skip("the model is trained to give tokens, not a label for each row")
    labels = {split: _labels(context, split) for split in context.rows if len(context.rows[split])}
    if "train" not in labels:
        raise Skip("there are no training rows")
    context.looked_at(f"the labels of all {sum(len(found.values) for found in labels.values()):,} rows")
    head = _head(context)
    kind = labels["train"].kind
    if kind == "one-hot":
        yield from _one_hot(context, labels["train"], head)
    elif kind == "numbers":
        yield from _numbers(context, labels["train"], head)
    elif head is not None and head.num_labels == 1:
        yield from _regression(labels["train"], head)
    elif kind == "classes":
        yield from _outside(context, labels, head)
        yield from _ignored(context, labels["train"])
        yield from _absent(context, labels["train"], head)
        yield from _majority(context, labels["train"])
    if head is not None and kind == "classes":
        yield from _names(context, head)


@dataclass(frozen=True)
class _Labels:
    """The labels of a split's rows, and what they are: ``classes``, ``numbers`` (floats), ``one-hot``, ``several``."""

    ids: Sequence[str]
    values: np.ndarray
    kind: str

    @property
    def classes(self) -> np.ndarray:
        """Those that are not ignored."""
        found: np.ndarray = self.values[self.values != IGNORED]
        return found


@dataclass(frozen=True)
class _Head:
    """What the model's config says of its head; ``problem_type`` as it was before any forward pass set it."""

    num_labels: int
    problem_type: str | None
    names: list[str]
    where: str


def _labels(context: CheckContext, split: Split) -> _Labels:
    ids: list[str] = []
    given: list[Any] = []
    for batch in read_batches(context.rows[split].path, ["id", "meta"]):
        ids += batch.column("id").to_pylist()
        given += [json.loads(meta).get("label") for meta in batch.column("meta").to_pylist()]
    try:
        values = np.array(given)
    except ValueError as error:  # lists of several lengths
        raise Skip("rows have different numbers of labels") from error
    if values.dtype == object or values.dtype.kind not in "iufb":
        raise Skip("some rows have no label")
    values = values.reshape(len(values), -1)
    if values.shape[1] > 1:
        hot = np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all()
        return _Labels(ids, values, "one-hot" if hot and len(values) >= FEWEST_ROWS else "several")
    return _Labels(ids, values[:, 0], "numbers" if values.dtype.kind == "f" else "classes")


def _head(context: CheckContext) -> _Head | None:
    """The head, if the model is there to look at."""
    try:
        model: Any = context.trainer.model if isinstance(context, TrainerContext) else context.model
    except Skip:
        return None
    config: Any = base_model(model).config
    kind = context.problem_type if isinstance(context, TrainerContext) else config.problem_type
    names = [str(config.id2label.get(i, "")) for i in range(config.num_labels)]
    return _Head(int(config.num_labels), kind, names, f"config of {type(base_model(model)).__name__}")


def _outside(context: CheckContext, labels: dict[Split, _Labels], head: _Head | None) -> Iterator[Finding]:
    size = head.num_labels if head else None
    outside = Offenders(context)
    for split, found in labels.items():
        values = found.values
        bad = (values < 0) & (values != IGNORED)
        outside.add(split, found.ids, bad | (values >= size) if size else bad)
    if not outside.count:
        return
    every = np.concatenate([found.classes for found in labels.values()])
    low, high = int(every.min()), int(every.max())
    one = f"; they begin at 1, so that class 0 has no row and class {high} no output" if low == 1 else ""
    yield Finding(
        "class-labels",
        "error",
        f"{outside} have labels outside of 0 to {'num_labels - 1' if size is None else size - 1}: labels run from "
        f"{low} to {high}, num_labels is {size}{one}",
        outside.where,
        "number the classes from 0: label - 1"
        if low == 1 and high == size
        else f"set num_labels={high + 1} when the model is loaded, or number the classes anew",
        measured=high if low >= 0 else low,
        expected=f"0 to {size - 1 if size else 'num_labels - 1'}",
    )


def _ignored(context: CheckContext, train: _Labels) -> Iterator[Finding]:
    ignored = Offenders(context)
    ignored.add("train", train.ids, train.values == IGNORED)
    if ignored.count:
        yield ignored.finding(
            "class-labels",
            "warning",
            f"{ignored} have the label -100, which the loss leaves out: they train nothing",
            "give them a label, or take them out",
        )


def _absent(context: CheckContext, train: _Labels, head: _Head | None) -> Iterator[Finding]:
    classes = np.unique(train.classes)
    if not len(classes) or classes[0] < 0 or (head and classes[-1] >= head.num_labels):
        return  # said already
    size = head.num_labels if head else int(classes[-1]) + 1
    absent = np.setdiff1d(np.arange(size), classes)
    if not len(absent) or len(train.classes) < ROWS_FOR_EACH_CLASS * size:
        return
    shown = ", ".join(map(str, absent[:8].tolist())) + (", ..." if len(absent) > 8 else "")
    one = classes[0] == 1 and len(classes) == classes[-1]
    yield Finding(
        "class-labels",
        "warning",
        f"{len(absent)} of {size} classes have none of {len(train.classes):,} training rows: {shown}"
        + (f"; labels begin at 1 and end at {classes[-1]}" if one else ""),
        context.place("train"),
        "number the classes from 0 (label - 1), and set num_labels to their number"
        if one
        else "set num_labels to the classes that there are, or see why rows of these are missing (a sorted file read "
        "in part, a filter)",
        measured=len(absent),
        expected=0,
    )


def _majority(context: CheckContext, train: _Labels) -> Iterator[Finding]:
    values, counts = np.unique(train.classes, return_counts=True)
    if len(train.classes) < FEWEST_ROWS:
        return
    share = float(counts.max() / counts.sum())
    limit = MOST_SHARE_OF_TWO if len(values) == 2 else MOST_SHARE
    if share <= limit:
        return
    most = int(values[np.argmax(counts)])
    yield Finding(
        "class-labels",
        "warning" if share > NEARLY_ALL else "note",
        f"class {most} has {counts.max():,} of {counts.sum():,} training rows: an accuracy of {share:.2%} takes no "
        "more than always answering it",
        context.place("train"),
        "balance the classes or weight the loss, and choose by F1 or balanced accuracy instead of accuracy"
        if len(values) > 1
        else "see where the rows of the other classes are",
        measured=round(share, 4),
        expected=f"at most {limit}",
    )


def _one_hot(context: CheckContext, train: _Labels, head: _Head | None) -> Iterator[Finding]:
    if train.values.dtype.kind != "f" or (head and head.problem_type == "multi_label_classification"):
        return  # integers end in an error of torch, and who sets the type means it
    width = train.values.shape[1]
    yield Finding(
        "class-labels",
        "warning",
        f"all {len(train.values):,} training rows have {width} labels as floats of which exactly one is 1: for these "
        f"transformers takes {width} binary losses, in which classes do not compete, and not one cross entropy",
        context.place("train"),
        "give the class as one integer (argmax of the labels); or set config.problem_type to "
        '"multi_label_classification", if that is meant',
        measured=width,
        expected="one integer",
    )


def _numbers(context: CheckContext, train: _Labels, head: _Head | None) -> Iterator[Finding]:
    whole = bool((train.values == np.round(train.values)).all())
    if head is not None and head.num_labels > 1:
        yield Finding(
            "class-labels",
            "error",
            f"labels are floats, such as {train.values[0]}, and the head has {head.num_labels} outputs: transformers "
            "takes a loss for several labels a row, for which these do not fit",
            context.place("train"),
            "give classes as integers" if whole else "set num_labels=1 to learn numbers of a scale",
            measured=str(train.values[0]),
            expected="integers",
        )
    elif whole and head is not None:
        yield from _regression(train, head)


def _regression(train: _Labels, head: _Head) -> Iterator[Finding]:
    values = np.unique(train.values)
    if (
        head.problem_type == "regression"
        or len(values) > MOST_CLASS_NUMBERS
        or len(train.values) < FEWEST_ROWS
    ):
        return
    yield Finding(
        "class-labels",
        "warning",
        f"labels are {len(values)} whole numbers from {values[0]:g} to {values[-1]:g}, and num_labels is 1: "
        "transformers takes the squared error, in which class 2 lies between 1 and 3, and gives no probabilities",
        head.where,
        f'set num_labels={max(2, int(values[-1]) + 1)} for classes; or config.problem_type="regression", if numbers are '
        "meant",
        measured=len(values),
        expected="num_labels of at least 2",
    )


def _names(context: CheckContext, head: _Head) -> Iterator[Finding]:
    """Names of classes in the model against those of the data set."""
    names = _names_in_data(context)
    if not names or names == head.names:
        return
    default = all(name == f"LABEL_{i}" for i, name in enumerate(head.names))
    swapped = [i for i, (a, b) in enumerate(zip(head.names, names, strict=False)) if a.lower() != b.lower()]
    if default and len(names) <= head.num_labels:
        yield Finding(
            "class-labels",
            "note",
            f"the data set names its {len(names)} classes ({', '.join(names[:3])} ...), but the model's id2label is "
            f"LABEL_0 to LABEL_{head.num_labels - 1}: who loads it later must know the order",
            head.where,
            "load the model with id2label and label2id made of the data set's names",
            measured=len(names),
            expected="the names of the data set",
        )
    elif swapped and not default:
        first = swapped[0]
        yield Finding(
            "class-labels",
            "warning",
            f"{len(swapped)} classes have another name in the model than in the data: label {first} is "
            f"{names[first]!r} in the data set and {head.names[first]!r} in id2label",
            head.where,
            "map the labels of the data set by name to the model's label2id, or give the model the data set's names",
            measured=len(swapped),
            expected=0,
        )


def _names_in_data(context: CheckContext) -> list[str]:
    """The names of a ``datasets.ClassLabel`` column; nothing where there is none."""
    if not isinstance(context, TrainerContext):
        return []
    features: Any = getattr(context.trainer.train_dataset, "features", None) or {}
    for name in ("label", "labels", "label_ids"):
        names = getattr(features.get(name), "names", None)
        if names:
            return [str(n) for n in names]
    return []
