"""Greedy generation in batches whose output equals that of one row at a time.

Shapes: B rows still running, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.models.forward import base_model


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


@torch.no_grad()
def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_pattern: str | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[Output]:
    """The most likely continuation of each prompt, token by token.

    Prompts of similar length share a batch, padded on the left by length; a row that has ended leaves the batch, so
    that nothing is computed for it any more.

    Args:
        model: In any mode; it is in evaluation mode meanwhile.
        tokenizer: The model's.
        prompts: Token ids, each at least one: exactly what training had before the target.
        max_new_tokens: Where a row is cut off.
        stop_pattern: A row ends once this matches its text (the text keeps the match).
        batch_size: Rows at once.
        progress: Called with the number of rows that have ended.

    Returns:
        One output a prompt, in their order.
    """
    was_training = model.training
    model.eval()
    stop = re.compile(stop_pattern) if stop_pattern else None
    outputs: list[Output | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    done = 0
    try:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = _generate_batch(model, tokenizer, [prompts[i] for i in rows], max_new_tokens, stop)
            for row, output in zip(rows, batch, strict=True):
                outputs[row] = output
            done += len(rows)
            if progress:
                progress(done)
    finally:
        model.train(was_training)
    return [output for output in outputs if output is not None]


def _generate_batch(
    model: PreTrainedModel | PeftModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: re.Pattern[str] | None,
) -> list[Output]:
    base = base_model(model)
    device = base.device
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    ids_BT = torch.tensor([[0] * pad + list(p) for pad, p in zip(pads, prompts, strict=True)], device=device)
    mask_BT = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads], device=device)
    takes_positions = "position_ids" in inspect.signature(base.forward).parameters
    cache = DynamicCache(config=base.config)
    running = list(range(len(prompts)))
    new_ids: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    step_ids = ids_BT
    for _ in range(max_new_tokens):
        inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        if any(pads[i] for i in running):
            inputs["attention_mask"] = mask_BT
        if takes_positions:
            inputs["position_ids"] = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -step_ids.shape[1] :]
        next_B = model(input_ids=step_ids, **inputs).logits[:, -1].argmax(-1)
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
        if not going:
            break
        if len(going) < len(running):
            kept = torch.tensor(going, device=device)
            cache.batch_select_indices(kept)
            mask_BT, next_B = mask_BT[kept], next_B[kept]
            running = [running[place] for place in going]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(running), 1)], dim=1)
        step_ids = next_B[:, None]
    return [
        Output(ids, tokenizer.decode(ids), stopped) for ids, stopped in zip(new_ids, ended, strict=True)
    ]
