"""Several continuations of each prompt: beam search, diverse beams or samples, of many prompts at once.

Keys and values of a prompt are kept once for all its beams; a prompt whose search has ended makes room for the next one at
once. Beam search takes the decisions of transformers' own, one prompt at a time.

Shapes: P prompts in work, B beams of each, R = P x B rows, H heads, K heads of keys and values, G = H / K, D width of a head,
T tokens of the longest prompt in work, S new tokens so far, V vocabulary, L candidates of a row, C tokens of a chunk.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.models import fused, packed
from luthier.models.forward import base_model
from luthier.models.memory import give_back

NAME = "luthier_beams"
Method = Literal["beam", "diverse-beam", "sample"]

_OUT = np.float32(-1e9)  # the score of what may not be chosen, as in transformers
_CHUNK = 64


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


class _Beams:
    """The search over one prompt, or one group of it. Source: ``GenerationMixin._beam_search`` of transformers 5.23."""

    def __init__(self, width: int, search: Search, stop_ids: frozenset[int]) -> None:
        self.width, self.search, self.stop_ids = width, search, stop_ids
        self.keep = max(2, 1 + len(stop_ids)) * width
        self.running = np.full(width, _OUT, np.float32)
        self.running[0] = 0
        self.sequences: list[list[int]] = [[] for _ in range(width)]
        self.finished: list[
            tuple[np.float32, list[int], np.float32, bool]
        ] = []  # score, ids, logprob, by a stop token
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


class _Samples:
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


class _Prompt:
    """A prompt in work: its searches, one a group."""

    def __init__(self, index: int, length: int, search: Search, stop_ids: frozenset[int], name: str) -> None:
        self.index, self.length, self.search = index, length, search
        self.first = 0  # column of the new tokens' keys and values that its own begin at
        self.seconds = 0.0  # of reading it, and its share of each step
        self.searches: list[_Beams] | list[_Samples]
        if search.method == "sample":
            self.searches = [_Samples(search.num_beams, search, stop_ids, name)]
        else:
            groups = search.num_groups if search.method == "diverse-beam" else 1
            self.searches = [_Beams(search.num_beams // groups, search, stop_ids) for _ in range(groups)]

    @property
    def done(self) -> bool:
        return all(each.done for each in self.searches)

    def tokens(self) -> list[int]:
        """The newest token of each beam."""
        return [ids[-1] if ids else 0 for each in self.searches for ids in each.sequences]

    def advance(self, logits_BV: Tensor) -> list[int]:
        """One step; returns the row of the prompt's own that each row goes on from."""
        if isinstance(self.searches[0], _Samples):
            return self.searches[0].advance(logits_BV.float().cpu().numpy())
        width = self.searches[0].width
        # Penalties only lower tokens: the best ones are among so many more of the likeliest.
        most = min(
            self.searches[0].keep + self.search.num_beams * (len(self.searches) > 1), logits_BV.shape[1]
        )
        values_BL, tokens_BL = (t.cpu().numpy() for t in likeliest(logits_BV, most))
        if len(values_BL) == 1:  # of the prompt itself
            values_BL, tokens_BL = (np.repeat(a, self.search.num_beams, 0) for a in (values_BL, tokens_BL))
        parents: list[int] = []
        taken: list[int] = []
        for number, each in enumerate(self.searches):
            assert isinstance(each, _Beams)
            rows = slice(number * width, (number + 1) * width)
            if each.done:
                parents += range(rows.start, rows.stop)
                continue
            values = values_BL[rows]
            if taken:
                counts = np.array([taken.count(t) for t in tokens_BL[rows].ravel().tolist()], np.float32)
                values = values - np.float32(self.search.diversity_penalty) * counts.reshape(values.shape)
                order = np.argsort(-values, axis=1, kind="stable")
                values = np.take_along_axis(values, order, 1)
                parents += [
                    rows.start + p
                    for p in each.advance(values, np.take_along_axis(tokens_BL[rows], order, 1))
                ]
            else:
                parents += [rows.start + p for p in each.advance(values, tokens_BL[rows])]
            taken += [ids[-1] for ids in each.sequences]
        return parents


class _Memory:
    """Keys and values of the prompts in work, and of what their beams have written; the attention of one step over both."""

    def __init__(self, num_layers: int, search: Search) -> None:
        self.width = search.num_beams
        self.prompts: list[list[Tensor]] = [
            [] for _ in range(num_layers)
        ]  # keys and values, (P, K, T, D) each
        self.written: list[list[Tensor]] = [[] for _ in range(num_layers)]  # ... (R, K, S, D) each
        self.hidden_PT = torch.empty(0, 0, dtype=torch.bool)
        self.hidden_RS = torch.empty(0, 0, dtype=torch.bool)
        self.parents_R: Tensor | None = None

    def put(self, slot: int, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """A prompt's keys and values (1, K, T, D) a layer, in the place of another or as a new last one."""
        length = layers[0][0].shape[2]
        new = slot == len(self.hidden_PT)
        room = max(length, self.hidden_PT.shape[1])
        hidden = torch.ones(1, room, dtype=torch.bool, device=layers[0][0].device)
        hidden[:, :length] = False
        self.hidden_PT = functional.pad(
            self.hidden_PT.to(hidden.device), (0, room - self.hidden_PT.shape[1]), value=True
        )
        if new:
            self.hidden_PT = torch.cat([self.hidden_PT, hidden])
        else:
            self.hidden_PT[slot] = hidden[0]
        for held, found in zip(self.prompts, layers, strict=True):
            for side in range(2):
                padded = functional.pad(found[side], (0, 0, 0, room - length))
                if len(held) <= side:
                    held.append(padded)
                    continue
                if held[side].shape[2] < room:
                    held[side] = functional.pad(held[side], (0, 0, 0, room - held[side].shape[2]))
                if new:
                    held[side] = torch.cat([held[side], padded])
                else:
                    held[side][slot] = padded[0]
        if new and self.written[0]:
            for sides in self.written:
                sides[:] = [functional.pad(t, (0, 0, 0, 0, 0, 0, 0, self.width)) for t in sides]

    def keep(self, slots: Sequence[int]) -> None:
        """Only these prompts go on."""
        chosen = torch.tensor(slots, device=self.hidden_PT.device)
        rows = (chosen[:, None] * self.width + torch.arange(self.width, device=chosen.device)).ravel()
        self.hidden_PT = self.hidden_PT[chosen]
        for held, sides in zip(self.prompts, self.written, strict=True):
            held[:] = [t[chosen] for t in held]
            sides[:] = [t[rows] for t in sides]

    def begin(self, prompts: Sequence[_Prompt], parents: Sequence[int] | None) -> int:
        """Before a step: which column each prompt's new tokens begin at, and the row that each row goes on from.

        Returns:
            Columns before the new one.
        """
        columns = self.written[0][0].shape[2] if self.written[0] else 0
        if columns and (spare := min(p.first for p in prompts)):  # what no prompt in work has written
            for sides in self.written:
                sides[:] = [t[:, :, spare:] for t in sides]
            for prompt in prompts:
                prompt.first -= spare
            columns -= spare
        firsts_R = torch.tensor(
            [p.first for p in prompts for _ in range(self.width)], device=self.hidden_PT.device
        )
        self.hidden_RS = torch.arange(columns + 1, device=firsts_R.device) < firsts_R[:, None]
        own = parents is None or list(parents) == list(range(len(parents)))
        self.parents_R = None if own else torch.tensor(parents, device=firsts_R.device)
        return columns

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of one new token a row, shape (R, 1, H, D), over its prompt and what its beam has written."""
        sides = self.written[layer]
        if sides:
            old = sides if self.parents_R is None else [t.index_select(0, self.parents_R) for t in sides]
            sides[:] = [torch.cat([past, new], 2) for past, new in zip(old, (key, value), strict=True)]
        else:
            sides[:] = [key, value]
        rows, heads, _, width = query.shape
        prompts, num_keys = len(self.hidden_PT), key.shape[1]
        group = heads // num_keys
        keys_PKTD, values_PKTD = self.prompts[layer]
        q = query.view(prompts, self.width, num_keys, group, width)
        q_far = q.transpose(1, 2).reshape(prompts, num_keys, self.width * group, width)
        far = (q_far @ keys_PKTD.transpose(2, 3)).float() * scaling
        far = far.masked_fill(self.hidden_PT[:, None, None], float("-inf"))
        far = far.view(prompts, num_keys, self.width, group, -1)
        near = (q.reshape(rows, num_keys, group, width) @ sides[0].transpose(2, 3)).float() * scaling
        near = near.masked_fill(self.hidden_RS[:, None, None], float("-inf"))
        near = near.view(prompts, self.width, num_keys, group, -1).transpose(1, 2)
        weights = torch.cat([far, near], -1).softmax(-1).to(value.dtype)
        room = keys_PKTD.shape[2]
        out = weights[..., :room].reshape(prompts, num_keys, self.width * group, room) @ values_PKTD
        out = out.view(prompts, num_keys, self.width, group, width).transpose(1, 2)
        own = weights[..., room:].transpose(1, 2).reshape(rows, num_keys, group, -1) @ sides[1]
        total: Tensor = out.reshape(rows, 1, heads, width) + own.view(rows, 1, heads, width)
        return total


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    beams: _Memory | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """One new token of each beam over prompt and beam; transformers' own attention where prompts are read.

    Args:
        module: The layer.
        query: Shape (R, H, 1, D).
        key: Shape (R, K, 1, D).
        value: Shape (R, K, 1, D).
        attention_mask: Only looked at without ``beams``.
        dropout: Zero, since nothing is trained.
        scaling: Of the scores; ``D ** -0.5`` if None.
        beams: What was read and written so far.
        others: For transformers' own.
    """
    if beams is None:
        usual: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
        return usual
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key = query.to(value.dtype), key.to(value.dtype)
    layer: Any = module
    return beams.attend(layer.layer_idx, query, key, value, scaling), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def can_share(model: PreTrainedModel) -> str | None:
    """Why beams of this model cannot share their prompt; None if they can."""
    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "attention has a window, which would have to be moved along"
    return (
        packed.can_pack(model)
        if model.device.type == "cpu" or model.device.type == "cuda"
        else "the device is untried"
    )


def stream(search: Search, name: str) -> int:
    """The seed of a prompt's own samples, which depends on no other prompt."""
    digest = hashlib.sha256(f"{search.seed} {name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # what torch and vLLM take as a seed


@torch.inference_mode()
def continuations(
    model: PreTrainedModel | PeftModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[int]],
    search: Search,
    names: Sequence[str] | None = None,
) -> Iterator[tuple[int, list[Continuation]]]:
    """The continuations of each prompt, best first, as each is found.

    A model whose beams cannot share a prompt goes through transformers' ``generate``, one prompt at a time.

    Args:
        model: In any mode; it is in evaluation mode meanwhile.
        tokenizer: The model's.
        prompts: Token ids, at least one each.
        search: How.
        names: What each prompt's samples are drawn by, whatever stands beside it; its place if not given.

    Raises:
        UserError: Diverse beams are wanted of such a model.

    Yields:
        Index of a prompt, and its continuations: ``num_beams`` of them but where fewer were found.
    """
    was_training = model.training
    names = [str(place) for place in range(len(prompts))] if names is None else names
    model.eval()
    try:
        if why_not := can_share(base_model(model)):
            if search.method == "diverse-beam":
                raise UserError(
                    f"diverse beams need attention of our own, which this model does not take: {why_not}",
                    "recipe key repair.method",
                    "set repair.method=beam or repair.method=sample",
                )
            for index, prompt in enumerate(prompts):
                yield index, one_at_a_time(model, tokenizer, prompt, search, names[index])
            return
        with _in_use(model):
            yield from _shared(model, tokenizer, prompts, search, names)
    finally:
        model.train(was_training)
        give_back()


def _shared(
    model: PreTrainedModel | PeftModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[int]],
    search: Search,
    names: Sequence[str],
) -> Iterator[tuple[int, list[Continuation]]]:
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # the longest is taken first
    most = max(1, search.rows_at_once // search.num_beams)
    memory = _Memory(base_model(model).config.get_text_config().num_hidden_layers, search)
    working: list[_Prompt] = []
    parents: list[int] = []
    while waiting or working:
        slots = [i for i, prompt in enumerate(working) if prompt.done]
        slots += list(range(len(working), most))
        columns = memory.written[0][0].shape[2] if memory.written[0] else 0
        while slots and waiting:
            began = time.monotonic()
            prompt, layers, own_parents = _read(
                model, prompts, waiting.pop(), search, tokenizer.stop_ids, names
            )
            prompt.first, prompt.seconds = columns, time.monotonic() - began
            if prompt.done:
                yield prompt.index, _results(prompt, tokenizer)
                continue
            slot = slots.pop(0)
            memory.put(slot, layers)
            if slot == len(working):
                working.append(prompt)
                parents += own_parents
            else:
                working[slot] = prompt
            # What the slot held before is hidden: any row will do.
            parents[slot * search.num_beams : (slot + 1) * search.num_beams] = range(
                slot * search.num_beams, (slot + 1) * search.num_beams
            )
        if gone := {i for i, prompt in enumerate(working) if prompt.done}:
            kept = [i for i in range(len(working)) if i not in gone]
            if not kept:
                return
            memory.keep(kept)
            parents = [
                place * search.num_beams + parents[i * search.num_beams + j] % search.num_beams
                for place, i in enumerate(kept) for j in range(search.num_beams)
            ]  # fmt: skip
            working = [working[i] for i in kept]
        if not working:
            return
        began = time.monotonic()
        logits_RV = _step(model, memory, working, parents)
        parents = []
        for slot, prompt in enumerate(working):
            rows = slice(slot * search.num_beams, (slot + 1) * search.num_beams)
            parents += [rows.start + p for p in prompt.advance(logits_RV[rows])]
        share = (time.monotonic() - began) / len(working)
        for prompt in working:
            prompt.seconds += share
            if prompt.done:
                yield prompt.index, _results(prompt, tokenizer)


def _read(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    index: int,
    search: Search,
    stop_ids: frozenset[int],
    names: Sequence[str],
) -> tuple[_Prompt, list[tuple[Tensor, Tensor]], list[int]]:
    """A prompt that was read, with its first tokens chosen; its keys and values a layer; the rows that rows go on from."""
    base = base_model(model)
    cache = DynamicCache(config=base.config)
    ids = torch.tensor([list(prompts[index])], device=base.device)
    hidden_1TD = base.base_model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    prompt = _Prompt(index, ids.shape[1], search, stop_ids, names[index])
    parents = prompt.advance(_logits(base, hidden_1TD[:, -1]))
    held: list[Any] = list(cache.layers)
    return prompt, [(layer.keys, layer.values) for layer in held], parents


def _step(
    model: PreTrainedModel | PeftModel, memory: _Memory, working: Sequence[_Prompt], parents: Sequence[int]
) -> Tensor:
    """Logits of the next token of every row, shape (R, V)."""
    base = base_model(model)
    columns = memory.begin(working, parents)
    tokens = torch.tensor([token for prompt in working for token in prompt.tokens()], device=base.device)
    places = torch.tensor(
        [p.length + columns - p.first for p in working for _ in range(memory.width)], device=base.device
    )
    inputs: dict[str, Any] = {"input_ids": tokens[:, None], "use_cache": False, "beams": memory}
    # A mask of four dimensions is what transformers hands on as it is.
    inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=base.device)
    if "position_ids" in inspect.signature(base.base_model.forward).parameters:
        inputs["position_ids"] = places[:, None]
    return _logits(base, base.base_model(**inputs).last_hidden_state[:, -1])


def _logits(base: PreTrainedModel, hidden_RD: Tensor) -> Tensor:
    head: Any = base.get_output_embeddings()
    logits: Tensor = head(hidden_RD.to(getattr(base, "product_dtype", head.weight.dtype)))
    return logits


def likeliest(logits_RV: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities (fp32) and ids of the likeliest tokens of each row, best first, shape (R, L) each.

    The best tokens lie in the chunks with the best maxima: the whole vocabulary is never sorted.
    """
    rows, vocabulary = logits_RV.shape
    total_R1 = torch.logsumexp(logits_RV.float(), -1, keepdim=True)
    chunks = -(-vocabulary // _CHUNK)
    if chunks <= 2 * most:
        values, tokens = logits_RV.float().topk(most)
        return values - total_R1, tokens
    padded = functional.pad(logits_RV, (0, chunks * _CHUNK - vocabulary), value=float("-inf"))
    chunked = padded.view(rows, chunks, _CHUNK)
    best_RL = chunked.amax(-1).topk(most).indices
    found = chunked.gather(1, best_RL[..., None].expand(-1, -1, _CHUNK)).reshape(rows, -1).float()
    values, places = found.topk(most)
    tokens = best_RL.gather(1, places // _CHUNK) * _CHUNK + places % _CHUNK
    return values - total_R1, tokens


def _results(prompt: _Prompt, tokenizer: TextTokenizer) -> list[Continuation]:
    entries = [entry for each in prompt.searches for entry in each.results()]
    entries.sort(key=lambda entry: -entry[0])
    found = []
    for score, ids, logprob, stopped in entries:
        kept = ids[:-1] if stopped else ids
        text, seconds = tokenizer.decode(kept), prompt.seconds / len(entries)
        found.append(Continuation(kept, text, logprob, len(ids), score, stopped, seconds))
    return found


def one_at_a_time(
    model: PreTrainedModel | PeftModel,
    tokenizer: TextTokenizer,
    prompt: Sequence[int],
    search: Search,
    name: str = "",
) -> list[Continuation]:
    """The continuations of one prompt by transformers' own ``generate``: for any model, and the reference for ours."""
    base = base_model(model)
    began = time.monotonic()
    ids = torch.tensor([list(prompt)], device=base.device)
    stops = sorted(tokenizer.stop_ids)
    how: dict[str, Any] = {
        "num_beams": search.num_beams,
        "length_penalty": search.length_penalty,
        "do_sample": False,
    }
    if search.method == "sample":
        torch.manual_seed(stream(search, name))
        how = {"do_sample": True, "temperature": search.temperature, "top_p": search.top_p, "top_k": 0}
    asked: Any = model
    outputs = asked.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=search.max_new_tokens,
        num_return_sequences=search.num_beams, return_dict_in_generate=True, output_logits=True,
        eos_token_id=stops, pad_token_id=stops[0], **how,
    )  # fmt: skip
    new = outputs.sequences[:, ids.shape[1] :]
    steps = asked.compute_transition_scores(
        outputs.sequences, outputs.logits, getattr(outputs, "beam_indices", None), normalize_logits=True
    )
    found = []
    for tokens, scores in zip(new.tolist(), steps.tolist(), strict=True):
        end = next((i + 1 for i, token in enumerate(tokens) if token in tokenizer.stop_ids), len(tokens))
        stopped = bool(end) and tokens[end - 1] in tokenizer.stop_ids
        kept = tokens[: end - 1] if stopped else tokens[:end]
        logprob = float(sum(scores[:end]))
        found.append(
            Continuation(
                kept,
                tokenizer.decode(kept),
                logprob,
                end,
                logprob / max(1, end) ** search.length_penalty,
                stopped,
                (time.monotonic() - began) / len(outputs.sequences),
            )
        )
    return sorted(found, key=lambda one: -one.score)


@contextmanager
def _in_use(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """The model with its adapter as one product, and attention that knows of beams."""
    base = base_model(model)
    config = base.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        with fused.fused_lora(model):
            yield
    finally:
        config._attn_implementation = before
