from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.check.columns import Offenders, batches, flat, noted
from luthier.check.context import CheckContext, Skip
from luthier.check.trainer import TrainerContext
from luthier.records import Finding, Severity
from luthier.registry import check

# A few odd labels are noise that some people add on purpose; from here on it is another task.
ERROR_SHARE = 0.1
# Rows whose labels are traced back to where they come from.
NUM_TRACED = 20
# How far labels may be off their tokens to be traced: padding on the other side of short rows.
FARTHEST = 256
# Labels of a row that must fit for a trace to count: so few may agree by chance.
FEWEST = 3


@check("labels")
def labels(context: CheckContext) -> Iterator[Finding]:
    """The label of a trained token is the token itself: transformers shifts labels by one, and nothing else moves them.

    What it does: compares labels and ids of all rows as the collator gives them. Where they differ it looks where the
    labels come from: the token after (shifted already), tokens at a fixed distance (ids and labels padded on different
    sides), another row of the same thousand, or tokens that were masked. An error from 10% of the trained tokens, else
    a warning; a warning too for shifted labels where the trainer has a loss of its own.

    Why is this bad: with labels that are shifted twice the model learns to leave out every second token; with those of
    another row it learns nothing. The loss falls all the same.

    Example: ``labels = input_ids[1:] + [-100]`` for a model of transformers.

    Fix: ``labels = input_ids`` (with -100 where nothing is to be learned).

    Catalogue: 14, 37
    """
    context.only_tokens()
    wrong = Offenders(context)
    num_trained = num_other = 0
    traces: list[_Trace] = []
    for split, batch in batches(context, "id", "input_ids", "loss_weights", "meta"):
        num_trained += int((flat(batch.column("loss_weights"))[1] != 0).sum())
        held = noted(batch, "other_labels")
        wrong.add(split, batch.column("id"), held)
        for place in np.flatnonzero(held).tolist():
            meta = json.loads(batch.column("meta")[place].as_py())
            num_other += meta["other_labels"]
            if len(traces) < NUM_TRACED:
                traces.append(_trace(context, batch, place, meta))
    if not wrong.count:
        return
    cause, votes = Counter(trace.cause for trace in traces).most_common(1)[0]
    first = next(trace for trace in traces if trace.cause == cause)
    sure = votes > 0.5 * len(traces)
    severity: Severity = "error" if num_other >= ERROR_SHARE * num_trained else "warning"
    # A loss of its own may well shift no labels.
    if sure and cause == "shifted" and isinstance(context, TrainerContext) and context.has_own_loss:
        severity = "warning"
    yield Finding(
        "labels",
        severity,
        f"{num_other:,} of {num_trained:,} trained tokens ({num_other / max(1, num_trained):.1%}) in {wrong} have another "
        f"label than the token itself: {first.said if sure else traces[0].example}",
        wrong.where,
        first.fix
        if sure
        else "find what changes the labels behind the data set: labels = input_ids, with -100 where masked",
        measured=num_other,
        expected=0,
    )


@dataclass(frozen=True, slots=True)
class _Trace:
    """Where the labels of one row come from."""

    cause: str
    said: str
    fix: str
    example: str


def _trace(context: CheckContext, batch: pa.RecordBatch, place: int, meta: dict[str, Any]) -> _Trace:
    offsets, flat_ids = flat(batch.column("input_ids"))
    ids = flat_ids[offsets[place] : offsets[place + 1]]
    places, found = (np.asarray(part, dtype=np.int64) for part in meta["label_sample"])
    example = f"token {places[0]} is {_name(context, int(ids[places[0]]))} and has the label {_name(context, int(found[0]))}"
    same = "labels = input_ids, with -100 where nothing is to be learned: transformers shifts them itself"
    distance = _distance(ids, places, found)
    if distance == 1:
        said = "each has that of the token behind it, so labels are shifted by one already and are shifted once more inside "
        return _Trace("shifted", said + f"the model ({example})", same, example)
    if distance is not None:
        said = f"each has that of the token {abs(distance)} places {'further on' if distance > 0 else 'before'} ({example}): "
        said += "ids and labels are padded or cut on different sides"
        return _Trace("apart", said, "pad and cut labels exactly as input_ids", example)
    mask_id = _mask_id(context)
    if mask_id is not None and (ids[places] == mask_id).mean() >= 0.5:
        said = f"the tokens are masked ({example}), as for masked language models, and this one writes from left to right"
        return _Trace("masked", said, "DataCollatorForLanguageModeling(mlm=False)", example)
    if len(np.unique(found)) >= FEWEST:
        other = _row_of(offsets, flat_ids, places, found)
        if other is not None:
            said = f"labels are those of other rows (row {batch.column('id')[place]} has those of row {batch.column('id')[other]})"
            return _Trace(
                "other row",
                said,
                "keep labels with their input_ids wherever rows are sorted or grouped",
                example,
            )
    return _Trace("unknown", example, "", example)


def _distance(ids: np.ndarray, places: np.ndarray, found: np.ndarray) -> int | None:
    """How far behind each place the token stands that is its label; None if it is not the same for (nearly) all."""
    if len(np.unique(found)) < min(FEWEST, len(found)):
        return None
    for distance in sorted(range(-FARTHEST, FARTHEST + 1), key=lambda d: (abs(d - 1), d)):
        target = places + distance
        inside = (target >= 0) & (target < len(ids))
        if inside.sum() < min(FEWEST, len(places)) or not distance:
            continue
        if (ids[target[inside]] == found[inside]).mean() >= 0.9 and inside.mean() >= 0.5:
            return distance
    return None


def _row_of(offsets: np.ndarray, ids: np.ndarray, places: np.ndarray, found: np.ndarray) -> int | None:
    """The row of a batch that has these ids at these places."""
    begins = offsets[:-1]
    fits = np.diff(offsets) > places[-1]
    for at, expected in zip(places.tolist(), found.tolist(), strict=True):
        fits &= ids[np.minimum(begins + at, len(ids) - 1)] == expected
    rows: Sequence[int] = np.flatnonzero(fits).tolist()
    return rows[0] if rows else None


def _name(context: CheckContext, token: int) -> str:
    try:
        return repr(context.tokenizer.decode([token]))
    except Skip:
        return str(token)


def _mask_id(context: CheckContext) -> int | None:
    try:
        mask_id: int | None = context.tokenizer.hf.mask_token_id
    except Skip:
        return None
    return mask_id
