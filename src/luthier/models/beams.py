"""Several continuations of each prompt: beam search, diverse beams or samples, of many prompts at once.

Keys and values of a prompt are kept once for all its beams; a prompt whose search has ended makes room for the next one at
once. Beam search takes the decisions of transformers' own, one prompt at a time.

Shapes: B beams of a prompt, R rows (all beams of the prompts in work), T tokens of a prompt, D width, V vocabulary,
L candidates of a row.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.models import fused, packed
from luthier.models.beam_cache import NAME, BeamCache
from luthier.models.forward import base_model
from luthier.models.memory import give_back
from luthier.models.search import Beams, Continuation, Samples, Search, stream

_CHUNK = 64  # tokens


class _Prompt:
    """A prompt in work: its searches, one a group."""

    def __init__(self, index: int, length: int, search: Search, stop_ids: frozenset[int], name: str) -> None:
        self.index, self.length, self.search = index, length, search
        self.seconds = 0.0  # of reading it, and its share of each step
        self.searches: list[Beams] | list[Samples]
        if search.method == "sample":
            self.searches = [Samples(search.num_beams, search, stop_ids, name)]
        else:
            groups = search.num_groups if search.method == "diverse-beam" else 1
            self.searches = [Beams(search.num_beams // groups, search, stop_ids) for _ in range(groups)]

    @property
    def done(self) -> bool:
        return all(each.done for each in self.searches)

    def tokens(self) -> list[int]:
        """The newest token of each beam."""
        return [ids[-1] if ids else 0 for each in self.searches for ids in each.sequences]

    def advance(self, logits_BV: Tensor) -> list[int]:
        """One step; returns the row of the prompt's own that each row goes on from."""
        if isinstance(self.searches[0], Samples):
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
            assert isinstance(each, Beams)
            rows = slice(number * width, (number + 1) * width)
            if each.done:
                parents += range(rows.start, rows.stop)
                continue
            values, tokens = values_BL[rows], tokens_BL[rows]
            if taken:
                counts = np.array([taken.count(t) for t in tokens.ravel().tolist()], np.float32)
                values = values - np.float32(self.search.diversity_penalty) * counts.reshape(values.shape)
                order = np.argsort(-values, axis=1, kind="stable")
                values, tokens = (np.take_along_axis(a, order, 1) for a in (values, tokens))
            parents += [rows.start + p for p in each.advance(values, tokens)]
            taken += [ids[-1] for ids in each.sequences]
        return parents


def can_share(model: PreTrainedModel) -> str | None:
    """Why beams of this model cannot share their prompt; None if they can."""
    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "attention has a window, which would have to be moved along"
    return packed.can_pack(model)


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
    cache = BeamCache(base_model(model).config.get_text_config().num_hidden_layers, search.num_beams)
    working: list[_Prompt] = []
    parents: list[int] = []
    while waiting or working:
        slots = [i for i, prompt in enumerate(working) if prompt.done]
        slots += list(range(len(working), most))
        while slots and waiting:
            began = time.monotonic()
            prompt, layers = _read(model, prompts, waiting.pop(), search, tokenizer.stop_ids, names)
            prompt.seconds = time.monotonic() - began
            if prompt.done:
                yield prompt.index, _results(prompt, tokenizer)
                continue
            slot = slots.pop(0)
            cache.put(slot, layers)
            working[slot : slot + 1] = [prompt]
            # What the slot held before is hidden: any row will do.
            rows = slice(slot * search.num_beams, (slot + 1) * search.num_beams)
            parents[rows] = range(rows.start, rows.stop)
        if gone := {i for i, prompt in enumerate(working) if prompt.done}:
            kept = [i for i in range(len(working)) if i not in gone]
            if not kept:
                return
            cache.keep(kept)
            parents = [
                place * search.num_beams + parents[i * search.num_beams + j] % search.num_beams
                for place, i in enumerate(kept) for j in range(search.num_beams)
            ]  # fmt: skip
            working = [working[i] for i in kept]
        if not working:
            return
        began = time.monotonic()
        logits_RV = _step(model, cache, working, parents)
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
) -> tuple[_Prompt, list[tuple[Tensor, Tensor]]]:
    """A prompt that was read, with its first tokens chosen; and its keys and values a layer."""
    base = base_model(model)
    cache = DynamicCache(config=base.config)
    ids = torch.tensor([list(prompts[index])], device=base.device)
    hidden_1TD = base.base_model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    prompt = _Prompt(index, ids.shape[1], search, stop_ids, names[index])
    prompt.advance(_logits(base, hidden_1TD[:, -1]))
    held: list[Any] = list(cache.layers)
    return prompt, [(layer.keys, layer.values) for layer in held]


def _step(
    model: PreTrainedModel | PeftModel, cache: BeamCache, working: Sequence[_Prompt], parents: Sequence[int]
) -> Tensor:
    """Logits of the next token of every row, shape (R, V)."""
    base = base_model(model)
    lengths = [p.length + written for p, written in zip(working, cache.begin(parents), strict=True)]
    tokens = torch.tensor([token for prompt in working for token in prompt.tokens()], device=base.device)
    places = torch.tensor(lengths, device=base.device).repeat_interleave(cache.num_beams)
    inputs: dict[str, Any] = {"input_ids": tokens[:, None], "use_cache": False, "beams": cache}
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
        eos_token_id=stops or None, pad_token_id=stops[0] if stops else 0,
        repetition_penalty=1.0,  # the model's own, of its generation_config.json, would count otherwise
        **how,
    )  # fmt: skip
    new = outputs.sequences[:, ids.shape[1] :]
    steps = _logprobs(outputs, new)
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


def _logprobs(outputs: Any, new_BT: Tensor) -> Tensor:
    """Log-probability of each new token, shape (B, T), of what ``generate`` gave.

    transformers' ``compute_transition_scores`` takes the softmax along a strided dimension, where torch adds up one after the
    other: of 49,152 tokens in fp32 it was off by up to 3e-4 nats, always upwards, which put near ties into another order.
    """
    parents_BT = getattr(outputs, "beam_indices", None)
    steps = []
    for step in range(new_BT.shape[1]):  # the search itself may have gone on for longer
        logits = outputs.logits[step]
        if parents_BT is not None:
            logits = logits[parents_BT[:, step].clamp(min=0)]  # -1 stands behind an end
        chosen = logits.gather(1, new_BT[:, step : step + 1]).float()
        steps.append(chosen - torch.logsumexp(logits.float(), -1, keepdim=True))
    return torch.cat(steps, 1)


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
