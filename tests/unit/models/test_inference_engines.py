"""Engines behind one interface: the model in this process, and vLLM by a stand-in with its surface."""

import dataclasses
import importlib.machinery
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tests.fixtures.tiny_model import make_model, make_tokenizer, save_model

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.models.beams import continuations
from luthier.models.inference_engines import InferenceEngine, Transformers, Vllm, chosen_engine, open_engine
from luthier.models.search import Search, stream
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder

EOS = 2


@dataclasses.dataclass
class BeamSearchParams:
    beam_width: int
    max_tokens: int
    length_penalty: float = 1.0


@dataclasses.dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = 16
    seed: int | None = None
    logprobs: int | None = None
    stop_token_ids: list[int] | None = None


@dataclasses.dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """Of each prompt: one continuation that ends, and others that do not."""

    made: list["LLM"] = []

    def __init__(self, model: str, **options: Any) -> None:
        self.model, self.options, self.calls = model, options, []
        LLM.made.append(self)

    def beam_search(
        self, prompts: list[Any], params: BeamSearchParams, lora_request: Any = None
    ) -> list[Any]:
        self.calls.append((len(prompts), lora_request))
        return [
            SimpleNamespace(sequences=[
                SimpleNamespace(tokens=[*p["prompt_token_ids"], *[40 + n] * params.max_tokens], cum_logprob=-3.0)
                for n in range(params.beam_width - 1)
            ] + [SimpleNamespace(tokens=[*p["prompt_token_ids"], 50, EOS], cum_logprob=-1.0)])
            for p in prompts
        ]  # fmt: skip

    def generate(
        self,
        prompts: list[Any],
        sampling_params: list[SamplingParams],
        lora_request: Any = None,
        use_tqdm: bool = True,
    ) -> list[Any]:
        self.calls.append((len(prompts), lora_request))
        self.params = sampling_params
        assert not use_tqdm
        return [
            SimpleNamespace(
                outputs=[SimpleNamespace(token_ids=(60, 61, EOS), cumulative_logprob=-2.0)] * one.n
            )
            for one in sampling_params
        ]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[LLM]]:
    names = {
        "vllm": {"LLM": LLM},
        "vllm.sampling_params": {"BeamSearchParams": BeamSearchParams, "SamplingParams": SamplingParams},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
    }
    for name, content in names.items():
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    LLM.made.clear()
    yield LLM


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(make_tokenizer())


def test_transformers_write_what_beams_give(tokenizer: TextTokenizer) -> None:
    model = make_model(initializer_range=0.3)
    search = Search(method="sample", num_beams=3, max_new_tokens=4)  # drawn by the names
    engine: InferenceEngine = Transformers(model, tokenizer)
    asked = [[5, 6], [7]]
    found = dict(engine.continuations(asked, search, "ba"))
    assert found == dict(continuations(model, tokenizer, asked, search, "ba"))
    assert found != dict(continuations(model, tokenizer, asked, search))


def test_vllm_gives_beams_with_scores_by_new_tokens(
    vllm: type[LLM], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 20}))
    search = Search(num_beams=3, max_new_tokens=4, length_penalty=2.0, rows_at_once=6, seed=7)
    engine: InferenceEngine = Vllm(
        "base", tokenizer, search, max_length=99, dtype="bfloat16", adapter=tmp_path
    )
    (llm,) = vllm.made
    assert llm.model == "base" and llm.options == {
        "dtype": "bfloat16", "max_model_len": 99, "max_logprobs": 6, "seed": 7, "enable_lora": True, "max_lora_rank": 32,
    }  # fmt: skip
    found = list(engine.continuations([[5, 6, 7], [8], [9]], search, "abc"))
    assert [index for index, _ in found] == [0, 1, 2]
    assert [(n, lora.lora_path) for n, lora in llm.calls] == [(2, str(tmp_path)), (1, str(tmp_path))]
    for _, outputs in found:
        # -3 / 4^2 is better than -1 / 2^2
        assert [(one.ids, one.num_tokens, one.ended, one.score) for one in outputs] == [
            ([40] * 4, 4, False, -3 / 16), ([41] * 4, 4, False, -3 / 16), ([50], 2, True, -1 / 4),
        ]  # fmt: skip
        assert outputs[2].text == tokenizer.decode([50]) and outputs[2].logprob == -1


def test_vllm_draws_by_the_names_of_prompts(vllm: type[LLM], tokenizer: TextTokenizer) -> None:
    search = Search(method="sample", num_beams=2, max_new_tokens=4, temperature=0.5, top_p=0.9)
    engine = Vllm("base", tokenizer, search, max_length=99, dtype="float32")
    ((_, outputs), (_, _)) = engine.continuations([[5], [6]], search, ["a", "b"])
    assert [(one.ids, one.num_tokens, one.ended) for one in outputs] == [([60, 61], 3, True)] * 2
    assert [one.seed for one in vllm.made[0].params] == [stream(search, "a"), stream(search, "b")]
    assert vllm.made[0].params[0] == SamplingParams(
        2, 0.5, 0.9, 4, stream(search, "a"), 0, sorted(tokenizer.stop_ids)
    )
    assert vllm.made[0].calls == [(2, None)]


def recipe(engine: str = "vllm", **changes: Any) -> Recipe:
    tree: dict[str, Any] = {"repair": {"engine": engine}}
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    return Recipe.model_validate(tree)


def test_an_engine_that_is_not_there_or_cannot_is_refused(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert chosen_engine(recipe("auto")) == chosen_engine(recipe("transformers")) == "transformers"
    with pytest.raises(UserError, match="not installed"):
        chosen_engine(recipe())
    monkeypatch.undo()
    request.getfixturevalue("vllm")
    assert chosen_engine(recipe()) == "vllm"
    for changes in (
        {"repair": {"method": "diverse-beam"}},
        {"model": {"new_tokens": ["<x>"]}},
        {"model": {"rope": {"type": "linear", "factor": 2}}},
        {"model": {"adapter": {"variant": "dora"}}},
        {"model": {"adapter": {"rank_pattern": {"q_proj": 2}}}},
        {"model": {"adapter": {"alpha_pattern": {"q_proj": 2}}}},
    ):
        with pytest.raises(UserError, match="does not take"):
            chosen_engine(recipe(**changes))
        assert chosen_engine(recipe("auto", **changes)) == "transformers"
    with pytest.raises(UserError, match="checkpoint"):
        chosen_engine(recipe(), checkpoint=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert chosen_engine(recipe("auto")) == "vllm"


def test_the_recipe_decides_what_vllm_loads(
    vllm: type[LLM], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    save_model(tmp_path / "base")
    run, search = RunFolder(tmp_path / "run"), Search(num_beams=2)
    settings = recipe(model={"name": str(tmp_path / "base"), "precision": "fp32"}, data={"max_length": 64})
    open_engine("vllm", settings, run, "base", tokenizer, search)
    run.adapter.mkdir(parents=True)
    (run.adapter / "adapter_config.json").write_text('{"r": 8}')
    open_engine("vllm", settings, run, "tuned", tokenizer, search)
    base, tuned = vllm.made
    assert base.model == tuned.model == str(tmp_path / "base") and tuned.options["max_lora_rank"] == 8
    assert "enable_lora" not in base.options and base.options["dtype"] == "float32"
    assert base.options["max_model_len"] == 64 and base.options["trust_remote_code"] is False
    engine = open_engine("transformers", settings, run, "base", tokenizer, search)
    assert isinstance(engine, Transformers)
