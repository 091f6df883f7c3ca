from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from luthier.check.columns import Offenders, batches, flat, noted
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.check.model_rows import Side
from luthier.encoding.batches import collate
from luthier.models.forward import base_model
from luthier.records import Finding, Row, Severity
from luthier.registry import check

NUM_ROWS = 16
_SIDES: tuple[Side, ...] = ("right", "left")
# Every tenth label is one of padding: the loss says more about padding than about answers, and falls by itself.
ERROR_SHARE = 0.1


@check("padding")
def padding(context: CheckContext) -> Iterator[Finding]:
    """Padding is never trained, never looked at, and moves nothing: every real token keeps its weight and its position.

    What it does: in a recipe's run, puts 16 spread training rows through the collator that training uses, padded on the
    right and on the left, with EOS as the padding id, which is how most models are set. Mask, ids, weights and positions
    must be those of the rows, and the last trained token must keep its weight although it may be EOS itself. Of other
    trainings it looks at all rows as their collator gives them: padding with labels (an error from 10% of all labels),
    padding before a row that the mask does not hide (an error), padding behind it (a note, for a causal model never
    looks ahead; a warning for one that does), positions that do not count on (an error), and rows that do not begin at
    position 0 in a model that learned each position by itself (a warning).

    Why is this bad: padding that is masked by token id takes the loss from every real EOS, and the model never stops;
    padding with a weight trains the model to write padding; positions that count padding shift the whole row.

    Example: ``labels = input_ids.clone()`` behind a tokenizer that pads to the longest length.

    Fix: ``labels[attention_mask == 0] = -100``, and hand the mask on to the model.

    Catalogue: 5, 51
    """
    if isinstance(context, RunContext):
        yield from _ours(context)
    else:
        yield from _theirs(context)


def _ours(context: CheckContext) -> Iterator[Finding]:
    rows = list(context.spread("train", NUM_ROWS))
    if not rows:
        raise Skip("there are no training rows")
    context.looked_at(f"{len(rows)} training rows on either side")
    for side in _SIDES:
        faults = _faults(rows, context.tokenizer.eos_id or 0, side)
        if faults:
            yield Finding(
                "padding",
                "error",
                f"padded on the {side}, {len(faults)} of {len(rows)} rows are not what they were, the first: {faults[0]}",
                "luthier/encoding/batches.py",
                "report this: the collator is wrong, not your data",
                measured=len(faults),
                expected=0,
            )


def _faults(rows: Sequence[Row], pad_id: int, side: Side) -> list[str]:
    batch = collate(rows, pad_id, side)
    mask_BT = batch.attention_mask_BT.numpy()
    faults = []
    for row, mask, ids, weights, positions in zip(
        rows,
        mask_BT,
        batch.input_ids_BT.numpy(),
        batch.loss_weights_BT.numpy(),
        batch.position_ids_BT.numpy(),
        strict=True,
    ):
        length, real = len(row.input_ids), mask != 0
        if mask.sum() != length:
            faults.append(f"row {row.id} has {length} tokens, and its mask {mask.sum()}")
        elif not np.array_equal(ids[real], row.input_ids):
            faults.append(f"row {row.id} has other ids")
        elif weights[~real].any():
            faults.append(f"row {row.id} has a loss weight on padding")
        elif not np.array_equal(weights[real], np.asarray(row.loss_weights, np.float32)):
            lost = int((weights[real] != np.asarray(row.loss_weights, np.float32)).sum())
            faults.append(f"row {row.id} has other loss weights on {lost} tokens")
        elif not np.array_equal(positions[real], np.arange(length)):
            faults.append(f"row {row.id} has positions that do not count from 0")
    return faults


_MARKS = ("trained_padding", "attended_before", "attended_padding", "bad_positions", "first_position")


def _theirs(context: CheckContext) -> Iterator[Finding]:
    """What was noted when padding was taken off the rows."""
    rows = {mark: Offenders(context) for mark in _MARKS}
    tokens = dict.fromkeys(_MARKS, 0)
    num_trained = 0
    for split, batch in batches(context, "id", "loss_weights", "meta"):
        num_trained += int((flat(batch.column("loss_weights"))[1] != 0).sum())
        for mark in _MARKS:
            held = noted(batch, mark)
            rows[mark].add(split, batch.column("id"), held)
            texts = batch.column("meta").filter(held).to_pylist()
            tokens[mark] += sum(json.loads(text).get(mark, 0) for text in texts)
    if rows["trained_padding"].count and context.objective == "tokens":
        yield _trained(rows["trained_padding"], tokens["trained_padding"], num_trained)
    if rows["attended_before"].count:
        yield _attended(
            rows["attended_before"],
            tokens["attended_before"],
            "before",
            "error",
            ", as if it were their beginning",
        )
    if rows["attended_padding"].count:
        ahead = context.objective != "tokens" and not _is_causal(context)
        yield _attended(
            rows["attended_padding"],
            tokens["attended_padding"],
            "behind",
            "warning" if ahead else "note",
            ", and this model looks ahead"
            if ahead
            else "; it does no harm as long as the model only looks back, and costs time",
        )
    if rows["bad_positions"].count:
        yield rows["bad_positions"].finding(
            "padding",
            "error",
            f"{rows['bad_positions']} have position_ids that neither count on nor begin anew at "
            f"{tokens['bad_positions']:,} tokens, so that the model cannot tell their order",
            "leave out position_ids, or count from 0 in each row: (attention_mask.cumsum(-1) - 1).clamp(min=0)",
        )
    shifted = rows["first_position"]
    if shifted.count and context.objective == "tokens" and _learned_positions(context):
        yield shifted.finding(
            "padding",
            "warning",
            f"{shifted} do not begin at position 0 but, on average, at {tokens['first_position'] / shifted.count:.0f}: "
            "padding before them counts, and this model has learned each position by itself",
            'pad training rows on the right (padding_side="right"), or give position_ids: (attention_mask.cumsum(-1) - '
            "1).clamp(min=0)",
        )


def _trained(found: Offenders, count: int, num_trained: int) -> Finding:
    total = num_trained + count
    return Finding(
        "padding",
        "error" if count >= ERROR_SHARE * total else "warning",
        f"{count:,} of {total:,} labels ({count / total:.1%}) are those of padding, in {found}: the model learns to write "
        "padding, and the mean loss is that of padding",
        found.where,
        "labels[attention_mask == 0] = -100, in the collator or where rows are tokenised",
        measured=count,
        expected=0,
    )


def _attended(found: Offenders, count: int, side: str, severity: Severity, why: str) -> Finding:
    return Finding(
        "padding",
        severity,
        f"{count:,} tokens of padding {side} {found} are not hidden by an attention mask{why}",
        found.where,
        "give the attention_mask that the tokenizer made on to the model (as a column, or from the collator)",
        measured=count,
        expected=0,
    )


def _is_causal(context: CheckContext) -> bool:
    """Whether no attention of the model looks ahead; taken to be so where the model is left out."""
    try:
        modules = context.model.modules()
    except Skip:
        return True
    return not any(getattr(module, "is_causal", None) is False for module in modules)


def _learned_positions(context: CheckContext) -> bool:
    """Whether the model has an embedding of positions that it looks up by place, and not by what the mask shows."""
    try:
        model = base_model(context.model)
    except Skip:
        return False
    config = model.config
    sizes = {getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")}
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.num_embeddings in sizes]
    # OPT's and BLOOM's kin count by the mask themselves.
    return any(
        table is not model.get_input_embeddings()
        and "attention_mask" not in inspect.signature(table.forward).parameters
        for table in tables
    )
