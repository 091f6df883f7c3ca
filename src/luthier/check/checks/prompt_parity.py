from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from luthier.check.columns import Offenders, num_alike
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.encoding.encode import encode, encode_prompt
from luthier.encoding.raw_records import own_name, plain_fields
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.recipe import build
from luthier.records import Dropped, Example, Finding, Record, Row, Split
from luthier.registry import check
from luthier.tasks import Task

NUM_ROWS = 64
# Rows lie in the order of their records, so the first ones are met soon. Where data.max_rows keeps a few rows out of
# many they may not be, and then what was met by here must do.
MOST_RECORDS = 100_000
# Rows of other frameworks that are decoded and encoded again, of each split; 1 ms each.
NUM_AGAIN = 200
# Pieces that were encoded apart and joined differ in a row here and there; another tokenizer or version in most.
ROW_SHARE = 0.25
# Another version of a tokenizer reads numbers or spaces otherwise; another tokenizer nearly everything.
TOKEN_SHARE = 0.3
# Tokens at a border that may differ because text was cut or joined there.
BORDER_TOKENS = 4


@check("prompt-parity")
def prompt_parity(context: CheckContext) -> Iterator[Finding]:
    """Encoding a row again, from its raw record if there is one and else from its own text, gives the same ids.

    What it does: saves the tokenizer to a temporary folder and reloads it, reads the sources until it meets the first 64
    rows of the splits, and makes their examples again. Encoding must give the stored ids and weights; and the prompt
    alone, encoded as for inference, must give the ids that stand before the first trained token. Where there are no
    records it decodes 200 rows of each split between their control tokens and where training begins, and encodes that
    text again; rows that do not decode to text are left out. A finding from a quarter of the rows: a warning, or an error
    if three tenths of all tokens differ. What differs only where a piece begins or ends is left out: it was cut there.

    Why is this bad: if it does not, the model is trained on other ids than it is used with. As a rule the prepared data
    are older than the tokenizer, template, task or source; or the tokenizer changes when it is saved.

    Example: a tokenizer whose added tokens are lost by ``save_pretrained``; rows prepared before the template changed.

    Fix: delete ``data/`` in the run folder and prepare anew; if that does not help, the tokenizer itself is at fault.

    Catalogue: 8, 9, 10, 14, 20, 21
    """
    if isinstance(context, RunContext):
        yield from _from_records(context)
    else:
        yield from _from_text(context)


def _from_records(context: RunContext) -> Iterator[Finding]:
    waiting = _first_rows(context)
    if not waiting:
        raise Skip("there are no rows")
    context.looked_at(f"{sum(map(len, waiting.values()))} rows and their records")
    with TemporaryDirectory() as folder:
        context.tokenizer.save(folder)
        tokenizer = TextTokenizer.load(folder, trust_remote_code=context.trust_remote_code)
    other_ids, other_prompts = Offenders(context), Offenders(context)
    num_records = 0
    for split, record in islice(_records(context, waiting), MOST_RECORDS):
        num_records += 1
        for example in _examples(context, split, record, tokenizer) if record else ():
            row = waiting[split].pop(example.id, None)
            if row is None:
                continue
            again = encode(example, tokenizer, context.recipe.data.max_length)
            other_ids.add(split, [row.id], [not _same(row, again)])
            other_prompts.add(split, [row.id], [not _same_prompt(row, example, tokenizer)])
    for found, what in (
        (other_ids, "have other ids or weights when they are made again from their records"),
        (other_prompts, "have a prompt whose ids at inference are not those before the first trained token"),
    ):
        if found.count:
            yield found.finding(
                "prompt-parity",
                "error",
                f"{found} {what}",
                "delete data/ in the run folder and prepare anew; if this stays, save_pretrained changes the tokenizer",
            )
    missing = Offenders(context)
    for split, rows in waiting.items():
        missing.add(split, list(rows), [True] * len(rows))
    if missing.count and num_records < MOST_RECORDS:
        yield missing.finding(
            "prompt-parity",
            "error",
            f"{missing.count} of {missing.count + other_ids.num_rows} rows are made of no record of the sources any more",
            "delete data/ in the run folder and prepare anew: source or task have changed since",
        )
    elif not other_ids.num_rows:
        raise Skip(
            f"none of {missing.count} rows was met in the first {MOST_RECORDS:,} records of the sources"
        )


def _from_text(context: CheckContext) -> Iterator[Finding]:
    tokenizer = context.tokenizer
    other = Offenders(context)
    num_rows = num_tokens = num_other = 0
    example = ""
    for split in context.rows:
        rows = list(context.spread(split, NUM_AGAIN))
        num_rows += len(rows)
        for row in rows:
            pieces = [_again(piece, tokenizer) for piece in _pieces(row, tokenizer)]
            if None in pieces or not pieces:
                continue  # no text, or one that does not decode
            differences = [piece for piece in pieces if piece and piece.count]
            num_tokens += len(row.input_ids)
            num_other += sum(d.count for d in differences)
            other.add(split, [row.id], [bool(differences)])
            if differences and not example:
                example = differences[0].said
    context.looked_at(f"{num_rows:,} rows, of which {other.num_rows:,} decode to text")
    if other.num_rows < 0.5 * num_rows:
        raise Skip(f"only {other.num_rows:,} of {num_rows:,} rows decode to text that can be encoded again")
    if other.share >= ROW_SHARE:
        share = num_other / max(1, num_tokens)
        known = (
            "another version of this tokenizer, or another setting,"
            if share < TOKEN_SHARE
            else "another tokenizer"
        )
        yield other.finding(
            "prompt-parity",
            "warning" if share < TOKEN_SHARE else "error",
            f"{other} hold other ids than this tokenizer gives for their text, {share:.1%} of the tokens: {known} made "
            f"them; {example}",
            "tokenise the data anew with the tokenizer that is saved with the model",
        )


@dataclass(frozen=True, slots=True)
class _Difference:
    count: int
    said: str


def _pieces(row: Row, tokenizer: TextTokenizer) -> list[list[int]]:
    """The ids that lie between control tokens and borders of what is trained."""
    ids, trained = np.asarray(row.input_ids), np.asarray(row.loss_weights) != 0
    special = np.isin(ids, list(tokenizer.special_ids))
    borders = np.flatnonzero((np.diff(trained) != 0) | special[1:] | special[:-1]) + 1
    parts = np.split(np.arange(len(ids)), borders)
    return [ids[p].tolist() for p in parts if len(p) and not special[p[0]]]


def _again(ids: list[int], tokenizer: TextTokenizer) -> _Difference | None:
    """How the ids of a piece differ from those that its text gets; None if they decode to no text.

    Tokenizers like SentencePiece's may or may not have put a space before it: the nearer reading counts.
    """
    found: list[_Difference] = []
    for start in (True, False):
        text = tokenizer.decode(ids, first=start)
        if "\ufffd" in text or tokenizer.hf.unk_token_id in ids:
            return None
        try:
            again = tokenizer.encode(text, first=start)
        except UserError:  # it spells control tokens
            return None
        found.append(_compare(ids, again, tokenizer))
    return min(found, key=lambda d: d.count)


def _compare(ids: list[int], again: list[int], tokenizer: TextTokenizer) -> _Difference:
    """The stretch in which two readings differ; none if it is but the beginning or end of a piece, where it was cut."""
    same = num_alike(ids, again)
    behind = num_alike(ids[same:][::-1], again[same:][::-1])
    old, new = ids[same : len(ids) - behind], again[same : len(again) - behind]
    at_border = (not same or not behind) and max(len(old), len(new)) <= BORDER_TOKENS
    if not (old or new) or at_border:
        return _Difference(0, "")
    said = f"{tokenizer.decode(old)[:30]!r} is {old[:5]} there and {new[:5]} here"
    return _Difference(len(old), said)


def _first_rows(context: CheckContext) -> dict[Split, dict[str, Row]]:
    """The first rows of each split by id, about 64 in all."""
    splits = [split for split, rows in context.rows.items() if len(rows)]
    return {
        split: {row.id: row for row in islice(context.rows[split], NUM_ROWS // len(splits))}
        for split in splits
    }


def _records(
    context: CheckContext, waiting: dict[Split, dict[str, Row]]
) -> Iterator[tuple[Split, Record | None]]:
    """The sources' records, each with its split, until no row is waited for; None for one that none of them is made of."""
    own: dict[Split, dict[str, Any] | None] = {
        "eval": context.recipe.data.eval_source,
        "test": context.recipe.data.test_source,
    }
    sources: list[tuple[Split | None, dict[str, Any]]] = [(None, context.recipe.data.source)]
    sources += [(split, options) for split, options in own.items() if options is not None]
    for name, options in sources:
        splits = [split for split in waiting if (name is None and not own.get(split)) or split == name]
        groups = {row.group: split for split in splits for row in waiting[split].values()}
        records: Iterable[Record | Dropped] = build("source", options, "recipe key data.source").records()
        neighbours: dict[str, list[Record]] = {}
        if type(context.task).neighbourhood is not Task.neighbourhood:  # any of the records may be asked for
            records = list(records)
            for record in records:
                if isinstance(record, Record) and (key := context.task.neighbourhood(record)) is not None:
                    neighbours.setdefault(key, []).append(own_name(record, name))
        for record in records:
            if not any(waiting[split] for split in splits):
                break
            wanted = None if isinstance(record, Dropped) else own_name(record, name)
            if wanted:
                wanted = replace(wanted, neighbours=neighbours)
            if wanted and wanted.group in groups:
                yield groups[wanted.group], wanted
            else:
                yield "train", None


def _examples(
    context: CheckContext, split: Split, record: Record, tokenizer: TextTokenizer
) -> Iterator[Example]:
    fields = plain_fields(record)
    if isinstance(fields, Dropped):
        return
    record = replace(record, fields=json.loads(fields))
    for item in context.task.examples(
        record, split, tokenizer, max_length=context.recipe.data.max_length, seed=context.recipe.rows_seed
    ):
        if isinstance(item, Example):
            yield item


def _same(row: Row, again: Row | Dropped) -> bool:
    return (
        isinstance(again, Row)
        and np.array_equal(row.input_ids, again.input_ids)
        and np.array_equal(row.loss_weights, again.loss_weights)
    )


def _same_prompt(row: Row, example: Example, tokenizer: TextTokenizer) -> bool:
    """Whether the spans before the first trained one, encoded by themselves, are the row's prompt."""
    if any(span.weight and span.trim == "drop" and row.trimmed.get(span.name) for span in example.spans):
        return True  # which trained span comes first depends on what was dropped
    first = next((i for i, span in enumerate(example.spans) if span.weight and span.text), len(example.spans))
    prompt = replace(example, spans=example.spans[:first])
    try:
        # As much room as the row had for it: what a training row gives to its target, inference may give to the prompt.
        ids = encode_prompt(prompt, tokenizer, row.num_prompt_tokens)
    except ValueError:
        return False
    return ids == [int(i) for i in row.input_ids[: row.num_prompt_tokens]]
