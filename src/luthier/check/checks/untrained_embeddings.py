from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from luthier.check.columns import Offenders, batches, count, flat
from luthier.check.context import CheckContext, Skip
from luthier.models.forward import base_model
from luthier.records import Finding, Severity
from luthier.registry import check

if TYPE_CHECKING:
    from torch import Tensor

# Shares of the usual norm, and of the usual distance from the mean. transformers draws new rows around the mean with a
# thousandth of a percent of the spread; what training has moved at all is far beyond.
ZERO, MEAN = 1e-4, 0.01
# In fewer of the rows than this the others carry the training.
ERROR_SHARE = 0.5
CHUNK = 8192
NAMES_SHOWN = 5


@check("untrained-embeddings")
def untrained_embeddings(context: CheckContext) -> Iterator[Finding]:
    """Every token of the data has an embedding that pretraining has made, or that this training makes.

    What it does: looks in the input embedding, and in the output embedding if it is another, for rows that are zero,
    equal to other rows to the bit, or equal to the mean of all; and counts the rows of all splits that hold such
    tokens, as input before another token or as a target. New tokens of a recipe are left out: they are trained. A
    warning where these embeddings stay as they are, an error if half of the rows hold one; a note where they are trained.

    Why is this bad: to the model all such tokens are the same or nothing at all. With LoRA they stay so, and a stop token
    or the header of a turn means nothing.

    Example: Llama 3's base model with the chat template of its Instruct version, whose header tokens are reserved there.

    Fix: ``model.new_tokens``-like training of these rows: ``trainable_token_indices`` or ``modules_to_save`` in peft;
    or tokens that the model knows.

    Catalogue: 58, 59
    """
    model: Any = base_model(context.model)
    new = set(context.new_tokens)
    layers = {"input": model.get_input_embeddings()}
    head = model.get_output_embeddings() if context.objective == "tokens" else None
    if head is not None and head.weight.data_ptr() != layers["input"].weight.data_ptr():
        layers["output"] = head
    for name, layer in layers.items():
        weight = layer.weight.detach()
        if weight.ndim != 2 or not weight.is_floating_point() or len(weight) < 100:
            continue  # quantised, or no embedding of a vocabulary
        kinds = {i: kind for i, kind in _never_trained(weight).items() if i not in new}
        if kinds:
            yield from _in_data(context, name, layer, kinds)


def _never_trained(weight: Tensor) -> dict[int, str]:
    """The rows of an embedding that no training has made, and how that shows."""
    size = len(weight)
    chunks = [weight[i : i + CHUNK] for i in range(0, size, CHUNK)]
    mean = torch.stack([chunk.sum(0, dtype=torch.float64) for chunk in chunks]).sum(0) / size
    norms, distances, hashes = [], [], []
    for chunk in chunks:
        values = chunk.double()
        norms.append(values.norm(dim=1).cpu().numpy())
        distances.append((values - mean).norm(dim=1).cpu().numpy())
        raw = chunk.contiguous().view(torch.uint8).cpu().numpy()
        hashes.append(np.fromiter((hash(row.tobytes()) for row in raw), np.int64, len(raw)))
    norm, distance = np.concatenate(norms), np.concatenate(distances)
    _, inverse, counts = np.unique(np.concatenate(hashes), return_inverse=True, return_counts=True)
    zero = norm <= ZERO * np.median(norm)
    found = {int(i): "the mean of all" for i in np.flatnonzero(distance <= MEAN * np.median(distance))}
    same = counts[inverse]
    found |= {int(i): f"equal to {same[i] - 1:,} others" for i in np.flatnonzero(same > 1)}
    return found | {int(i): "zero" for i in np.flatnonzero(zero)}


def _in_data(context: CheckContext, name: str, layer: Any, kinds: dict[int, str]) -> Iterator[Finding]:
    ids_of = np.array(sorted(kinds))
    holding, total = Offenders(context), np.zeros(len(ids_of), dtype=np.int64)
    for split, batch in batches(context, "id", "input_ids", "loss_weights"):
        offsets, ids = flat(batch.column("input_ids"))
        _, weights = flat(batch.column("loss_weights"))
        used = np.isin(ids, ids_of)
        if name == "output":
            used &= weights != 0
        elif context.objective == "tokens":
            used[offsets[1:][np.diff(offsets) > 0] - 1] = (
                False  # nothing is predicted from the last token of a row
            )
        holding.add(split, batch.column("id"), count(used, offsets[:-1], offsets[1:]) > 0)
        total += np.bincount(np.searchsorted(ids_of, ids[used]), minlength=len(ids_of))
    present = ids_of[total > 0].tolist()
    if not present:
        return
    trained, blocked = _trained(layer), getattr(layer, "padding_idx", None)
    frozen = [i for i in present if trained is not None and i not in trained]
    severity: Severity = "note"
    if frozen and frozen != [
        blocked
    ]:  # a row for padding is zero by construction, and often the end's as well
        severity = "error" if holding.share >= ERROR_SHARE else "warning"
    if present == [blocked]:
        stays = "and never will be: it is the padding token too, to which torch gives no gradient"
    else:
        stays = "and nothing trains them" if frozen else "and this training begins from there"
    most = sorted(present, key=lambda i: -int(total[np.searchsorted(ids_of, i)]))[:NAMES_SHOWN]
    shown = ", ".join(f"{_text(context, i)} ({i}: {kinds[i]})" for i in most)
    yield Finding(
        "untrained-embeddings",
        severity,
        f"{len(present):,} token{'s' * (len(present) > 1)} in {holding} have an {name} embedding that was never trained, "
        f"{stays}: {shown}",
        holding.where,
        "train these rows (LoraConfig(trainable_token_indices=...) or modules_to_save), or take tokens that the model knows",
        measured=len(present),
        expected=0,
    )


def _trained(layer: Any) -> set[int] | None:
    """Ids whose rows are trained; None if all are."""
    if not any(parameter.requires_grad for parameter in layer.parameters()):
        return set()
    tokens = getattr(getattr(layer, "token_adapter", None), "token_indices", None)
    return None if tokens is None else {int(i) for indices in tokens.values() for i in indices}


def _text(context: CheckContext, token: int) -> str:
    try:
        return repr(context.tokenizer.decode([token]))
    except Skip:
        return "token"
