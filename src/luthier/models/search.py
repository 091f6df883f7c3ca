"""Which tokens continue a prompt: beam search, or samples, of one prompt, by the scores that a model gives.

Shapes: B beams, L candidates of a beam, V vocabulary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

Method = Literal["beam", "diverse-beam", "sample"]

_OUT = np.float32(-1e9)  # the score of what may not be chosen, as in transformers


@dataclass(frozen=True, slots=True)
class Search:
    """How continuations are looked for.

    Attributes:
        method: ``beam``; ``diverse-beam``, in groups that avoid each other's tokens; ``sample``.
        num_beams: Continuations of each prompt.
        max_new_tokens: Tokens of each at most.
        length_penalty: Scores are log-probabilities divided by the number of tokens to this power.
        num_groups: Of diverse beams; divides ``num_beams``.
        diversity_penalty: Taken off a token's log-probability for each beam of an earlier group that took it at this step.
        temperature: Of samples.
        top_p: Samples are drawn from the likeliest tokens that add up to this.
        seed: Of samples; each prompt has its own stream, by its name.
        rows_at_once: Beams of all prompts in work at most; changes speed, and results not but for the last digits.
    """

    method: Method = "beam"
    num_beams: int = 10
    max_new_tokens: int = 256
    length_penalty: float = 1.0
    num_groups: int = 1
    diversity_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    rows_at_once: int = 80

    @property
    def key(self) -> str:
        """All that outputs depend on, as text."""
        return str(replace(self, rows_at_once=0))


@dataclass(frozen=True, slots=True)
class Continuation:
    """One continuation of a prompt.

    Attributes:
        ids: New token ids, the stop token left out.
        text: Their text.
        logprob: Sum of log-probabilities in nats, the stop token's included.
        num_tokens: Tokens in that sum.
        score: What beams are ranked by.
        ended: Whether it stopped by itself.
        seconds: That writing it took: its share of what was done for several at once.
    """

    ids: list[int]
    text: str
    logprob: float
    num_tokens: int
    score: float
    ended: bool
    seconds: float = field(default=0.0, compare=False)


def stream(search: Search, name: str) -> int:
    """The seed of a prompt's own samples, which depends on no other prompt."""
    digest = hashlib.sha256(f"{search.seed} {name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # what torch and vLLM take as a seed


class Beams:
    """The search over one prompt, or one group of it. Source: ``GenerationMixin._beam_search`` of transformers 5.23."""

    def __init__(self, width: int, search: Search, stop_ids: frozenset[int]) -> None:
        self.width, self.search, self.stop_ids = width, search, stop_ids
        self.keep = max(2, 1 + len(stop_ids)) * width
        self.running = np.full(width, _OUT, np.float32)
        self.running[0] = 0
        self.sequences: list[list[int]] = [[] for _ in range(width)]
        # Score, ids, log-probability, and whether by a stop token.
        self.finished: list[tuple[np.float32, list[int], np.float32, bool]] = []
        self.done = False
        self.length = 0

    def advance(self, values_BL: np.ndarray, tokens_BL: np.ndarray) -> list[int]:
        """Takes the next token of every beam; returns the beams that they go on from, shape (B,).

        Args:
            values_BL: Log-probabilities of the likeliest tokens of each beam.
            tokens_BL: The tokens.
        """
        total = (values_BL + self.running[:, None]).ravel()
        best = np.argsort(-total, kind="stable")[: self.keep]
        parents, tokens, logprobs = best // values_BL.shape[1], tokens_BL.ravel()[best], total[best]
        self.length += 1
        stopped = np.isin(tokens, list(self.stop_ids))
        full = self.length == self.search.max_new_tokens
        ended = np.ones_like(stopped) if full else stopped
        sequences = [[*self.sequences[p], t] for p, t in zip(parents.tolist(), tokens.tolist(), strict=True)]
        penalty = np.float32(self.length**self.search.length_penalty)
        for place in np.flatnonzero(ended[: self.width]).tolist():  # the rest is there for running beams only
            score = logprobs[place] / penalty
            if logprobs[place] > _OUT / 2:
                self.finished.append((score, sequences[place], logprobs[place], bool(stopped[place])))
        self.finished.sort(key=lambda entry: -entry[0])
        del self.finished[self.width :]
        going = np.argsort(-(logprobs + ended * _OUT), kind="stable")[: self.width]
        self.running = (logprobs[going] + ended[going] * _OUT).astype(np.float32)
        self.sequences = [sequences[place] for place in going.tolist()]
        hopeless = len(self.finished) == self.width and self.running[0] / penalty <= self.finished[-1][0]
        self.done = full or hopeless or bool(ended.all())
        return [int(p) for p in parents[going]]

    def results(self) -> list[tuple[float, list[int], float, bool]]:
        """Score, ids, log-probability and whether by a stop token."""
        return [
            (float(score), ids, float(logprob), stopped) for score, ids, logprob, stopped in self.finished
        ]


class Samples:
    """Independent samples of one prompt."""

    def __init__(self, width: int, search: Search, stop_ids: frozenset[int], name: str) -> None:
        self.width, self.search, self.stop_ids = width, search, stop_ids
        self.draw = np.random.default_rng(stream(search, name))
        self.logprobs = np.zeros(width)
        self.sequences: list[list[int]] = [[] for _ in range(width)]
        self.stopped = [False] * width
        self.done = False

    def advance(self, logits_BV: np.ndarray) -> list[int]:
        """Draws the next token of every sample that has not ended; returns the rows themselves."""
        for row in range(self.width):
            if self.stopped[row]:
                self.sequences[row].append(0)  # something has to be fed in its place
                continue
            logits = logits_BV[row if len(logits_BV) > 1 else 0].astype(np.float64)
            plain = logits - logits.max()
            plain -= np.log(np.exp(plain).sum())
            shares = np.exp((plain - plain.max()) / self.search.temperature)
            shares /= shares.sum()
            if self.search.top_p < 1:
                order = np.argsort(-shares, kind="stable")
                sums = np.cumsum(shares[order])
                shares[order[int(np.searchsorted(sums, self.search.top_p)) + 1 :]] = 0
                shares /= shares.sum()
            token = int(
                np.searchsorted(np.cumsum(shares), self.draw.random(), side="right").clip(max=len(shares) - 1)
            )
            self.logprobs[row] += plain[token]
            self.sequences[row].append(token)
            self.stopped[row] = token in self.stop_ids
        self.done = all(self.stopped) or len(self.sequences[0]) == self.search.max_new_tokens
        return list(range(self.width))

    def results(self) -> list[tuple[float, list[int], float, bool]]:
        """As of beams, but in the order in which they were drawn."""
        found = []
        for ids, logprob, stopped in zip(self.sequences, self.logprobs.tolist(), self.stopped, strict=True):
            end = next((i + 1 for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
            found.append((logprob / end**self.search.length_penalty, ids[:end], logprob, stopped))
        return found
