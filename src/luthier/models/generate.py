"""Greedy generation in batches whose output equals that of one row at a time.

Shapes: B rows still running, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from luthier.encoding.batches import collate
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.models.forward import (
    TokenScores,
    base_model,
    forward_inputs,
    head_is_plain,
    name_of_cache,
    token_scores,
)
from luthier.models.fused import fused_lora
from luthier.models.memory import give_back
from luthier.models.sharded import is_sharded, same_everywhere
from luthier.records import Row

# Tokens of a prompt that are read in the time of a decoding step of a small batch, which reads all weights for a few tokens:
# 100 measured on a processor (bf16), and about 150 are what GPUs multiply while they read the weights once.
_TOKENS_OF_A_STEP = 128


@dataclass(frozen=True, slots=True)
class Output:
    """What was generated for a prompt.

    Attributes:
        ids: New token ids, the stop token left out.
        text: Their text.
        ended: Whether it stopped by itself, not at ``max_new_tokens``.
    """

    ids: list[int]
    text: str
    ended: bool


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_pattern: str | None = None,
    batch_size: int = 32,
) -> list[Output]:
    """The most likely continuation of each prompt, token by token; arguments as in ``score_and_generate``."""
    # A token of any kind in the target's place: what the model would rather have there is the first one generated.
    rows = [prompt_row([*prompt, 0]) for prompt in prompts]
    outputs: list[Output | None] = [None] * len(rows)
    for indices, _, found in score_and_generate(
        model,
        tokenizer,
        rows,
        max_new_tokens=max_new_tokens,
        stop_pattern=stop_pattern,
        batch_size=batch_size,
    ):
        for index, output in zip(indices, found, strict=True):
            outputs[index] = output
    return [output for output in outputs if output is not None]


@torch.no_grad()
def score_and_generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: TextTokenizer,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    stop_pattern: str | None = None,
    batch_size: int = 32,
    share_prefixes: bool = True,
    finished: Collection[int] = (),
) -> Iterator[tuple[list[int], TokenScores, list[Output]]]:
    """Scores of each row's target, and what the model itself writes in its place, from one pass over the prompt.

    Rows whose prompts begin with the same tokens, such as lines of one file with its project before them, go through the
    model once for what they share, where that saves more than the smaller batches cost: the keys and values of the longest
    are those of all others up to where they part.

    A model whose weights are in shards goes through this on all of its processes together.

    A model that keeps a state instead of keys and values takes a second pass over the prompts, padded on the left: a state
    cannot be cut back to the prompt's end.

    Rows of similar length share a batch. Padding stands behind the rows; keys and values of targets and padding are
    masked out, and positions go on from each prompt's own end, so that the company of a row changes nothing. A row
    that has ended leaves the batch.

    Args:
        model: In any mode; it is in evaluation mode meanwhile.
        tokenizer: The model's.
        rows: Each with a prompt of at least one token: exactly what training had before the target.
        max_new_tokens: Where a row is cut off.
        stop_pattern: A row ends once this matches its text (the text keeps the match).
        batch_size: Rows at once.
        share_prefixes: Whether to compute shared beginnings once; changes speed, never the result.
        finished: Indices of rows that need not go through the model again. Batches stay those of all rows: one is passed over
            if all of it is finished.

    Yields:
        Indices of some rows, the scores of their trained tokens, and their outputs.
    """
    if is_sharded(model):
        # peft would pass by the call that gathers weights; adapters are in the layers.
        model = base_model(model)
    was_training = model.training
    model.eval()
    stop = re.compile(stop_pattern) if stop_pattern else None
    longest = max((len(row.input_ids) for row in rows), default=0) + max_new_tokens
    window = getattr(base_model(model).config.get_text_config(), "sliding_window", None)
    if window and longest > window:
        batch_size = 1  # a window counts places in the cache, masked ones included; alone, a row has none
    plain = not head_is_plain(model, collate([prompt_row([1, 1])], 0).to(base_model(model).device))
    alone = list(range(len(rows)))
    try:
        with fused_lora(model):
            if share_prefixes and not (window or base_model(model)._is_stateful or is_sharded(model)):
                families, alone = _families(rows, batch_size, max_new_tokens)
                for family in families:
                    yield from _from_one_prefix(
                        model, tokenizer, rows, family, plain, max_new_tokens, stop, batch_size, finished
                    )
            order = sorted(alone, key=lambda i: -rows[i].num_prompt_tokens)
            for indices in _unfinished(order, batch_size, finished):
                batch = collate([rows[i] for i in indices], pad_id=0).to(base_model(model).device)
                cache = DynamicCache(config=base_model(model).config)
                lengths_B = torch.tensor(
                    [rows[i].num_prompt_tokens for i in indices], device=batch.input_ids_BT.device
                )
                if base_model(model)._is_stateful:
                    scores = token_scores(model, batch, plain=plain)
                    mask_BT, _ = read_prompts(model, [rows[i] for i in indices], cache)
                else:
                    cache.activate_past_recording()  # for layers with a window, so that they can be cut back below
                    scores = token_scores(model, batch, plain=plain, cache=cache)
                    cache.crop(int(lengths_B.max()) - batch.input_ids_BT.shape[1])  # by so many tokens
                    mask_BT = (
                        torch.arange(int(lengths_B.max()), device=lengths_B.device) < lengths_B[:, None]
                    ).long()
                firsts_B = scores.best_N[
                    torch.searchsorted(scores.rows_N, torch.arange(len(indices), device=lengths_B.device))
                ]
                firsts_B = same_everywhere(model, firsts_B)
                outputs = continue_prompts(
                    model, tokenizer, cache, mask_BT, lengths_B, firsts_B, max_new_tokens, stop
                )
                del cache, batch
                give_back()
                yield indices, scores, outputs
    finally:
        model.train(was_training)


def _unfinished(order: Sequence[int], batch_size: int, finished: Collection[int]) -> list[list[int]]:
    """The rows in batches, without those batches that are finished as a whole."""
    gone = set(finished)
    batches = (list(order[start : start + batch_size]) for start in range(0, len(order), batch_size))
    return [batch for batch in batches if not gone.issuperset(batch)]


def _families(rows: Sequence[Row], batch_size: int, max_new_tokens: int) -> tuple[list[list[int]], list[int]]:
    """Rows that share most of their prompts, and those that are better off among all others.

    In the order of their ids prompts that begin alike are neighbours; one joins the one before it if at least three
    quarters of it are the same. A family has batches of its own, so that the steps of its last one, which may hold a few
    rows only, come on top, and a pass for what is shared: what it saves has to be worth them.
    """
    prompts = [row.input_ids[: row.num_prompt_tokens] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: prompts[i].astype(">i4").tobytes())
    families: list[list[int]] = []
    for place, index in enumerate(order):
        before = prompts[order[place - 1]]
        if place and _num_shared(before, prompts[index]) >= 0.75 * len(prompts[index]):
            families[-1].append(index)
        else:
            families.append([index])
    together: list[list[int]] = []
    alone: list[int] = []
    room = min(batch_size, len(rows))
    for family in families:
        _, shared = _with_longest(rows, family)
        num_saved = sum(shared.values()) - max(shared.values())
        num_steps = 1 + max_new_tokens * (math.ceil(len(family) / room) - len(family) / room)
        if num_saved > num_steps * _TOKENS_OF_A_STEP:
            together.append(family)
        else:
            alone += family
    return together, alone


def _with_longest(rows: Sequence[Row], family: Sequence[int]) -> tuple[np.ndarray, dict[int, int]]:
    """Ids of the row with the longest prompt, and how many of them each row begins with.

    At least the last token of a prompt is left out, since what the model says behind it is asked for.
    """
    ids = rows[max(family, key=lambda i: rows[i].num_prompt_tokens)].input_ids
    return ids, {i: min(_num_shared(rows[i].input_ids, ids), rows[i].num_prompt_tokens - 1) for i in family}


def _num_shared(first: np.ndarray, second: np.ndarray) -> int:
    """Tokens that two rows begin with alike."""
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if len(different) else size


def _from_one_prefix(
    model: PreTrainedModel | PeftModel,
    tokenizer: TextTokenizer,
    rows: Sequence[Row],
    family: Sequence[int],
    plain: bool,
    max_new_tokens: int,
    stop: re.Pattern[str] | None,
    batch_size: int,
    finished: Collection[int],
) -> Iterator[tuple[list[int], TokenScores, list[Output]]]:
    """``score_and_generate`` of rows that begin alike: the longest goes through the model, of the others only what is their own."""
    base = base_model(model)
    trunk, shared = _with_longest(rows, family)
    order = sorted(family, key=lambda i: shared[i] - len(rows[i].input_ids))
    batches = _unfinished(order, batch_size, finished)
    if not batches:
        return
    size = max(shared.values())
    prefix = DynamicCache(config=base.config)
    batch = collate([prompt_row(trunk[:size].tolist())], pad_id=0).to(base.device)
    base.base_model(**forward_inputs(base.base_model, batch, prefix))
    for indices in batches:
        own = [
            replace(
                rows[i],
                input_ids=rows[i].input_ids[shared[i] :],
                loss_weights=rows[i].loss_weights[shared[i] :],
                num_prompt_tokens=rows[i].num_prompt_tokens - shared[i],
            )
            for i in indices
        ]
        cache = DynamicCache(config=base.config)
        layers: list[Any] = list(prefix.layers)  # of plain attention: others are not reached by a prefix
        for place, layer in enumerate(layers):
            keys, values = (kept.expand(len(indices), -1, -1, -1) for kept in (layer.keys, layer.values))
            cache.update(keys, values, place)
        batch = collate(own, pad_id=0).to(base.device)
        shared_B = torch.tensor([shared[i] for i in indices], device=base.device)
        seen_BT = (torch.arange(size, device=base.device) < shared_B[:, None]).long()
        batch = replace(
            batch,
            attention_mask_BT=torch.cat([seen_BT, batch.attention_mask_BT], dim=1),
            position_ids_BT=batch.position_ids_BT + shared_B[:, None],
            left_padded=True,  # the mask counts: between a row's own tokens and what it shares lies what it does not
        )
        scores = token_scores(model, batch, plain=plain, cache=cache)
        own_B = torch.tensor([row.num_prompt_tokens for row in own], device=base.device)
        longest = int(own_B.max())
        cache.crop(longest - batch.input_ids_BT.shape[1])
        mask_BT = torch.cat(
            [seen_BT, (torch.arange(longest, device=base.device) < own_B[:, None]).long()], dim=1
        )
        firsts_B = scores.best_N[
            torch.searchsorted(scores.rows_N, torch.arange(len(indices), device=base.device))
        ]
        outputs = continue_prompts(
            model, tokenizer, cache, mask_BT, shared_B + own_B, firsts_B, max_new_tokens, stop
        )
        del cache, batch
        give_back()
        yield indices, scores, outputs


def read_prompts(
    model: PreTrainedModel | PeftModel, rows: Sequence[Row], cache: DynamicCache
) -> tuple[Tensor, Tensor]:
    """Fills the cache with the rows' prompts, padded on the left.

    Returns:
        1 where the cache has seen a token and 0 for padding, shape (B, T); and logits of the next tokens, shape (B, V).
    """
    prompts = [
        replace(
            row,
            input_ids=row.input_ids[: row.num_prompt_tokens],
            loss_weights=row.loss_weights[: row.num_prompt_tokens],
        )
        for row in rows
    ]
    base = base_model(model)
    batch = collate(prompts, pad_id=0, side="left").to(base.device)
    few_logits = (
        {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
    )
    logits_BV = model(**forward_inputs(base, batch, cache), **few_logits).logits[:, -1]
    return batch.attention_mask_BT, logits_BV


def _most_likely(logits_BV: Tensor, rows: Sequence[int], new_ids: Sequence[Sequence[int]]) -> Tensor:
    return logits_BV.argmax(-1)


def continue_prompts(
    model: PreTrainedModel | PeftModel,
    tokenizer: TextTokenizer,
    cache: DynamicCache,
    mask_BT: Tensor,
    lengths_B: Tensor,
    next_B: Tensor,
    max_new_tokens: int,
    stop: re.Pattern[str] | None,
    choose: Callable[[Tensor, Sequence[int], Sequence[Sequence[int]]], Tensor] = _most_likely,
) -> list[Output]:
    """The outputs of rows whose prompts are in the cache and whose first new tokens are known.

    Args:
        model: In evaluation mode.
        tokenizer: The model's.
        cache: With the prompts.
        mask_BT: 1 where the cache has seen a token, 0 for padding.
        lengths_B: Tokens of each prompt.
        next_B: First new token of each row.
        max_new_tokens: Where a row is cut off.
        stop: A row ends once this matches its text.
        choose: The next tokens from the logits of the running rows, their numbers, and what each row has written.
    """
    takes_positions = "position_ids" in inspect.signature(base_model(model).forward).parameters
    cache_name = name_of_cache(base_model(model))
    running = list(range(len(lengths_B)))
    new_ids: list[list[int]] = [[] for _ in running]
    ended = [False] * len(running)
    for length in range(1, max_new_tokens + 1):
        going = []
        for place, (row, token) in enumerate(zip(running, next_B.tolist(), strict=True)):
            if token in tokenizer.stop_ids:
                ended[row] = True
                continue
            new_ids[row].append(token)
            if stop and stop.search(tokenizer.decode(new_ids[row])):
                ended[row] = True
            else:
                going.append(place)
        if not going or length == max_new_tokens:
            break
        if len(going) < len(running):
            kept = torch.tensor(going, device=lengths_B.device)
            cache.reorder_cache(kept)  # type: ignore[arg-type] # any integers will do
            mask_BT, next_B, lengths_B = mask_BT[kept], next_B[kept], lengths_B[kept]
            running = [running[place] for place in going]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(running), 1)], dim=1)
        inputs: dict[str, Any] = {cache_name: cache, "use_cache": True}
        # Of states alone nothing is left that a mask could hide.
        if cache_name == "past_key_values" and not mask_BT.all():
            inputs["attention_mask"] = mask_BT
        if takes_positions:
            inputs["position_ids"] = (lengths_B + length - 1)[:, None]
        logits_BV = model(input_ids=next_B[:, None], **inputs).logits[:, -1]
        next_B = same_everywhere(model, choose(logits_BV, running, new_ids))
    return [Output(ids, tokenizer.decode(ids), stopped) for ids, stopped in zip(new_ids, ended, strict=True)]


def prompt_row(ids: Sequence[int]) -> Row:
    """A row whose only trained token is its last one."""
    weights = np.zeros(len(ids), dtype=np.float32)
    weights[-1] = 1
    return Row(
        id="", group="", input_ids=np.array(ids, dtype=np.int32), loss_weights=weights,
        span_ids=np.zeros(len(ids), dtype=np.int16), span_names=[""],
        num_prompt_tokens=len(ids) - 1, target="", target_bytes=0,
    )  # fmt: skip
