"""Beams, diverse beams and samples of many prompts at once."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.fixtures.tiny_model import make_model, make_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.models import beams
from luthier.models.beams import can_share, continuations, likeliest, one_at_a_time
from luthier.models.search import Search, stream

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(make_tokenizer())


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(3, 300, int(draw.integers(1, 30))).tolist() for _ in range(count)]


def found(model, tokenizer, asked, search):
    return dict(continuations(model, tokenizer, asked, search))


@pytest.mark.parametrize(
    "settings", [{}, {"length_penalty": 0.0}, {"num_beams": 3, "max_new_tokens": 1}, {"num_beams": 1}]
)
def test_beams_are_those_of_transformers_one_prompt_at_a_time(settings, tokenizer: TextTokenizer) -> None:
    # A bias towards stop tokens, so that beams end at different steps.
    model = make_model(initializer_range=0.3)
    search = Search(**{"num_beams": 4, "max_new_tokens": 12, "rows_at_once": 12, **settings})
    with torch.no_grad():
        model.lm_head.weight[2] *= 3
    asked = prompts(7)
    together = found(model, tokenizer, asked, search)
    assert sorted(together) == list(range(7))
    ended = set()
    for index, prompt in enumerate(asked):
        alone = one_at_a_time(model, tokenizer, prompt, search)
        assert [c.ids for c in together[index]] == [c.ids for c in alone]
        assert [c.ended for c in together[index]] == [c.ended for c in alone]
        for ours, theirs in zip(together[index], alone, strict=True):
            assert (
                ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
                and ours.num_tokens == theirs.num_tokens
            )
        ended |= {c.ended for c in alone}
    if search.max_new_tokens > 1 and search.num_beams > 1:
        assert ended == {True, False} or search.length_penalty == 0.0


def test_the_company_of_a_prompt_changes_nothing(tokenizer: TextTokenizer) -> None:
    model, asked = make_model(initializer_range=0.3), prompts(6, 1)
    for method in ("beam", "diverse-beam", "sample"):
        search = Search(
            method=method, num_beams=4, num_groups=2, max_new_tokens=6, temperature=0.7, top_p=0.9
        )
        whole = found(model, tokenizer, asked, search)
        few = found(
            model,
            tokenizer,
            asked,
            Search(**{**{k: getattr(search, k) for k in search.__slots__}, "rows_at_once": 4}),
        )
        assert {i: [c.ids for c in cs] for i, cs in whole.items()} == {
            i: [c.ids for c in cs] for i, cs in few.items()
        }


def test_an_adapter_counts_and_the_model_is_left_as_it_was(tokenizer: TextTokenizer) -> None:
    model = get_peft_model(
        make_model(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    model.train()
    search, asked = Search(num_beams=3, max_new_tokens=5), prompts(3, 2)
    ours = found(model, tokenizer, asked, search)
    assert model.training and model.get_base_model().config._attn_implementation == "sdpa"
    model.eval()
    assert not any("forward" in vars(m) for m in model.modules())
    for index, prompt in enumerate(asked):
        assert [c.ids for c in ours[index]] == [
            c.ids for c in one_at_a_time(model, tokenizer, prompt, search)
        ]


@pytest.mark.parametrize("make", [make_model, lambda: _windowed()], ids=["ours", "transformers"])
def test_prompts_share_the_time_that_all_took(
    make, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(beams, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    outputs = found(make(), tokenizer, prompts(5), Search(num_beams=2, max_new_tokens=4))
    seconds = [sum(c.seconds for c in each) for each in outputs.values()]
    # The clock is read at both ends of each piece of work.
    assert min(seconds) > 0 and sum(seconds) == pytest.approx(next(ticks) / 2)


def test_groups_avoid_each_others_tokens(tokenizer: TextTokenizer) -> None:
    model, asked = make_model(), prompts(1, 3)
    search = Search(method="diverse-beam", num_beams=4, num_groups=4, diversity_penalty=1e6, max_new_tokens=3)
    outputs = found(model, tokenizer, asked, search)[0]
    assert len({c.ids[0] for c in outputs}) == 4
    scores = [c.score for c in outputs]
    assert scores == sorted(scores, reverse=True)


def test_samples_follow_the_distribution(tokenizer: TextTokenizer) -> None:
    model, prompt = make_model(initializer_range=0.5), [5, 6, 7]
    search = Search(method="sample", num_beams=400, max_new_tokens=1, rows_at_once=400)
    drawn = found(model, tokenizer, [prompt], search)[0]
    with torch.no_grad():
        shares = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    first = [c.ids[0] if c.ids else 2 for c in drawn]
    best = int(shares.argmax())
    assert abs(first.count(best) / 400 - float(shares[best])) < 0.1
    assert drawn[0].logprob == pytest.approx(float(shares[first[0]].log()), abs=1e-4)
    cold = Search(method="sample", num_beams=5, max_new_tokens=1, top_p=1e-6)
    frozen = Search(method="sample", num_beams=5, max_new_tokens=1, temperature=1e-5)
    for search in (cold, frozen):
        assert {tuple(c.ids) for c in found(model, tokenizer, [prompt], search)[0]} == {(best,)}
    assert len({stream(Search(seed=seed), name) for seed in (0, 1) for name in "ab"}) == 4


def test_samples_are_drawn_by_name_and_not_by_place(tokenizer: TextTokenizer) -> None:
    search = Search(method="sample", num_beams=3, max_new_tokens=5)
    for model in (make_model(initializer_range=0.3), _windowed()):
        asked = dict(zip("abc", prompts(3, 4), strict=True))
        whole = dict(continuations(model, tokenizer, list(asked.values()), search, list(asked)))
        rest = dict(continuations(model, tokenizer, [asked["c"], asked["b"]], search, ["c", "b"]))
        assert [c.ids for c in whole[2]] == [c.ids for c in rest[0]]
        assert [c.ids for c in whole[1]] == [c.ids for c in rest[1]]
        (other,) = dict(continuations(model, tokenizer, [asked["c"]], search, ["d"])).values()
        assert [c.ids for c in other] != [c.ids for c in rest[0]]
        for outputs in whole.values():
            assert [c.score for c in outputs] == sorted((c.score for c in outputs), reverse=True)
        assert any(c.score < outputs[0].score for outputs in whole.values() for c in outputs)


def test_the_likeliest_are_found_without_sorting_all() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 6000)
    values, tokens = likeliest(logits, 20)
    expected = logits.log_softmax(-1).topk(20)
    assert torch.equal(tokens, expected.indices) and torch.allclose(values, expected.values, atol=1e-5)


def _windowed() -> MistralForCausalLM:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(**small, vocab_size=400, num_key_value_heads=1, sliding_window=4)
    return MistralForCausalLM(config)


def test_a_window_is_left_to_transformers(tokenizer: TextTokenizer) -> None:
    model = _windowed()
    assert "window" in str(can_share(model))
    outputs = found(model, tokenizer, prompts(2), Search(num_beams=2, max_new_tokens=3))
    assert [len(outputs[i]) for i in (0, 1)] == [2, 2]
    model.generation_config.repetition_penalty = 1e-3  # as ours, beams there know of none
    again = found(model, tokenizer, prompts(2), Search(num_beams=2, max_new_tokens=3))
    assert [[c.ids for c in again[i]] for i in (0, 1)] == [[c.ids for c in outputs[i]] for i in (0, 1)]
    with pytest.raises(UserError, match="diverse beams need attention of our own"):
        found(model, tokenizer, prompts(2), Search(method="diverse-beam", num_beams=2, num_groups=2))


def test_log_probabilities_of_generate_keep_the_many_small_terms() -> None:
    # One token that is nearly sure among 49,151 whose shares add up to 1.5e-3: added one by one in fp32 they would vanish.
    logits = torch.zeros(2, 49_152)
    logits[:, 7] = 17.3
    outputs = SimpleNamespace(logits=(logits, logits), beam_indices=torch.tensor([[0, 1], [1, -1]]))
    new = torch.tensor([[7, 3], [7, 7]])
    exact = logits.double().log_softmax(-1)[0][new]
    assert beams._logprobs(outputs, new).double().sub(exact).abs().max() < 3e-6
    model = make_model(vocab_size=49_152)
    scores = model.compute_transition_scores(new, outputs.logits, outputs.beam_indices, normalize_logits=True)
    assert (
        scores.double().sub(exact)[0].abs().max() > 1e-3
    )  # what transformers' own says: once it is mended, use it
