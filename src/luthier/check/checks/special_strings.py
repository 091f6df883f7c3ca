from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from luthier.check.columns import Offenders, batches, flat, marked, sampled
from luthier.check.context import CheckContext
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Finding
from luthier.registry import check
from luthier.rows import Rows, read_batches

# Prompts are decoded, about 0.1 ms a row; targets are searched as text, all of them.
NUM_ROWS = 500
# What nine rows in ten have is their form. What at most one in ten has beside it is not; in between nobody can tell.
FORM_SHARE, ODD_SHARE = 0.9, 0.1
FEWEST_ROWS = 20
# Behind an end of turn a template puts the same token each time; behind one that text spells anything may stand.
SAME_NEXT = 0.5


@check("special-strings")
def special_strings(context: CheckContext) -> Iterator[Finding]:
    """Texts of the data do not spell control tokens.

    What it does: searches the targets of all rows, and the whole text of 500 rows of each split, for the tokenizer's
    special-token strings. They are encoded as plain text there and can do no harm in training: a note. And it looks at
    the order of control tokens in all training rows: where nine rows in ten have a form (openers and ends of turns take
    turns, EOS ends the row) and a few rows break it, text has been turned into control tokens: a warning.

    Why is this bad: plain text may be meant otherwise (a conversation that was pasted into a text column). Control tokens
    out of text end turns in the middle, and whoever writes such text can speak in another role.

    Example: a prompt column that holds ``<|im_start|>user``; a user's ``<|im_end|>`` that became the id of one.

    Fix: encode text with ``split_special_tokens=True``; give conversations as ``messages``; take stray control strings
    out of the data.

    Catalogue: 19
    """
    tokenizer = context.tokenizer
    names = [token.content for token in tokenizer.hf.added_tokens_decoder.values() if token.special]
    if not names:
        return
    pattern = "|".join(re.escape(name) for name in names)
    targets, texts = Offenders(context), Offenders(context)
    for split, batch in batches(context, "id", "target"):
        found = pc.match_substring_regex(batch.column("target"), pattern)
        targets.add(split, batch.column("id"), found.to_numpy(zero_copy_only=False))
    special = list(tokenizer.special_ids)
    for split, rows in sampled(context, NUM_ROWS, "the whole text of "):
        ids = (np.asarray(row.input_ids) for row in rows)
        plain = [tokenizer.decode(i[~np.isin(i, special)].tolist()) for i in ids]
        texts.add(split, [row.id for row in rows], [tokenizer.has_special_string(text) for text in plain])
    if targets.count or texts.count:
        yield Finding(
            "special-strings",
            "note",
            f"{targets} have special-token strings in their target, and {texts} looked at have some anywhere; "
            "they are plain text here",
            targets.where or texts.where,
            "if they are meant as control tokens, give the conversation as messages",
            measured=targets.count,
            expected=0,
        )
    if len(context.rows.get("train", ())) >= FEWEST_ROWS:
        yield from _out_of_place(context, tokenizer)


@dataclass(frozen=True)
class _Order:
    """In how many rows control tokens follow each other with nothing but text between them.

    Attributes:
        ids: Control tokens that there are, sorted, shape (num_control,).
        rows: Rows that have each of them, shape (num_control,).
        ends: Rows that end with each, shape (num_control,).
        pairs: Rows in which the one follows the other, shape (num_control, num_control).
        firsts: Tokens that stand first or second in a twentieth of the rows or more.
    """

    ids: np.ndarray
    rows: np.ndarray
    ends: np.ndarray
    pairs: np.ndarray
    firsts: np.ndarray

    def broken(self, num_rows: int) -> np.ndarray:
        """Which pairs break the form of the rows, bool, shape (num_control, num_control).

        Both tokens are in nearly all rows and the one follows the other in few, while in nearly all rows something else
        follows the first: another control token, or the end of the row.
        """
        common = self.rows >= FORM_SHARE * num_rows
        rare = (self.pairs > 0) & (self.pairs <= ODD_SHARE * num_rows)
        has_form = (self.pairs >= FORM_SHARE * num_rows).any(axis=1) | (self.ends >= FORM_SHARE * num_rows)
        found: np.ndarray = rare & common[:, None] & common[None, :] & has_form[:, None]
        return found

    def ends_alone(self, num_rows: int) -> np.ndarray:
        """Tokens of which no other one follows in nearly all rows, so that a later turn may follow without an opener."""
        found: np.ndarray = np.all(self.pairs < FORM_SHARE * num_rows, axis=1)
        return found


def _out_of_place(context: CheckContext, tokenizer: TextTokenizer) -> Iterator[Finding]:
    rows = context.rows["train"]
    order = _order(rows, np.array(sorted(tokenizer.special_ids), np.int64))
    broken = order.broken(len(rows))
    if context.objective != "tokens":  # a second text may follow behind [SEP] in some rows
        broken[order.ends_alone(len(rows))] = False
    if not broken.any():
        return
    found, pairs = _offenders(context, order, broken)
    if not found.count:
        return
    one, other = (tokenizer.decode([int(order.ids[i])]) for i in pairs[0])
    yield found.finding(
        "special-strings",
        "warning",
        f"{found} have control tokens where nine rows in ten have none, such as {one} followed by {other} with nothing "
        "but text between: text that spells control tokens was turned into them",
        context.fix(
            "give conversations as messages, and text as text",
            "encode contents with split_special_tokens=True, or take such strings out of them",
        ),
    )


def _order(rows: Rows, control: np.ndarray) -> _Order:
    size = len(control)
    has, ends = np.zeros(size, np.int64), np.zeros(size, np.int64)
    pairs: Counter[int] = Counter()
    firsts: Counter[int] = Counter()
    for batch in read_batches(rows.path, ["input_ids"]):
        offsets, ids = flat(batch.column("input_ids"))
        places, kinds, owners = _control(offsets, ids, control)
        has += np.bincount(np.unique(owners * size + kinds) % size, minlength=size)
        ends += np.bincount(kinds[places == offsets[owners + 1] - 1], minlength=size)
        same = np.diff(owners) == 0
        codes = kinds[:-1][same] * size + kinds[1:][same]
        in_rows = np.unique(owners[:-1][same] * size * size + codes) % (size * size)
        pairs.update(_counted(in_rows))
        for place in (0, 1):
            firsts.update(_counted(ids[offsets[:-1][np.diff(offsets) > place] + place]))
    usual = [index for index, count in firsts.items() if count >= len(rows) / 20]
    there = np.flatnonzero(has)
    table = np.zeros((len(there), len(there)), np.int64)
    for code, count in pairs.items():
        one, other = np.searchsorted(there, divmod(code, size))
        table[one, other] = count
    return _Order(control[there], has[there], ends[there], table, np.array(usual, np.int64))


def _counted(values: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _control(
    offsets: np.ndarray, ids: np.ndarray, control: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place, index into ``control`` and row of each control token of a batch."""
    table = np.full(int(control.max()) + 2, -1, np.int64)
    table[control] = np.arange(len(control))
    kinds = table[ids.clip(min=-1, max=len(table) - 1)]  # the last entry stands for all others
    places = np.flatnonzero(kinds >= 0)
    return places, kinds[places], np.searchsorted(offsets, places, side="right") - 1


def _offenders(
    context: CheckContext, order: _Order, broken: np.ndarray
) -> tuple[Offenders, list[tuple[int, int]]]:
    """The rows with pairs that break the form, and these pairs.

    Where the first of the two ends rows, and has no opener to follow it, further turns in the same row look alike: then
    it counts only if neither a token that begins rows stands behind it, nor the same one in most rows.
    """
    rows = context.rows["train"]
    alone = order.ends_alone(len(rows))
    found, lenient = [], []
    start = 0
    for batch in read_batches(rows.path, ["input_ids"]):
        offsets, ids = flat(batch.column("input_ids"))
        places, kinds, owners = _control(offsets, ids, order.ids)
        bad = np.flatnonzero((np.diff(owners) == 0) & broken[kinds[:-1], kinds[1:]])
        for i in bad.tolist():
            item = (int(owners[i]) + start, (int(kinds[i]), int(kinds[i + 1])))
            if alone[kinds[i]]:
                lenient.append((*item, int(ids[places[i] + 1])))
            else:
                found.append(item)
        start += batch.num_rows
    nexts = Counter(follows for *_, follows in lenient)
    usual = {follows for follows, count in nexts.items() if 1 < count > SAME_NEXT * len(lenient)}
    usual |= set(order.firsts.tolist())
    found += [(row, pair) for row, pair, follows in lenient if follows not in usual]
    mask = np.zeros(len(rows), dtype=bool)
    mask[[row for row, _ in found]] = True
    offenders = marked(context, {"train": mask})
    return offenders, [pair for _, pair in found]
