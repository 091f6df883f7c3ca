"""Generation of documents: batches change nothing, draws follow the distribution, a grammar is kept to."""

import numpy as np
import pytest
import torch
from tests.fixtures.tiny_model import make_model, make_tokenizer

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.encoding.token_bytes import token_bytes
from luthier.models.generate import generate
from luthier.models.sample import Sampling, nucleus, sample
from luthier.ontology.constrain import PathGrammar, TokenChoice
from luthier.ontology.paths import PathFormat

PATHS = PathFormat("Top")
TEXTS = ["def add", "class Stack of items", "the quick brown fox", "x", "import os\nimport sys\n", "for name"]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(make_tokenizer())


@pytest.fixture(scope="module")
def prompts(tokenizer: TextTokenizer) -> list[list[int]]:
    return [tokenizer.encode(text, first=True) for text in TEXTS]


@pytest.fixture(scope="module")
def model():
    return make_model()


def written(model, tokenizer, prompts, how, **options):
    found = [None] * len(prompts)
    for indices, texts in sample(model, tokenizer, prompts, TEXTS, how, **options):
        for index, text in zip(indices, texts, strict=True):
            found[index] = text
    return found


def test_greedy_is_that_of_evaluation_in_any_batch(model, tokenizer, prompts) -> None:
    expected = [output.ids for output in generate(model, tokenizer, prompts, max_new_tokens=20)]
    for size in (1, 4, 32):
        assert [
            w.output.ids for w in written(model, tokenizer, prompts, Sampling(20), batch_size=size)
        ] == expected
    cold = [w.output.ids for w in written(model, tokenizer, prompts, Sampling(20, temperature=1e-5))]
    assert cold == expected


def test_draws_depend_on_the_row_and_the_seed_alone(model, tokenizer, prompts) -> None:
    how = Sampling(20, temperature=1.0, top_p=0.9)
    alone = [w.output.ids for w in written(model, tokenizer, prompts, how, batch_size=1)]
    assert [w.output.ids for w in written(model, tokenizer, prompts, how)] == alone
    assert [w.output.ids for w in written(model, tokenizer, prompts, Sampling(20, 1.0, 0.9, seed=1))] != alone
    twins = {}
    for indices, texts in sample(model, tokenizer, [prompts[0]] * 2, ["a", "b"], how):
        twins |= dict(zip(indices, texts, strict=True))
    assert twins[0].output.ids != twins[1].output.ids


def test_log_probabilities_are_the_models_at_any_temperature(model, tokenizer, prompts) -> None:
    for text, prompt in zip(written(model, tokenizer, prompts, Sampling(12, 0.5)), prompts, strict=True):
        ids = torch.tensor([[*prompt, *text.output.ids]])
        logs = model(ids).logits[0].log_softmax(-1).detach()
        expected = [float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(text.output.ids)]
        assert text.log_probabilities == pytest.approx(expected, abs=1e-4)


def test_the_nucleus_is_drawn_by_its_probabilities() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    numbers = (np.arange(1000) + 0.5) / 1000
    for top_p, expected in (
        (1.0, [500, 300, 150, 50]),
        (0.79, [625, 375, 0, 0]),
        (0.81, [526, 316, 158, 0]),
        (0.1, [1000, 0, 0, 0]),
    ):
        drawn = nucleus(logits.expand(1000, 4), top_p, numbers.tolist())
        assert torch.bincount(drawn, minlength=4).tolist() == pytest.approx(expected, abs=1)


def test_the_nucleus_of_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.models import sample as module

    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(0))
    numbers = np.linspace(0, 0.999, 8).tolist()
    usual = nucleus(logits, 0.9, numbers)
    monkeypatch.setattr(module, "_NUCLEUS", 4)  # too few: all are sorted
    assert torch.equal(nucleus(logits, 0.9, numbers), usual)


@pytest.mark.parametrize("titles", [None, ["Science", "Plant science", "Ärzte"]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_random_model_writes_valid_paths_only(model, tokenizer, prompts, titles, temperature) -> None:
    choice = TokenChoice(PathGrammar(PATHS, titles), token_bytes(tokenizer), tokenizer.stop_ids)
    known = titles.__contains__ if titles else None
    num_lines = 0
    for text in written(model, tokenizer, prompts, Sampling(60, temperature), choice=choice):
        parsed = PATHS.parse(text.output.text, ended=text.output.ended, known=known)
        assert set(parsed.invalid) <= {"unfinished"} and not (text.output.ended and parsed.invalid)
        num_lines += len(parsed.lines)
    assert num_lines or titles is None


def test_bytes_of_tokens_join_to_the_text(tokenizer) -> None:
    from tests.fixtures.tokenizers import mistral

    text = "Ärzte -> 手 x\n  y"
    for each in (tokenizer, mistral()):
        spelled = token_bytes(each)
        assert b"".join(spelled[i] or b"" for i in each.encode(text)).decode() == text
        assert spelled[each.eos_id] is None
