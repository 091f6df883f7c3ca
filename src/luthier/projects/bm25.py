"""Okapi BM25 over lists of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_K1 = 1.5  # how soon more of the same word stops to count
_B = 0.75  # how much long documents are held back, 0 to 1


class BM25:
    """An index of documents by their words.

    ``idf(w) = ln(1 + (N - n(w) + 0.5) / (n(w) + 0.5))``, never negative, so that a word which most documents have does not
    count against them.

    Args:
        documents: Words of each, repeated as often as they occur.

    Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", section 3; the idf is
        Lucene's.
    """

    def __init__(self, documents: Sequence[Sequence[str]]) -> None:
        lengths = np.array([len(words) for words in documents], np.float64)
        mean = lengths.mean() if len(lengths) and lengths.any() else 1.0
        self._norms = _K1 * (1 - _B + _B * lengths / mean)
        found: dict[str, tuple[list[int], list[int]]] = {}
        for number, words in enumerate(documents):
            for word, count in Counter(words).items():
                places, counts = found.setdefault(word, ([], []))
                places.append(number)
                counts.append(count)
        self._postings = {
            word: (np.array(places, np.int64), np.array(counts, np.float64))
            for word, (places, counts) in found.items()
        }

    def scores(self, query: Sequence[str]) -> NDArray[np.float64]:
        """How well each document fits a query, at least 0, shape (document,); a word counts as often as it is asked for."""
        total = np.zeros(len(self._norms))
        for word, times in Counter(query).items():
            if word not in self._postings:
                continue
            places, counts = self._postings[word]
            idf = np.log(1 + (len(total) - len(places) + 0.5) / (len(places) + 0.5))
            total[places] += times * idf * counts * (_K1 + 1) / (counts + self._norms[places])
        return total

    def best(self, query: Sequence[str], count: int) -> list[int]:
        """Numbers of the best documents, best first; ties by number, and none that shares no word with the query."""
        scores = self.scores(query)
        if len(scores) > count:  # sorted are only those that can be among the best
            least = np.partition(scores, -count)[-count] if count else np.inf
            places = np.flatnonzero(scores >= max(least, 0))
        else:
            places = np.arange(len(scores))
        order = places[np.lexsort((places, -scores[places]))][:count]
        return [int(number) for number in order if scores[number] > 0]
