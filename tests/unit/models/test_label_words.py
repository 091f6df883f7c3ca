import numpy as np
import pytest
import torch
from tests.fixtures.tiny_classifier import CONFIGS
from tests.fixtures.tiny_model import random_rows
from transformers import AutoModelForCausalLM

from luthier.errors import UserError
from luthier.models.label_words import LabelTree, label_scores


def test_tree_holds_only_what_labels_share() -> None:
    tree = LabelTree.of([[5, 6, 7, 9], [5, 6, 8, 9], [5, 9], [4, 4, 4, 9]])
    assert tree.paths == ((5, 6, 7), (5, 6, 8), (5, 9), (4,))
    assert tree.nodes == ((5,), (5, 6))
    assert tree.steps()[1] == [(0, 5), (1, 6), (2, 8)]


@pytest.mark.parametrize("words", [[[5, 6], [5, 6]], [[5], [5, 6]]])
def test_labels_that_cannot_be_told_apart_are_refused(words: list[list[int]]) -> None:
    with pytest.raises(UserError, match="cannot be told"):
        LabelTree.of(words)


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_pass_gives_what_exhaustive_scoring_gives(kind: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](300)).eval()
    draw = np.random.default_rng(0)
    words = {tuple(draw.integers(3, 6, draw.integers(1, 5)).tolist()) for _ in range(60)}
    tree = LabelTree.of([[*ids, 2] for ids in sorted(words)])
    assert len(tree.nodes) > 10
    rows = random_rows(3, seed=1)
    found = label_scores(model, tree, rows)
    expected = torch.zeros(3, len(tree.paths), dtype=torch.float64)
    for i, row in enumerate(rows):
        prompt = row.input_ids[: row.num_prompt_tokens].tolist()
        for label, path in enumerate(tree.paths):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *path]])).logits[0].double().log_softmax(-1)
            expected[i, label] = sum(logits[len(prompt) - 1 + k, token] for k, token in enumerate(path))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert found.std() > 0.01
    assert float(found.exp().sum(-1).max()) <= 1 + 1e-5


def test_a_label_has_at_least_the_probability_of_all_its_tokens_and_another_may_be_best() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["qwen3"](300)).eval()
    draw = np.random.default_rng(0)
    words = [[*draw.integers(3, 9, 2), *draw.integers(9, 300, draw.integers(1, 4)), 2] for _ in range(30)]
    tree = LabelTree.of(words)
    rows = random_rows(6, seed=1)
    whole, rest = torch.zeros(2, 6, 30, dtype=torch.float64)
    for i, row in enumerate(rows):
        prompt = row.input_ids[: row.num_prompt_tokens].tolist()
        for label, (ids, path) in enumerate(zip(words, tree.paths, strict=True)):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0].double().log_softmax(-1)
            each = [logits[len(prompt) - 1 + k, token] for k, token in enumerate(ids)]
            whole[i, label], rest[i, label] = sum(each), sum(each[len(path) :])
    found = label_scores(model, tree, rows).double()
    torch.testing.assert_close(found + rest, whole, rtol=1e-4, atol=1e-4)
    assert bool((found >= whole).all()) and bool((rest < -1).any())
    # What the documentation warns of: a label that is told apart early wins over one that is likelier as a whole.
    assert not torch.equal(found.argmax(-1), whole.argmax(-1))
