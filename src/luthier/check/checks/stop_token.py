from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from luthier.check.columns import marked
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.check.row_ends import RowEnds, cut_lengths, is_stream, row_ends
from luthier.check.trainer import TrainerContext
from luthier.records import Finding, Severity, Split
from luthier.registry import check

# From here on a model learns not to end at least as often as to end.
MOST_ENDLESS = 0.5


@check("stop-token")
def stop_token(context: CheckContext) -> Iterator[Finding]:
    """Every row's trained part ends with what ends a generation.

    What it does: in all rows of all splits, the last trained token is one of the tokenizer's stop ids; or the task's
    stop pattern matches at the end of the target, up to its last visible character or beyond. The pattern is tried on
    100,000 rows at most. Where it is not, what stands there tells why: a stop token without a label (masked by token
    id because padding is the same token, or left out by the mask), another control token, or nothing of the kind.
    Rows of a task that cuts windows out of longer texts may end anywhere and are not looked at. Rows of other people's
    frameworks that are cut off at one length are left out (see truncation); an error if half of the rows have no end,
    else a warning; a warning too if whole texts are trained, which need none.

    Why is this bad: a model that never sees an end never ends. It writes on until the token limit, and every metric of
    generated text is about something else.

    Example: ``response_template`` without the tokenizer's EOS behind it; padding that is EOS and masked by token id.

    Fix: end the target with the stop token (a control span with weight), or give the task a ``stop_pattern``.

    Catalogue: 5, 6, 13, 16
    """
    context.only_tokens()
    ours = isinstance(context, RunContext)
    if isinstance(context, RunContext) and context.task.open_ended:
        raise Skip("rows of this task may end anywhere")
    ends = row_ends(context)
    if not ours and is_stream(ends):
        yield from _stream(context, ends)
        return
    cut = {} if ours else cut_lengths(ends)
    open_ = {
        split: e.trained & ~e.stopped & ~e.mislabelled & (e.lengths != cut.get(split, -1))
        for split, e in ends.items()
    }
    endless = marked(context, open_)
    if not endless.count:
        return
    names = [context.tokenizer.decode([i]) for i in sorted(context.tokenizer.stop_ids)]
    what = f"a stop token ({', '.join(names) or 'this tokenizer has none'})"
    pattern = context.task.stop_pattern if isinstance(context, RunContext) else None
    if pattern is not None:
        what += f" or what the stop pattern {pattern} matches"
    causes = _causes(context, ends, open_)
    severity: Severity = "error"
    if not ours and (endless.share < MOST_ENDLESS or _is_plain_text(ends, open_)):
        severity = "warning"
    yield endless.finding(
        "stop-token",
        severity,
        f"{endless} do not end with {what}: " + "; ".join(f"{c.count:,} {c.what}" for c in causes),
        context.fix(
            "end the target with the stop token: a control span with a weight, behind the text", causes[0].fix
        ),
    )


@dataclass(frozen=True, slots=True)
class _Cause:
    count: int
    what: str
    fix: str


def _causes(
    context: CheckContext, ends: Mapping[Split, RowEnds], open_: Mapping[Split, np.ndarray]
) -> list[_Cause]:
    """Why rows have no end, the commonest first."""
    tokenizer = context.tokenizer
    stops = sorted(tokenizer.stop_ids)
    last, following, has_stop = (
        np.concatenate([getattr(e, name)[open_[split]] for split, e in ends.items()])
        for name in ("last_id", "next_id", "has_stop")
    )
    causes = []
    unlabelled = np.isin(following, stops)
    for stop in np.unique(following[unlabelled]).tolist():
        count, name = int((following == stop).sum()), repr(tokenizer.decode([stop]))
        by_id = stop == tokenizer.hf.pad_token_id and not any(e.trained_stop.any() for e in ends.values())
        if by_id:
            said = f"have {name} behind the last trained token without a label: it is the padding token too, and "
            said += f"{_collator(context)} takes the label from every token of that id, so that none is ever trained"
            fix = "pad with another token (tokenizer.pad_token = ...), or with a collator that masks by length and not by id"
        else:
            said = f"have {name} behind the last trained token without a label: the mask leaves out the end of the turn"
            fix = "let the mask reach to the stop token, that one included ({% generation %} in the chat template around it)"
        causes.append(_Cause(count, said, fix))
    special = ~unlabelled & np.isin(last, sorted(tokenizer.special_ids))
    for token in np.unique(last[special]).tolist():
        name = repr(tokenizer.decode([token]))
        said = f"end with {name}, which nothing takes for an end"
        fix = f"add {token} ({name}) to eos_token_id in generation_config.json, or make it the tokenizer's eos_token"
        causes.append(_Cause(int((special & (last == token)).sum()), said, fix))
    rest = ~unlabelled & ~special
    end = repr(tokenizer.hf.eos_token)
    fix = f"put the stop token ({end}) behind each answer before it is encoded, or its id behind the answer's ids"
    for marks, said in (
        (rest & ~has_stop, "have no stop token at all in their ids"),
        (rest & has_stop, "have one elsewhere, and are trained to go on with something else"),
    ):
        if marks.any():
            causes.append(_Cause(int(marks.sum()), said, fix))
    return sorted(causes, key=lambda cause: -cause.count)


def _collator(context: CheckContext) -> str:
    """What put the batches together, as far as it is known."""
    if isinstance(context, TrainerContext):
        return type(context.trainer.data_collator).__name__
    return "a collator such as DataCollatorForLanguageModeling"


def _is_plain_text(ends: Mapping[Split, RowEnds], open_: Mapping[Split, np.ndarray]) -> bool:
    """Whether the rows are texts that are trained as a whole and never had an end: not surely meant to have one."""
    whole, has_stop = (
        np.concatenate([getattr(e, name)[open_[split]] for split, e in ends.items()])
        for name in ("whole", "has_stop")
    )
    return bool((whole & ~has_stop).mean() > 0.5)


def _stream(context: CheckContext, ends: Mapping[Split, RowEnds]) -> Iterator[Finding]:
    """Blocks of a stream: the texts in it are to be told apart by stop tokens that are trained."""
    held = sum(int(e.has_stop.sum()) for e in ends.values())
    trained = sum(int(e.trained_stop.sum()) for e in ends.values())
    total = sum(len(e.lengths) for e in ends.values())
    names = ", ".join(context.tokenizer.decode([i]) for i in sorted(context.tokenizer.stop_ids))
    where = "; ".join(context.place(split) for split in ends)
    if held and not trained:
        yield Finding(
            "stop-token",
            "error",
            f"the rows are blocks of one stream, and in none of the {held:,} that hold a stop token ({names}) it has a "
            f"label: {_collator(context)} takes the label from every token of the padding id",
            where,
            "pad with another token (tokenizer.pad_token = ...), or with a collator that masks by length and not by id",
            measured=held,
            expected=0,
        )
    elif not held:
        yield Finding(
            "stop-token",
            "note",
            f"the rows are blocks of one stream, and none of {total:,} holds a stop token ({names}) between its texts",
            where,
            "put the stop token behind each text before they are joined, if the model shall end by itself",
            measured=0,
        )
