"""What writes continuations: the model in this process, or vLLM where that is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.models.beams import continuations
from luthier.models.load import (
    choose_precision,
    earlier_adapter,
    load_trained,
    load_untrained,
    resolve,
    starts_adapted,
)
from luthier.models.search import Continuation, Search, stream
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder, read_json

Name = Literal["transformers", "vllm"]
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of adapters that vLLM makes room for
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class InferenceEngine(Protocol):
    """Anything that writes continuations of prompts."""

    def continuations(
        self, prompts: Sequence[Sequence[int]], search: Search, names: Sequence[str]
    ) -> Iterator[tuple[int, list[Continuation]]]:
        """Index of a prompt and its continuations, best first, as each is found; samples are drawn by a prompt's name."""
        ...


Opener = Callable[[], InferenceEngine]


@dataclass(frozen=True, slots=True)
class Transformers:
    """A model of transformers, all beams of a prompt in one batch."""

    model: PreTrainedModel | PeftModel
    tokenizer: TextTokenizer

    def continuations(
        self, prompts: Sequence[Sequence[int]], search: Search, names: Sequence[str]
    ) -> Iterator[tuple[int, list[Continuation]]]:
        """As of ``luthier.models.beams``."""
        yield from continuations(self.model, self.tokenizer, prompts, search, names)


class Vllm:
    """A model in vLLM: its beam search, or its sampling, with the adapter beside the base.

    vLLM's beam search decides by its own rules (lengths count the prompt, and it never ends early), so that its beams are
    not always those of transformers. Scores are those of this project: log-probability by the number of new tokens.

    Args:
        model: Folder or Hub name.
        tokenizer: The model's.
        search: How much room beams need.
        max_length: Tokens of prompt and continuation.
        dtype: ``float32`` or ``bfloat16``.
        adapter: Folder of a LoRA adapter.
        options: For ``vllm.LLM``.

    Source: github.com/vllm-project/vllm, ``LLM.beam_search`` and ``LLM.generate`` (0.22), Apache-2.0.
    """

    def __init__(
        self,
        model: str,
        tokenizer: TextTokenizer,
        search: Search,
        *,
        max_length: int,
        dtype: str,
        adapter: Path | None = None,
        **options: Any,
    ) -> None:
        vllm = importlib.import_module("vllm")
        self._params: Any = importlib.import_module("vllm.sampling_params")
        self._tokenizer = tokenizer
        self._lora = None
        if adapter is not None:
            request = importlib.import_module("vllm.lora.request")
            self._lora = request.LoRARequest("adapter", 1, str(adapter))
            rank = read_json(adapter / "adapter_config.json")["r"]
            room = next((one for one in _RANKS if one >= rank), rank)
            options |= {"enable_lora": True, "max_lora_rank": room}
        # Its beam search asks for the log-probabilities of twice as many tokens as there are beams.
        self._llm = vllm.LLM(
            model=model, dtype=dtype, max_model_len=max_length, max_logprobs=2 * search.num_beams, seed=search.seed, **options
        )  # fmt: skip

    def continuations(
        self, prompts: Sequence[Sequence[int]], search: Search, names: Sequence[str]
    ) -> Iterator[tuple[int, list[Continuation]]]:
        """Some prompts at a time, so that what was found is kept."""
        at_once = max(1, search.rows_at_once // search.num_beams)
        for first in range(0, len(prompts), at_once):
            some = [list(prompt) for prompt in prompts[first : first + at_once]]
            found = (
                self._sampled(some, search, names[first : first + at_once])
                if search.method == "sample"
                else self._beams(some, search)
            )
            for index, outputs in enumerate(found, first):
                outputs.sort(key=lambda one: -one.score)
                yield index, outputs

    def _beams(self, prompts: list[list[int]], search: Search) -> list[list[Continuation]]:
        params = self._params.BeamSearchParams(
            beam_width=search.num_beams,
            max_tokens=search.max_new_tokens,
            length_penalty=search.length_penalty,
        )
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.beam_search(asked, params, lora_request=self._lora)
        return [
            [self._one(beam.tokens[len(prompt) :], beam.cum_logprob, search) for beam in output.sequences]
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    def _sampled(
        self, prompts: list[list[int]], search: Search, names: Sequence[str]
    ) -> list[list[Continuation]]:
        params = [
            self._params.SamplingParams(
                n=search.num_beams,
                temperature=search.temperature,
                top_p=search.top_p,
                max_tokens=search.max_new_tokens,
                seed=stream(search, name),
                logprobs=0,  # those of the drawn tokens
                stop_token_ids=sorted(self._tokenizer.stop_ids),
            )
            for name in names
        ]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.generate(asked, params, lora_request=self._lora, use_tqdm=False)
        return [
            [self._one(list(one.token_ids), one.cumulative_logprob, search) for one in output.outputs]
            for output in outputs
        ]

    def _one(self, tokens: list[int], logprob: float, search: Search) -> Continuation:
        stops = self._tokenizer.stop_ids
        end = next((i for i, token in enumerate(tokens) if token in stops), None)
        kept, num_tokens = (tokens, len(tokens)) if end is None else (tokens[:end], end + 1)
        score = logprob / max(1, num_tokens) ** search.length_penalty
        return Continuation(kept, self._tokenizer.decode(kept), logprob, num_tokens, score, end is not None)


def chosen_engine(recipe: Recipe, *, checkpoint: bool = False) -> Name:
    """The engine that ``repair.engine`` comes to: vLLM where it is installed, has a GPU and takes what the recipe asks.

    Args:
        recipe: The run's.
        checkpoint: Whether the weights are a checkpoint's, which only this process can put together.

    Raises:
        UserError: vLLM is asked for, and is not there or cannot do it.
    """
    wanted = recipe.repair.engine
    if wanted == "transformers":
        return "transformers"
    problem = _vllm_cannot(recipe, checkpoint)
    if wanted == "vllm":
        if problem is not None:
            raise problem
        return "vllm"
    return "vllm" if problem is None and torch.cuda.is_available() else "transformers"


def open_engine(
    name: Name, recipe: Recipe, run: RunFolder, which: str, tokenizer: TextTokenizer, search: Search
) -> InferenceEngine:
    """The engine over the tuned model of a run or, where ``which`` is not ``tuned``, over the model before training."""
    settings = recipe.model
    result = run.result() if which == "tuned" else None
    if name == "transformers":
        model = (
            load_trained(settings, run, len(tokenizer))
            if result is not None
            else load_untrained(settings, len(tokenizer))
        )
        return Transformers(model, tokenizer)
    whole = result is not None and result == run.model
    adapter = None if whole else result
    if result is None and starts_adapted(settings):
        adapter = earlier_adapter(settings)
    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if settings.revision and not whole:
        options["revision"] = settings.revision
    if settings.quantisation:
        options["quantization"] = "bitsandbytes"
    return Vllm(
        str(result) if whole else resolve(settings), tokenizer, search, max_length=recipe.data.max_length,
        dtype=_DTYPES[choose_precision(settings)], adapter=adapter, **options,
    )  # fmt: skip


def _vllm_cannot(recipe: Recipe, checkpoint: bool) -> UserError | None:
    model = recipe.model
    if importlib.util.find_spec("vllm") is None:
        return UserError(
            "vLLM is not installed",
            "recipe key repair.engine",
            "install vllm into an environment of its own with luthier (it pins torch), or set repair.engine=transformers",
        )
    lacking = {
        "the weights of a checkpoint": checkpoint,
        "repair.method=diverse-beam": recipe.repair.method == "diverse-beam",
        "model.new_tokens beside an adapter": bool(model.new_tokens) and model.adapter is not None,
        "model.start_mode=stack": bool(model.start_from) and model.start_mode == "stack",
        "model.rope": model.rope is not None,
        "model.adapter.variant=dora": model.adapter is not None and model.adapter.variant == "dora",
        # Its PEFTHelper passes over patterns: all layers would be scaled by one alpha and rank.
        "model.adapter.rank_pattern or alpha_pattern": model.adapter is not None
        and bool(model.adapter.rank_pattern or model.adapter.alpha_pattern),
    }
    for what, asked in lacking.items():
        if asked:
            return UserError(
                f"vLLM does not take {what}", "recipe key repair.engine", "set repair.engine=transformers"
            )
    return None
