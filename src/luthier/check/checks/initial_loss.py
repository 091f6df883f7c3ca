from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from luthier.check.context import CheckContext
from luthier.check.model_rows import batch_of, embedding_rows, evaluating, short_rows
from luthier.models.forward import token_scores
from luthier.records import Finding
from luthier.registry import check

NUM_ROWS = 8
MAX_TOKENS = 256
# A model that has learned anything is far below a uniform guess: SmolLM2-135M on Python has 0.20 of ln V.
MOST_OF_UNIFORM = 0.9
# Both are the same sums over the same numbers; bf16 logits differ by 0.4% each and far less on average.
MOST_DIFFERENCE = 0.01


@check("initial-loss")
def initial_loss(context: CheckContext) -> Iterator[Finding]:
    """Before training the model already knows something, and our loss is transformers' own.

    What it does: the mean loss of the trained tokens of 8 training rows (cut to 256 tokens each, new tokens left out) is
    finite and well under ln V, that of guessing among all V tokens; and on one row the scores that training uses agree
    with ``model(input_ids, labels=labels).loss`` to 1%.

    Why is this bad: a loss near ln V means random weights: names in the file did not match, or the file is none of this
    model's. A loss that differs from the model's own is scaled, shifted by a token, or made from other logits.

    Example: a checkpoint whose parameter names have a prefix that the model does not, loaded with a mere warning.

    Fix: see what loading the model says about missing keys. To train from random weights on purpose:
    ``check.waive=[initial-loss]``.

    Catalogue: 30, 31, 32, 36, 59, 70, 71
    """
    context.only_tokens()
    rows = short_rows(context, NUM_ROWS, MAX_TOKENS)
    model = context.model
    uniform = math.log(embedding_rows(model))
    new = torch.tensor(context.new_tokens)
    with evaluating(model):
        nll = []
        for row in rows:
            batch = batch_of(context, [row])
            labels_N = batch.input_ids_BT[:, 1:][batch.loss_weights_BT[:, 1:] != 0].cpu()
            scores = token_scores(model, batch, plain=context.plain_forward)
            nll.append(scores.nll_N.cpu()[~torch.isin(labels_N, new)])
        loss = float(torch.cat(nll).mean()) if sum(map(len, nll)) else 0.0
        first = batch_of(context, rows[:1])
        ours = float(token_scores(model, first, plain=context.plain_forward).nll_N.mean())
        labels_BT = first.input_ids_BT.masked_fill(first.loss_weights_BT == 0, -100)
        theirs = model(input_ids=first.input_ids_BT, labels=labels_BT).loss
    if not loss <= MOST_OF_UNIFORM * uniform:
        yield Finding(
            "initial-loss",
            "error",
            f"the loss before training is {loss:.3f}, {loss / uniform:.2f} of ln V = {uniform:.3f}: are these random weights?",
            f"model {context.model_name}",
            "see what loading it says about missing keys; to start from random weights: check.waive=[initial-loss]",
            measured=loss if math.isfinite(loss) else str(loss),
            expected=f"at most {MOST_OF_UNIFORM * uniform:.3f}",
        )
    if theirs is not None and not abs(ours - float(theirs)) <= MOST_DIFFERENCE * abs(float(theirs)):
        yield Finding(
            "initial-loss",
            "error",
            f"the loss of row {rows[0].id} is {ours:.4f} as trained, and {float(theirs):.4f} by transformers",
            f"model {context.model_name}",
            "report this: loss scaling or the output head of this model is not what is assumed",
            measured=ours if math.isfinite(ours) else str(ours),
            expected=float(theirs) if math.isfinite(float(theirs)) else str(float(theirs)),
        )
