"""The page of the study, from its figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"

_STORY = """# A loss of 69.5

A classifier of 280 classes began at a loss of **69.5** with gradient norms of about 200. Guessing costs ln 280 = 5.63. The run went on, the curve fell, and nobody could say what was wrong. This
page takes such a run apart, with every suspect that can act on a first loss measured.

## What it was

transformers' `Trainer` divides a step's loss by the number of accumulated micro-batches, unless the model says that it does so itself; and it takes a model's word for that from the mere presence of
`**kwargs` in its `forward`. The classification heads have `**kwargs` and hand the count of items on to nothing. So nobody divides: what is logged is the **sum** over micro-batches, and the gradient is
as many times too large ([transformers#47688](https://github.com/huggingface/transformers/issues/47688)). Several processes multiply it once more.

The same weights and the same rows, {batch} a micro-batch, first step:

{accumulation}

With `model.accepts_loss_kwargs = False` the Trainer's loss at 12 is {told:.2f}, its gradient norm {told_norm:.1f}. Two processes with two micro-batches each log {two:.2f}, {two_ratio:.1f} times ln {classes}.

In one process the eval loss is right whatever is accumulated, for nothing is accumulated there: **a training loss that starts k times over the eval loss is this defect.** The processes multiply the eval loss
as well: with two it is {two_eval:.2f}, {two_eval_ratio:.1f} times that of one. So training over eval shows the accumulation and hides the processes; eval over the loss of one forward pass outside of the
trainer shows the processes.

Luthier divides once, by the weight of the whole step over all micro-batches and processes, so that its loss cannot depend on them.

## What it was not

{suspects}

No way to pad moves the first loss, and neither does the number format. The learning rate cannot: the first loss comes before the first update, which is all that its row shows; later losses were not measured
here. **A head that reads padding**, the first suspect of all, even learns: after {steps} steps on
8 classes that the first word gives away its loss is {reads:.4f}, that of the right head {right:.4f} (of rows alone, where there is no padding, {reads_alone:.4f} and {right_alone:.4f}; guessing is {few:.2f}), for
padding behind a text sees all of it. It is a defect all the same, since what is read of a row depends on what else is in its batch; but it is not this one.

**Large hidden states** do raise the first loss, as ln C + s²/2 says while the spread s of the logits is below about 3, and by less beyond. A last norm would have to be far more than thirty times too large
for 69.5.

## What 69.5 says

Divide what was logged by the loss that one forward pass gives. Accumulation times processes is k, and the loss of one pass is at least about ln C:

{reading}

So 69.5 with 12 micro-batches is a fresh head, and nothing else is wrong; with 4 there would be large hidden states as well. The recipe of a run decides between them, and one minute shows it:

1. One batch through the model, outside of any trainer. About 5.7? Then the trainer is at fault, in the eval loss too if there are several processes.
2. The same rows as one batch and as four: loss and gradient norm must be the same.
3. Is `model.config.pad_token_id` what the collator pads with? Is the token that is read the last real one?

`luthier.audit(trainer)` does all three: the checks [`accumulation`](../reference/checks/accumulation.md), [`step-loss`](../reference/checks/step-loss.md), [`pooled-position`](../reference/checks/pooled-position.md) and
[`class-head`](../reference/checks/class-head.md).

## What it did

AdamW divides a gradient by its own size, so that a factor of 12 changes no direction, and few noticed. But clipping to a norm of 1 was always active and told good steps from bad ones no longer; what weight
decay, early stopping and a comparison of curves between numbers of GPUs saw was wrong by k; and with an optimizer that does not divide, the learning rate is 12 times what was asked for.

{made}
"""


def page() -> str:
    """The page in Markdown."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    uniform = found["uniform_loss"]
    two = found["two_processes_two_micro_batches"]
    eval_alone = found["transformers"]["2"]["eval_loss"]
    learning = found["suspects"]["learning"]
    return _STORY.format(
        batch=4,
        accumulation=_accumulation(found),
        told=found["transformers_told_not_to"]["loss"],
        told_norm=found["transformers_told_not_to"]["gradient_norm"],
        two=two["loss"],
        two_ratio=two["loss"] / uniform,
        two_eval=two["eval_loss"],
        two_eval_ratio=two["eval_loss"] / eval_alone,
        classes=found["num_classes"],
        suspects=_suspects(found),
        steps=60,
        reads=learning["reads padding"]["in_batches"],
        right=learning["right"]["in_batches"],
        reads_alone=learning["reads padding"]["alone"],
        right_alone=learning["right"]["alone"],
        few=learning["uniform"],
        reading=_reading(uniform),
        made=f"Made by `python studies/loss-69/run.py` in {found['seconds']:.0f} s, with transformers "
        f"{found['versions']['transformers']} and torch {found['versions']['torch']} on a processor.",
    )


def _accumulation(found: dict[str, Any]) -> str:
    lines = [
        "| micro-batches k | Trainer: loss | loss / ln C | gradient norm | eval loss | Luthier: loss | loss / ln C | gradient norm |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    figures = found["figures"]
    for k, theirs in found["transformers"].items():
        ours = found["luthier"][k]
        lines.append(
            f"| {k} | {theirs['loss']:.2f} | **{figures[f'ratio_by_accumulation/transformers/{k}']:.2f}** | {theirs['gradient_norm']:.1f} | "
            f"{theirs['eval_loss']:.2f} | {ours['loss']:.2f} | **{figures[f'ratio_by_accumulation/luthier/{k}']:.2f}** | {ours['gradient_norm']:.1f} |"
        )
    return "\n".join(lines)


def _suspects(found: dict[str, Any]) -> str:
    uniform = found["uniform_loss"]
    lines = [
        "| suspect, alone | loss before training | / ln C | spread s of the logits | ln C + s²/2 |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in found["suspects"].items():
        if "spread" in row:
            law = f"{row['spread']:.2f} | {uniform + row['spread'] ** 2 / 2:.2f}"
            lines.append(f"| {name} | {row['loss']:.2f} | {row['loss'] / uniform:.2f} | {law} |")
        elif "reference" in row:
            lines.append(
                f"| {name} | {row['loss']:.2f} (without: {row['reference']:.2f}) | {row['loss'] / uniform:.2f} | | |"
            )
    return "\n".join(lines)


def _reading(uniform: float) -> str:
    lines = ["| k | 69.5 / k | spread of the logits that this takes |", "|---:|---:|---|"]
    for k in (1, 4, 8, 12, 16):
        loss = 69.5 / k
        over = 2 * (loss - uniform)
        said = "impossible: less than guessing"
        if over >= 0:  # the law says too much beyond 3
            said = f"{'about' if over < 9 else 'over'} {math.sqrt(over):.1f}"
        lines.append(f"| {k} | {loss:.2f} | {said} |")
    return "\n".join(lines)
