from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from luthier.check.columns import Offenders, flat, ngram_hashes, row_hashes
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.records import Finding, Split
from luthier.registry import check
from luthier.rows import Rows, read_batches

# Brown et al. 2020 (arXiv:2005.14165, appendix C) take 13-grams, and leave out those of more than ten training documents:
# common phrases, legal boilerplate, here templates and system prompts. In small data such text is met less often.
NGRAM = 13
MOST_TRAIN_ROWS, FEWEST_TRAIN_ROWS, TRAIN_SHARE = 10, 2, 0.02
# What half of the rows that are looked for have is form as well, in pieces of five tokens: headings around a text.
PIECE, PIECE_SHARE, FEWEST_PIECES = 5, 0.5, 3
# Touvron et al. 2023 (arXiv:2307.09288, appendix A.6): a sample of which 80% of the tokens are met is "dirty".
COVERED = 0.8
# One in a hundred rows lifts a score visibly, and one or two may be chance.
MOST_SHARE = 0.01
FEWEST_ROWS = 3
# Of a larger split so many rows are looked for, spread over it: a share of 1% is then known to 0.2%.
MOST_ROWS = 2000
# Tokens of training rows that are turned into text, to look for lines: some seconds.
MOST_DECODED = 2_000_000
_TABLE_BITS = 23
_MANY = 1000


@check("ngram-overlap")
def ngram_overlap(context: CheckContext) -> Iterator[Finding]:
    """Rows of the evaluation and test splits do not stand inside training rows.

    What it does: looks up the runs of 13 tokens of these rows (2,000 of each split at most) in all training rows. Runs
    that are in more than ten training rows are form, not content, and are left out with the tokens that stand in them;
    so is what half of these rows share. A row counts if 80% of its other tokens stand in runs that were found. A
    warning from 1% of the rows, and three rows; below that a note. Rows that equal a training row are counted by
    ``split-overlap``. Where targets are single lines, it says as well (with ``-v``, and in ``findings.json``) how many of them
    stand as whole lines in training rows, context included: lines recur in all code, so that is no finding, but a stratum
    to report.

    Why is this bad: what was trained on is remembered, so the score says little about new data. Comparing whole rows
    misses a question that stands in a longer text or under another template.

    Example: the problems of a benchmark, with their answers, in a crawled training set; articles of which some
    questions are in training and others in evaluation.

    Fix: take the passages out of the training data, or split by document (``group``) and not by question.

    Catalogue: 23
    """
    train = context.rows.get("train")
    others = [split for split, rows in context.rows.items() if split != "train" and len(rows)]
    if not train or not others:
        raise Skip("there is only one split")
    known = row_hashes(train)
    wanted = {split: _wanted(context.rows[split], known) for split in others}
    grams = np.unique(np.concatenate([w.hashes for w in wanted.values()]))
    counts = _train_rows(train, grams)
    limit = int(min(MOST_TRAIN_ROWS, max(FEWEST_TRAIN_ROWS, TRAIN_SHARE * len(train))))
    looked = " and ".join(f"{len(w.ids):,} {split}" for split, w in wanted.items())
    context.looked_at(f"{looked} rows against all {len(train):,} training rows")
    for split in others:
        _look_for_lines(context, split)
    for split, rows in wanted.items():
        shares = rows.covered(grams, counts, limit)
        found = Offenders(context)
        found.add(split, rows.ids, shares >= COVERED)
        if found.count:
            warn = found.share > MOST_SHARE and found.count >= FEWEST_ROWS
            yield found.finding(
                "ngram-overlap",
                "warning" if warn else "note",
                f"{found} of the {split} split stand inside training rows: {COVERED:.0%} of their tokens and more are "
                f"in runs of {NGRAM} tokens that at most {limit} training rows have as well",
                context.fix(
                    "give what belongs together one group in data.source, or take these passages out of the source",
                    "take these passages out of the training data, or split by document and not by row",
                ),
                MOST_SHARE,
            )


def _look_for_lines(context: CheckContext, split: Split) -> None:
    """Notes how many one-line targets of a split stand as lines in training rows; a target of several lines is none."""
    if not isinstance(context, RunContext) or context.objective != "tokens":
        return
    texts = context.rows[split].column("target").to_pylist()
    targets = [text.strip() for text in texts[:: -(-len(texts) // MOST_ROWS)]]
    lines = {text for text in targets if text and "\n" not in text}
    if not lines:
        return
    train = context.rows["train"]
    most = max(1, int(MOST_DECODED / max(1.0, float(train.lengths().mean()))))
    num_read, found = 0, set[str]()
    for row in context.spread("train", most):
        text = context.tokenizer.decode(row.input_ids, first=True)
        found |= lines.intersection(line.strip() for line in text.split("\n"))
        num_read += 1
    num_lines, num_found = (sum(text in those for text in targets) for those in (lines, found))
    context.looked_at(
        f"{num_found:,} of {num_lines:,} {split} targets of one line ({num_found / num_lines:.1%}) stand as lines in "
        f"{num_read:,} of {len(train):,} training rows"
    )


@dataclass
class _Wanted:
    """The rows of a split that are looked for, and their 13-grams.

    Attributes:
        ids: Row ids.
        hashes: 13-grams of all rows one after the other.
        ends: Where each row's end in them, shape (num_rows + 1,).
        form: Of each row, which tokens stand in pieces that many of these rows share, bool, shape (num_tokens,).
    """

    ids: list[str]
    hashes: np.ndarray
    ends: np.ndarray
    form: list[np.ndarray]

    def covered(self, grams: np.ndarray, counts: np.ndarray, limit: int) -> np.ndarray:
        """Share of each row's own tokens that stand in 13-grams of few training rows, shape (num_rows,); 0 if too few.

        Args:
            grams: All 13-grams that were looked for, sorted.
            counts: Training rows that have each.
            limit: Those of more training rows are form: their tokens do not count.
        """
        rows = counts[np.searchsorted(grams, self.hashes)]
        shares = np.zeros(len(self.ids))
        for index, (start, end) in enumerate(
            zip(self.ends[:-1].tolist(), self.ends[1:].tolist(), strict=True)
        ):
            if end == start:
                continue
            form = _tokens_in(rows[start:end] > limit, NGRAM) | self.form[index]
            met = _tokens_in((rows[start:end] > 0) & (rows[start:end] <= limit), NGRAM) & ~form
            if (~form).sum() >= NGRAM:
                shares[index] = met.sum() / (~form).sum()
        return shares


def _tokens_in(grams: np.ndarray, length: int) -> np.ndarray:
    """Which tokens of a row stand in a marked run of so many tokens, bool, shape (num_grams + length - 1,)."""
    change = np.zeros(len(grams) + length, np.int64)
    change[: len(grams)] += grams
    change[length:] -= grams
    found: np.ndarray = np.cumsum(change)[:-1] > 0
    return found


def _wanted(rows: Rows, known: np.ndarray) -> _Wanted:
    """At most so many rows of a split, spread over it, without those whose hash is known."""
    new = ~np.isin(row_hashes(rows), known)
    step = -(-len(rows) // MOST_ROWS)
    ids: list[str] = []
    hashes, pieces = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    start = 0
    for batch in read_batches(rows.path, ["id", "input_ids"]):
        offsets, tokens = flat(batch.column("input_ids"))
        for place in range(-start % step, batch.num_rows, step):
            if new[start + place]:
                ids.append(str(batch.column("id")[place]))
                row = tokens[offsets[place] : offsets[place + 1]]
                hashes.append(ngram_hashes(row, NGRAM))
                pieces.append(ngram_hashes(row, PIECE))
        start += batch.num_rows
    found, counts = np.unique(np.concatenate([np.unique(part) for part in pieces]), return_counts=True)
    shared = found[counts >= max(FEWEST_PIECES, PIECE_SHARE * len(ids))]
    form = [_tokens_in(np.isin(part, shared), PIECE) for part in pieces[1:]]
    return _Wanted(ids, np.concatenate(hashes), np.cumsum([0, *map(len, hashes[1:])]), form)


def _train_rows(train: Rows, grams: np.ndarray) -> np.ndarray:
    """The training rows that have each of some 13-grams, shape (num_grams,); those of very many are not counted on.

    A table of 23 bits of the hashes keeps out nearly all that is not looked for. What has been met in more rows than
    matter is taken out, so that text which stands in all rows costs little.
    """
    counts = np.zeros(len(grams), np.int64)
    left, indices = grams, np.arange(len(grams))
    table = _table(left)
    for batch in read_batches(train.path, ["input_ids"]):
        if not len(left):
            break
        offsets, ids = flat(batch.column("input_ids"))
        hashes = ngram_hashes(ids, NGRAM)
        places = np.flatnonzero(table[hashes >> np.uint64(64 - _TABLE_BITS)])
        found = np.searchsorted(left, hashes[places]).clip(max=len(left) - 1)
        rows = np.searchsorted(offsets, places, side="right") - 1
        hit = (left[found] == hashes[places]) & (places + NGRAM <= offsets[rows + 1])
        index = indices[found[hit]]
        pairs = np.sort(rows[hit] * len(grams) + index)
        first = np.diff(pairs, prepend=-1) != 0  # a row counts once
        np.add.at(counts, pairs[first] % len(grams), 1)
        if (counts[index] > MOST_TRAIN_ROWS).sum() > _MANY:
            rare = counts[indices] <= MOST_TRAIN_ROWS
            left, indices = left[rare], indices[rare]
            table = _table(left)
    return counts


def _table(grams: np.ndarray) -> np.ndarray:
    table = np.zeros(1 << _TABLE_BITS, dtype=bool)
    table[grams >> np.uint64(64 - _TABLE_BITS)] = True
    return table
