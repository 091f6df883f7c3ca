"""Generation of many documents: greedy or sampled, kept to a grammar if wanted, with the probability of every token.

Shapes: B rows still running, V vocabulary.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.models.forward import base_model
from luthier.models.fused import fused_lora
from luthier.models.generate import Output, continue_prompts, prompt_row, read_prompts
from luthier.models.memory import give_back
from luthier.ontology.constrain import State, TokenChoice

# Most likely tokens among which the nucleus nearly always lies, so that the vocabulary need not be sorted.
_NUCLEUS = 1024
# Third word of the generator's counter: apart from the masks of training.
_STREAM = 2


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: Where a text is cut off.
        temperature: 0 takes the most likely token each time.
        top_p: Tokens are drawn from the most likely ones that together have this probability.
        seed: With a row's name and the number of the token it decides what is drawn.
        stop_pattern: A text ends once this matches it.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was written for a prompt.

    Attributes:
        output: Ids and text.
        log_probabilities: Natural logarithm of the probability of each id, at temperature 1 and with all tokens allowed.
    """

    output: Output
    log_probabilities: list[float]


@torch.no_grad()
def sample(
    model: PreTrainedModel | PeftModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[int]],
    names: Sequence[str],
    how: Sampling,
    *,
    choice: TokenChoice | None = None,
    batch_size: int = 32,
) -> Iterator[tuple[list[int], list[Sampled]]]:
    """What the model writes behind each prompt, longest prompts first.

    What is drawn for a row depends on its name and the seed alone, so batches and a resumed run change nothing.

    Args:
        model: In any mode; it is in evaluation mode meanwhile.
        tokenizer: The model's.
        prompts: Ids, each at least one.
        names: One a prompt, unlike each other.
        how: The choice of tokens.
        choice: Tokens that are allowed at all; None: all.
        batch_size: Rows at once.

    Yields:
        Indices of some prompts, and what was written for each.
    """
    was_training = model.training
    model.eval()
    base = base_model(model)
    window = getattr(base.config.get_text_config(), "sliding_window", None)
    if window and max(map(len, prompts), default=0) + how.max_new_tokens > window:
        batch_size = 1  # a window counts places in the cache, padding included; alone, a row has none
    stop = re.compile(how.stop_pattern) if how.stop_pattern else None
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    try:
        with fused_lora(model):
            for start in range(0, len(order), batch_size):
                indices = order[start : start + batch_size]
                rows = [prompt_row([*prompts[i], 0]) for i in indices]
                cache = DynamicCache(config=base.config)
                mask_BT, logits_BV = read_prompts(model, rows, cache)
                lengths_B = torch.tensor([len(prompts[i]) for i in indices], device=logits_BV.device)
                chooser = _Chooser(how, [names[i] for i in indices], choice)
                firsts_B = chooser(logits_BV, list(range(len(rows))), [[] for _ in rows])
                outputs = continue_prompts(
                    model, tokenizer, cache, mask_BT, lengths_B, firsts_B, how.max_new_tokens, stop, chooser,
                )  # fmt: skip
                del cache
                give_back()
                logs = chooser.log_probabilities
                yield indices, [Sampled(o, log[: len(o.ids)]) for o, log in zip(outputs, logs, strict=True)]
    finally:
        model.train(was_training)


class _Chooser:
    """Chooses the next token of each row of a batch, and keeps where each is in the grammar."""

    def __init__(self, how: Sampling, names: Sequence[str], choice: TokenChoice | None) -> None:
        self.how, self.choice = how, choice
        self.log_probabilities: list[list[float]] = [[] for _ in names]
        self._rows = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names]
        self._states: list[State] = [choice.grammar.start if choice else frozenset() for _ in names]
        self._forbidden: dict[tuple[State, bool], Tensor] = {}

    def __call__(self, logits_BV: Tensor, rows: Sequence[int], new_ids: Sequence[Sequence[int]]) -> Tensor:
        """The next token of each running row, shape (B,).

        Args:
            logits_BV: Of the running rows.
            rows: Their numbers in the batch.
            new_ids: What every row of the batch has written so far.
        """
        logs_BV = logits_BV.float().log_softmax(-1)
        open_BV = logs_BV
        if self.choice is not None:
            forbidden_BV = torch.stack([self._forbidden_V(row, bool(new_ids[row]), logs_BV) for row in rows])
            open_BV = logs_BV.masked_fill(forbidden_BV, -torch.inf)
        if self.how.temperature:
            numbers = [_uniform(self.how.seed, self._rows[row], len(new_ids[row])) for row in rows]
            chosen_B = nucleus(open_BV / self.how.temperature, self.how.top_p, numbers)
        else:
            chosen_B = open_BV.argmax(-1)
        chosen_logs = logs_BV.gather(1, chosen_B[:, None])[:, 0].tolist()
        for row, token, log in zip(rows, chosen_B.tolist(), chosen_logs, strict=True):
            self.log_probabilities[row].append(log)
            if self.choice is not None:
                self._states[row] = self.choice.after(self._states[row], token)
        return chosen_B

    def _forbidden_V(self, row: int, begun: bool, like_BV: Tensor) -> Tensor:
        key = (self._states[row], begun)
        if key not in self._forbidden:
            assert self.choice is not None
            forbidden_V = torch.ones(like_BV.shape[1], dtype=torch.bool)
            allowed = self.choice.allowed(key[0], at_start=not begun)
            if not allowed:
                raise UserError(
                    "no token of the vocabulary can go on here within the form of paths",
                    "recipe key evaluate.ontology.constrain",
                    "set it to none: this tokenizer cannot spell every title",
                )
            forbidden_V[allowed] = False
            self._forbidden[key] = forbidden_V.to(like_BV.device)
        return self._forbidden[key]


def nucleus(logits_BV: Tensor, top_p: float, numbers: Sequence[float]) -> Tensor:
    """A token of each row, drawn from the most likely ones that together have probability ``top_p``, shape (B,).

    Args:
        logits_BV: Already divided by the temperature; forbidden tokens are minus infinity.
        top_p: Over 0, at most 1.
        numbers: Uniform in [0, 1), one a row, that decide.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    probabilities_BV = logits_BV.double().softmax(-1)
    values, indices = probabilities_BV.topk(min(_NUCLEUS, logits_BV.shape[1]), dim=-1)
    if bool((values.sum(-1) < top_p).any()):
        values, indices = probabilities_BV.sort(dim=-1, descending=True)
    totals = values.cumsum(-1)
    # The first token that reaches top_p still belongs to them.
    inside = totals - values < top_p
    sizes = inside.sum(-1, keepdim=True)
    masses = totals.gather(1, sizes - 1)
    wanted = torch.tensor(numbers, dtype=torch.float64, device=totals.device)[:, None] * masses
    places = torch.minimum((totals <= wanted).sum(-1, keepdim=True), sizes - 1)
    return indices.gather(1, places)[:, 0]


def _uniform(seed: int, row: int, step: int) -> float:
    philox = np.random.Philox(key=[seed, 0], counter=[0, row, step, _STREAM])
    return float(np.random.Generator(philox).random())
