from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from luthier.check.columns import Offenders, flat, ngram_hashes, values_at, whole_ngrams
from luthier.check.context import CheckContext, RunContext, Skip, evenly
from luthier.encoding.minhash import band_keys, bands, candidates, signatures
from luthier.records import Finding, Split
from luthier.registry import check
from luthier.rows import Rows, read_batches

# Lee et al. 2021 (arXiv:2107.06499, table 2) find 3 to 5% of near copies in C4 and LM1B, and 14% in RealNews.
MOST_SHARE = 0.1
WORTH_A_NOTE = 0.01
# Across splits one in a hundred is enough to lift a score; two rows may be alike by chance.
MOST_SHARE_ACROSS = 0.01
FEWEST_ACROSS = 3

NGRAM = 5
SIMILAR = 0.8
# The same with each 5-gram weighted by how rare it is: a form that many rows share does not make copies of them.
SIMILAR_WEIGHTED = 0.7
# What more rows than this share is a form (a system prompt, a template) and no content.
FORM_SHARE, FORM_ROWS = 0.1, 10
NUM_ROWS_FOR_FORMS = 2000
# With fewer of its own a row is too short: one token changes five of them.
FEWEST_NGRAMS = 10
# Answers of two copies are alike as well; else they are two answers, which check conflicting-targets is for.
SIMILAR_TARGETS = 0.5
# 5-grams are held in memory, four bytes each.
MOST_ROWS, MOST_TOKENS = 100_000, 10_000_000


@check("near-duplicates")
def near_duplicates(context: CheckContext) -> Iterator[Finding]:
    """Rows are no slightly changed copies of training rows, neither in training nor across splits.

    What it does: compares rows by their sets of token 5-grams (MinHash finds candidates, the Jaccard similarity of the
    sets decides: 0.8), leaving out 5-grams that a tenth of the rows share, such as a system prompt. Of large data a
    sample of 10 million tokens, drawn by content so that copies come together. Two rows whose answers differ are no
    copies, and exact copies are counted by other checks. A warning from 10% of the training rows, and from 1% of the
    rows of another split.

    Why is this bad: near copies are learned by heart as exact ones are, and no comparison of hashes finds them. Across
    splits they let an evaluation measure memory.

    Example: one scraped answer with fifty different signatures; a generated data set that varies a name and a number.

    Fix: ``data.near_duplicates: drop``; or group them, so that no cluster straddles splits.

    Catalogue: 22, 23
    """
    sample = _sample(context, _forms(context.training_rows()))
    if len(sample.splits) < 2:
        raise Skip(f"fewer than two rows have {FEWEST_NGRAMS} 5-grams that are not in most others")
    pairs = _same_answers(context, sample, _similar_pairs(sample))
    for split in context.rows:
        near = {later: first for later, first in pairs.items() if sample.splits[later] == split}
        looked = int((sample.splits == split).sum())
        if near:
            yield from _finding(context, split, sample, near, looked)


@dataclass
class _Forms:
    """What rows have in common by form: 5-grams by how many rows share them, counted on some of the rows.

    Attributes:
        ngrams, weights: Those of two rows and more, sorted, uint32; and log(rows / other rows that have it).
        highest: The weight of all others.
        dropped: Of each 5-gram's first 20 bits, whether it is left out, bool, shape (2^20,); a few by chance.
    """

    ngrams: np.ndarray
    weights: np.ndarray
    highest: float
    dropped: np.ndarray

    def weigh(self, ngrams: np.ndarray) -> float:
        """The sum of the weights of some 5-grams."""
        if not len(self.ngrams):
            return self.highest * len(ngrams)
        places = np.searchsorted(self.ngrams, ngrams).clip(max=len(self.ngrams) - 1)
        return float(np.where(self.ngrams[places] == ngrams, self.weights[places], self.highest).sum())


@dataclass
class _Sample:
    """The rows that are compared, training rows first.

    Attributes:
        splits, places: Split and index of each row, shape (num_rows,).
        hashes: Of each row's ids.
        ngrams: 5-grams of each row, uint32, not sorted.
        keys: Of each row for each band, uint64, shape (num_rows, num_bands).
        digits: Signatures cut to 16 bits, shape (num_rows, 128).
    """

    splits: np.ndarray
    places: np.ndarray
    hashes: np.ndarray
    ngrams: list[np.ndarray]
    keys: np.ndarray
    digits: np.ndarray
    forms: _Forms
    sets: dict[int, np.ndarray] = field(default_factory=dict)

    def similar(self, one: int, other: int) -> bool:
        """Whether two rows are near copies by their sets."""
        a, b = (self._set(index) for index in (one, other))
        if min(len(a), len(b)) < SIMILAR * max(len(a), len(b)):
            return False  # the union is at least as large as the larger set
        shared = np.intersect1d(a, b, assume_unique=True)
        if len(shared) < SIMILAR * (len(a) + len(b) - len(shared)):
            return False
        weight = self.forms.weigh(shared)
        return weight >= SIMILAR_WEIGHTED * (self.forms.weigh(a) + self.forms.weigh(b) - weight) > 0

    def _set(self, index: int) -> np.ndarray:
        if index not in self.sets:
            self.sets[index] = np.unique(self.ngrams[index])
        return self.sets[index]


def _forms(rows: Rows) -> _Forms:
    sets = [np.empty(0, np.uint32)]
    for index in evenly(len(rows), NUM_ROWS_FOR_FORMS):
        sets.append(np.unique(_cut(ngram_hashes(np.asarray(rows.row(index).input_ids), NGRAM))))
    num_rows = len(sets) - 1
    ngrams, counts = np.unique(np.concatenate(sets), return_counts=True)
    dropped = np.zeros(1 << 20, dtype=bool)
    dropped[ngrams[counts > max(FORM_ROWS, FORM_SHARE * num_rows)] >> 12] = True
    shared = counts > 1
    weights = np.log(num_rows / (counts[shared] - 1))
    return _Forms(ngrams[shared], weights, math.log(num_rows), dropped)


def _cut(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(32)).astype(np.uint32)


def _sample(context: CheckContext, forms: _Forms) -> _Sample:
    num_rows = sum(map(len, context.rows.values()))
    num_tokens = sum(int(rows.lengths().sum()) for rows in context.rows.values())
    one_in = max(1, math.ceil(num_rows / MOST_ROWS), math.ceil(num_tokens / MOST_TOKENS))
    num_bands, band_rows = bands(SIMILAR)
    splits: list[Split] = []
    hashes, ngrams, keys, digits = (
        [],
        [],
        [np.empty((0, num_bands), np.uint64)],
        [np.empty((0, 128), np.uint16)],
    )
    places = [np.empty(0, np.int64)]
    for split in sorted(context.rows, key=lambda name: name != "train"):
        start = 0
        for batch in read_batches(context.rows[split].path, ["input_ids"]):
            offsets, ids = flat(batch.column("input_ids"))
            chosen, found, ends = _ngrams_of(offsets, ids, forms, one_in)
            if len(chosen):
                matrix = signatures(found, ends.astype(np.uint64))
                keys.append(np.stack(list(band_keys(matrix, num_bands, band_rows)), axis=1))
                digits.append(matrix.astype(np.uint16))
                ngrams += [_cut(found[a:b]) for a, b in pairwise(ends.tolist())]
                hashes += [hash(ids[offsets[i] : offsets[i + 1]].tobytes()) for i in chosen.tolist()]
                places.append(chosen + start)
                splits += [split] * len(chosen)
            start += batch.num_rows
    kind = "all" if one_in == 1 else f"a sample of one in {one_in} of"
    context.looked_at(f"{kind} {num_rows:,} rows, of which {len(splits):,} are long enough")
    return _Sample(
        np.array(splits, dtype=object), np.concatenate(places), np.array(hashes), ngrams,
        np.concatenate(keys), np.concatenate(digits), forms,
    )  # fmt: skip


def _ngrams_of(
    offsets: np.ndarray, ids: np.ndarray, forms: _Forms, one_in: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of a batch that are looked at, their 5-grams one after the other, and where each row's end.

    Which rows these are depends on the smallest hash of their 5-grams, which similar rows share: two rows of
    similarity s are looked at together with at least s times the probability of one.
    """
    hashes = ngram_hashes(ids, NGRAM)
    keep = whole_ngrams(offsets, NGRAM) & ~forms.dropped[hashes >> np.uint64(44)]
    ends = np.concatenate([[0], np.cumsum(keep)])[np.minimum(offsets, len(keep))]
    counts, hashes = np.diff(ends), hashes[keep]
    chosen = np.flatnonzero(counts >= FEWEST_NGRAMS)
    if one_in > 1 and len(chosen):
        filled = np.flatnonzero(counts)
        least = np.minimum.reduceat(hashes, ends[filled])[np.searchsorted(filled, chosen)]
        chosen = chosen[(least * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)) % np.uint64(one_in) == 0]
    mask = np.zeros(len(counts), dtype=bool)
    mask[chosen] = True
    return chosen, hashes[np.repeat(mask, counts)], np.concatenate([[0], np.cumsum(counts[chosen])])


def _similar_pairs(sample: _Sample) -> dict[int, int]:
    """Of each row that is a near copy, but no exact one, of a training row before it: that row."""
    num_rows, num_train = len(sample.splits), int((sample.splits == "train").sum())
    alive = np.ones(num_rows, dtype=bool)
    parts = []
    for band in range(sample.keys.shape[1]):
        codes = candidates(sample.keys[:, band], alive)
        codes = codes[codes // num_rows < num_train]
        for part in np.array_split(codes, max(1, len(codes) // 20_000)):
            agree = sample.digits[part // num_rows] == sample.digits[part % num_rows]
            # Three standard deviations of an estimate from 128 hashes under the similarity that is looked for.
            parts.append(part[agree.mean(axis=1) > SIMILAR - 0.11])
    found: dict[int, int] = {}
    tried: dict[int, int] = {}
    for code in np.unique(np.concatenate(parts)).tolist():
        first, later = divmod(code, num_rows)
        if later in found or sample.hashes[first] == sample.hashes[later] or tried.get(later, 0) > 3:
            continue
        tried[later] = tried.get(later, 0) + 1
        if sample.similar(first, later):
            found[later] = first
    return found


def _same_answers(context: CheckContext, sample: _Sample, pairs: dict[int, int]) -> dict[int, int]:
    """The pairs whose target texts are alike as well; all where rows have labels."""
    if context.objective != "tokens" or not pairs:
        return pairs
    wanted = np.unique([*pairs, *pairs.values()])
    texts: dict[int, str] = {}
    for split, rows in context.rows.items():
        mine = wanted[sample.splits[wanted] == split]
        texts.update(zip(mine.tolist(), values_at(rows, "target", sample.places[mine]), strict=True))
    return {later: first for later, first in pairs.items() if _alike(texts[later], texts[first])}


def _alike(one: str, other: str) -> bool:
    a, b = ({text[i : i + NGRAM] for i in range(max(1, len(text) - NGRAM + 1))} for text in (one, other))
    return len(a & b) >= SIMILAR_TARGETS * len(a | b)


def _finding(
    context: CheckContext, split: Split, sample: _Sample, near: dict[int, int], looked: int
) -> Iterator[Finding]:
    later = sorted(near)[:5]
    ids = values_at(context.rows[split], "id", sample.places[later])
    like = values_at(context.rows["train"], "id", sample.places[[near[i] for i in later]])
    names = [f"{name} (like {other})" for name, other in zip(ids, like, strict=True)]
    found = Offenders(context, num_rows=looked, count=len(near), ids={split: names})
    across = split != "train"
    wanted = isinstance(context, RunContext) and context.recipe.data.near_duplicates == "keep-together"
    if across:
        warn = found.share > MOST_SHARE_ACROSS and found.count >= FEWEST_ACROSS
        limit = MOST_SHARE_ACROSS
    else:
        warn, limit = found.share > MOST_SHARE and not wanted, MOST_SHARE
        if found.share < WORTH_A_NOTE:
            return
    yield found.finding(
        "near-duplicates",
        "warning" if warn else "note",
        f"{found} of the {split} split are near copies of {'a' if across else 'an earlier'} training row",
        context.fix(
            "set data.near_duplicates=drop and prepare anew; or give copies one group in data.source",
            "leave them out of one of the two splits" if across else "keep one of each cluster",
        ),
        limit,
    )
