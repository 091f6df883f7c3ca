"""Spans -> ids, weights and the ledger's facts. Training rows and inference prompts both come from here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise, takewhile

import numpy as np

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Dropped, Example, Row, Span


@dataclass(slots=True)
class _Tokens:
    """Token ids with the index of the span that each came from (-1: the tokenizer's own prefix)."""

    ids: np.ndarray
    owners: np.ndarray
    lossy: bool


def encode(example: Example, tokenizer: TextTokenizer, max_length: int) -> Row | Dropped:
    """The encoded row of an example, trimmed to ``max_length`` tokens, or why there is none.

    Adjacent spans that are all context, or all trained, are encoded as one text (but for those that are ``apart``), so
    that tokens break where they would in plain text; ids never reach over the border between context and target, so the prompt that inference
    feeds is what training had before the first target token.

    Args:
        example: Its trained spans have trim ``never``, or ``drop`` when another one stays.
        tokenizer: The model's.
        max_length: Tokens at most, prefix (BOS) included.

    Returns:
        A row with at least one trained token, or ``Dropped``: ``no-target``, ``target-too-long`` (it would not fit
        without any context), ``too-long`` (context that may not be cut leaves no room), ``no-context`` (a row that
        begins with a trained token, which nothing predicts). Of a labelled example the last token has the weight, and
        ``no-text`` is one without a token.
    """
    for span in example.spans:
        if span.weight and span.trim in ("left", "right"):
            raise ValueError(
                f"span {span.name!r} of {example.id} is trained and may not be trimmed {span.trim}"
            )
    tokens = _tokenize(example.spans, tokenizer)
    weights = np.array([span.weight for span in example.spans] + [0.0], dtype=np.float32)[tokens.owners]
    if example.label is None and not weights.any():
        return Dropped(example.id, "no-target", "no trained token")
    keep, trimmed = _trim(example.spans, tokens.owners, max_length)
    if (over := int(keep.sum()) - max_length) > 0:
        needed = int((weights[keep] != 0).sum())
        reason = "target-too-long" if needed > max_length else "too-long"
        return Dropped(
            example.id, reason, f"{over} tokens over max_length {max_length} when all that may go is gone"
        )
    ids, owners, weights = tokens.ids[keep], tokens.owners[keep], weights[keep]
    if example.label is not None:
        if not len(ids) or not (owners >= 0).any():
            return Dropped(example.id, "no-text", "there is no text to label")
        weights[-1] = example.weight
    elif not weights.any():
        return Dropped(example.id, "target-too-long", f"no trained span fits into max_length {max_length}")
    elif weights[0]:
        return Dropped(
            example.id, "no-context", "nothing stands before the first trained token to predict it from"
        )

    present = sorted(set(owners.tolist()) - {-1})
    names = [example.spans[i].name for i in present]
    places = {owner: place for place, owner in enumerate(present)}
    if -1 in owners:
        names.append("start")
        places[-1] = len(names) - 1
    # A span whose only token begins in the one before it has no token of its own, and is there all the same.
    trained = [s for i, s in enumerate(example.spans) if s.weight and (i in places or s.trim == "never")]
    target = "".join(span.text for span in trained if not span.control)
    return Row(
        id=example.id,
        group=example.group,
        input_ids=ids,
        loss_weights=weights,
        span_ids=np.array([places[owner] for owner in owners.tolist()], dtype=np.int16),
        span_names=names,
        num_prompt_tokens=int(np.flatnonzero(weights)[0]) + (example.label is not None),
        target=target if example.label is None else example.label,
        target_bytes=sum(len(s.text.encode("utf-8", "surrogatepass")) for s in trained if not s.control),
        lossy=tokens.lossy,
        trimmed=trimmed,
        meta=example.meta,
    )


def encode_prompt(example: Example, tokenizer: TextTokenizer, max_length: int) -> list[int]:
    """The ids to feed for what stands before an example's first trained span, or for all of a labelled one, trimmed like a row's.

    Raises:
        ValueError: The context that may not be cut is longer than ``max_length``, or there is none at all.
    """
    if example.label is not None:
        labelled = encode(example, tokenizer, max_length)
        if isinstance(labelled, Dropped):
            raise ValueError(f"the text of {labelled.id} does not fit: {labelled.detail}")
        return [int(i) for i in labelled.input_ids]
    # A one-token target keeps this on the very path of training rows, and is cut off again.
    ending = Span("x", "target", weight=1.0)
    context = list(takewhile(lambda span: not span.weight, example.spans))
    row = encode(
        replace(example, spans=[*context, ending]), tokenizer, max_length + len(tokenizer.encode("x"))
    )
    if isinstance(row, Dropped):
        long = f"over {max_length} tokens are left when all that may go is gone"
        raise ValueError(
            f"the prompt of {row.id} does not fit: {row.detail if row.reason == 'no-context' else long}"
        )
    return [int(i) for i in row.input_ids[: row.num_prompt_tokens]]


def _tokenize(spans: Sequence[Span], tokenizer: TextTokenizer) -> _Tokens:
    ids: list[np.ndarray] = [np.empty(0, np.int32)]
    owners: list[np.ndarray] = [np.empty(0, np.int64)]
    lossy = False
    indexed = [(i, span) for i, span in enumerate(spans) if span.text]
    for run in _runs(indexed):
        ends = np.cumsum([len(span.text) for _, span in run])
        of_run = np.array([i for i, _ in run])
        offset = 0
        for text, control in _pieces([span for _, span in run], tokenizer):
            first = not any(map(len, ids))
            piece_ids, starts = tokenizer.encode_with_starts(text, first=first, control=control)
            lossy |= tokenizer.is_lossy(piece_ids, text, first=first)
            ids.append(piece_ids)
            places = np.searchsorted(ends, starts + offset, side="right")
            owners.append(of_run[places.clip(max=len(run) - 1)])
            offset += len(text)
    prefix = list(tokenizer.prefix_ids)
    # Chat templates write BOS themselves.
    if prefix and np.concatenate(ids)[: len(prefix)].tolist() != prefix:
        ids, owners = [np.array(prefix, np.int32), *ids], [np.full(len(prefix), -1), *owners]
    return _Tokens(np.concatenate(ids), np.concatenate(owners), lossy)


def _runs(indexed: Sequence[tuple[int, Span]]) -> Iterator[list[tuple[int, Span]]]:
    """Neighbours that are encoded as one text."""
    run: list[tuple[int, Span]] = []
    for item in indexed:
        last, span = run[-1][1] if run else None, item[1]
        if last and (last.apart or span.apart or bool(last.weight) != bool(span.weight)):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _pieces(run: Sequence[Span], tokenizer: TextTokenizer) -> list[tuple[str, bool]]:
    """The text of a run, as a rule in one piece, and whether special-token strings in it are control tokens.

    Where data spells a control token, alone or with what stands beside it, the text is cut at the real ones: that is
    what a tokenizer does by itself, so the rest is read as it would be in any other row.
    """
    text = "".join(span.text for span in run)
    if not any(span.control for span in run):
        return [(text, False)]
    is_data = np.repeat([not span.control for span in run], [len(span.text) for span in run])
    if not any(is_data[start:end].any() for start, end in tokenizer.special_places(text)):
        return [(text, True)]
    cuts, offset = [0], 0
    for control, stretch in groupby(run, key=lambda span: span.control):
        part = "".join(span.text for span in stretch)
        cuts += [offset + cut for place in tokenizer.special_places(part) for cut in place] if control else []
        offset += len(part)
    # Even pieces lie between control tokens, odd ones are control tokens.
    pieces = [(text[start:end], i % 2 == 1) for i, (start, end) in enumerate(pairwise([*cuts, len(text)]))]
    return [(piece, control) for piece, control in pieces if piece]


def _trim(spans: Sequence[Span], owners: np.ndarray, max_length: int) -> tuple[np.ndarray, dict[str, int]]:
    """Which tokens stay, and how many went by span name: lowest priority first, ``drop`` spans of one priority together."""
    keep = np.ones(len(owners), dtype=bool)
    trimmed: dict[str, int] = {}
    for priority in sorted({span.priority for span in spans}):
        level = [i for i, span in enumerate(spans) if span.priority == priority and span.trim != "never"]
        whole = [i for i in level if spans[i].trim == "drop"]
        if whole and keep.sum() > max_length:
            _remove(keep, np.flatnonzero(np.isin(owners, whole)), owners, spans, trimmed)
        for i in level:
            over = int(keep.sum()) - max_length
            places = np.flatnonzero(owners == i)
            if over <= 0 or spans[i].trim == "drop" or not len(places):
                continue
            gone = places[:over] if spans[i].trim == "left" else places[max(0, len(places) - over) :]
            _remove(keep, gone, owners, spans, trimmed)
    return keep, trimmed


def _remove(
    keep: np.ndarray, places: np.ndarray, owners: np.ndarray, spans: Sequence[Span], trimmed: dict[str, int]
) -> None:
    keep[places] = False
    for owner in owners[places].tolist():
        trimmed[spans[owner].name] = trimmed.get(spans[owner].name, 0) + 1
