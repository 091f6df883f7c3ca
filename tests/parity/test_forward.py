"""Our losses against transformers' own, and generation in batches against one at a time and transformers' generate."""

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_model import make_model, make_tokenizer, random_rows
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Mamba2Config,
    MistralConfig,
    MistralForCausalLM,
)

from luthier.encoding.batches import collate
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.models import generate as generation
from luthier.models.bigs import BigsConfig
from luthier.models.forward import head_is_plain, token_scores
from luthier.models.generate import generate, score_and_generate
from luthier.models.mamba import speed_up
from luthier.records import Row


def test_loss_equals_transformers_own_with_labels() -> None:
    model = make_model()
    for row in random_rows(8, seed=1):
        row.loss_weights[row.loss_weights != 0] = 1
        batch = collate([row], 2)
        labels = batch.input_ids_BT.masked_fill(batch.loss_weights_BT == 0, -100)
        own = model(input_ids=batch.input_ids_BT, labels=labels).loss
        scores = token_scores(model, batch)
        assert scores.nll_N.mean().item() == pytest.approx(own.item(), rel=1e-5)
        plain = token_scores(model, batch, plain=True)
        torch.testing.assert_close(scores.nll_N, plain.nll_N, rtol=1e-5, atol=1e-5)


def test_token_accuracy_equals_an_independent_count() -> None:
    model, row = make_model(), random_rows(1, seed=5)[0]
    batch = collate([row], 2)
    best = model(input_ids=batch.input_ids_BT).logits[0].argmax(-1).tolist()
    right = [
        best[i - 1] == row.input_ids[i] for i in range(1, len(row.input_ids)) if row.loss_weights[i] != 0
    ]
    with torch.no_grad():
        assert token_scores(model, batch).correct_N.tolist() == right
    with pytest.raises(RuntimeError, match="no_grad"):
        token_scores(model, batch).correct_N  # noqa: B018 # it is asked for


def test_a_head_with_soft_capping_is_noticed_and_taken_the_plain_way() -> None:
    config = Gemma2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(config).eval()
    batch = collate(random_rows(3), 2)
    assert not head_is_plain(capped, batch)
    assert head_is_plain(make_model(), batch)
    assert token_scores(capped, batch, plain=True).nll_N.mean().item() < math.log(300) + 4


PROMPTS = [[int(i) for i in row.input_ids] for row in random_rows(12, seed=2)]


@pytest.mark.parametrize("batch_size", [3, 5, 12])
def test_batched_generation_equals_one_at_a_time(batch_size: int) -> None:
    model, tokenizer = make_model(), TextTokenizer(make_tokenizer())
    settings = {"max_new_tokens": 24, "stop_pattern": r"[aeiou]"}
    alone = [generate(model, tokenizer, [prompt], **settings)[0] for prompt in PROMPTS]
    together = generate(model, tokenizer, PROMPTS, batch_size=batch_size, **settings)
    assert together == alone
    # Rows leave the batch at different times, else this would not test the dropping of finished rows.
    assert len({len(output.ids) for output in alone}) > 3


def test_one_pass_over_the_prompt_scores_and_generates_like_two() -> None:
    model, tokenizer, rows = make_model(), TextTokenizer(make_tokenizer()), random_rows(12, seed=7)
    prompts = [[int(i) for i in row.input_ids[: row.num_prompt_tokens]] for row in rows]
    apart = generate(model, tokenizer, prompts, max_new_tokens=16, batch_size=1)
    for indices, scores, outputs in score_and_generate(
        model, tokenizer, rows, max_new_tokens=16, batch_size=5
    ):
        assert outputs == [apart[i] for i in indices]
        expected = token_scores(model, collate([rows[i] for i in indices], 2))
        torch.testing.assert_close(scores.nll_N, expected.nll_N, rtol=1e-5, atol=1e-5)


def rows_of_two_files() -> list[Row]:
    """Rows whose prompts go on with one another or part somewhere, two that nothing else begins like, and one twice."""
    draw = np.random.default_rng(3)
    rows = []
    for number, count in enumerate((9, 4, 1, 1)):
        file = draw.integers(3, 300, 260)
        for _ in range(count):
            end = int(draw.integers(180, 220))
            ids = np.concatenate([file[:end], draw.integers(3, 300, int(draw.integers(1, 9)))])
            if len(rows) % 3 == 0:  # what the row is asked for is what the longer ones go on with
                ids = file[: end + 5]
            weights = np.where(np.arange(len(ids)) < end - int(draw.integers(0, 3)), 0.0, 1.0).astype(
                np.float32
            )
            prompt = int(np.flatnonzero(weights)[0])
            rows.append(replace(random_rows(1)[0], id=f"{number}-{len(rows)}", input_ids=ids.astype(np.int32),
                                loss_weights=weights, span_ids=np.zeros(len(ids), np.int16), num_prompt_tokens=prompt))  # fmt: skip
    return [*rows, rows[0]]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("batch_size", [3, 16])
@pytest.mark.parametrize("kind", ["llama", "scaled", "adapter"])
def test_what_prompts_share_is_computed_once_and_changes_nothing(
    kind: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_TOKENS_OF_A_STEP", 4)
    tokenizer, rows = TextTokenizer(make_tokenizer()), rows_of_two_files()
    if kind == "scaled":  # its head is more than a matrix product
        config = GraniteConfig(
            vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, logits_scaling=3.0, initializer_range=0.5, eos_token_id=2, bos_token_id=1,
        )  # fmt: skip
        torch.manual_seed(0)
        model = GraniteForCausalLM(config).eval()
    else:
        model = make_model()
    if kind == "adapter":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    num_tokens = []
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda _, inputs, __: num_tokens.append(inputs[0].numel()))
    results = []
    for shared in (False, True):
        num_tokens.clear()
        losses: dict[int, torch.Tensor] = {}
        texts: dict[int, list[int]] = {}
        for indices, scores, outputs in score_and_generate(
            model, tokenizer, rows, max_new_tokens=12, batch_size=batch_size, share_prefixes=shared
        ):
            texts |= {i: output.ids for i, output in zip(indices, outputs, strict=True)}
            losses |= {i: scores.nll_N[scores.rows_N == place] for place, i in enumerate(indices)}
        results.append((texts, losses, sum(num_tokens)))
    (texts, losses, num_alone), (shared_texts, shared_losses, num_shared) = results
    assert shared_texts == texts and len(texts) == len(rows)
    assert len({tuple(ids) for ids in texts.values()}) > 8
    for index, expected in losses.items():
        torch.testing.assert_close(shared_losses[index], expected, rtol=1e-4, atol=1e-4)
    assert num_shared < 0.5 * num_alone

    def batches(finished: Collection[int]) -> list[list[int]]:
        num_tokens.clear()
        found = score_and_generate(
            model, tokenizer, rows, max_new_tokens=12, batch_size=batch_size, finished=finished
        )
        return [indices for indices, *_ in found]

    first, *others = batches(())
    half = next(batch for batch in others if len(batch) > 1)[1:]
    assert batches({*first, *half}) == others and sum(num_tokens) < num_shared
    assert batches(range(len(rows))) == [] and sum(num_tokens) <= 4  # of the tries that look at the head


STATEFUL = {
    "mamba": lambda: tiny_trainer.config("mamba"),
    "mamba2": lambda: Mamba2Config(
        vocab_size=len(make_tokenizer()), hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=16,
        n_groups=1, pad_token_id=2, eos_token_id=2, initializer_range=0.2,
    ),
    "bigs": lambda: BigsConfig(
        vocab_size=len(make_tokenizer()), hidden_size=32, num_hidden_layers=2, state_size=8, eos_token_id=2,
        initializer_range=0.4, form="causal-convolution",
    ),
    "bigs-two": lambda: BigsConfig(
        vocab_size=len(make_tokenizer()), hidden_size=32, num_hidden_layers=2, state_size=8, eos_token_id=2,
        initializer_range=0.4,
    ),
    "zamba-like hybrid": lambda: FalconH1Config(
        vocab_size=len(make_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8,
        mamba_n_groups=1, mamba_chunk_size=8, pad_token_id=2, eos_token_id=2, bos_token_id=1, initializer_range=0.2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", STATEFUL)
def test_models_with_a_state_score_and_generate_like_one_forward_a_token(kind: str, fast: bool) -> None:
    """Rows of different lengths in one batch; a state has no places that could be masked or cut back."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(STATEFUL[kind]()).eval()
    assert not fast or speed_up(model) == (2 if "mamba" in kind else 0)
    tokenizer, rows = TextTokenizer(make_tokenizer()), random_rows(9, seed=7)
    lengths = set()
    for indices, scores, outputs in score_and_generate(
        model, tokenizer, rows, max_new_tokens=12, batch_size=5
    ):
        first = 0
        for index, output in zip(indices, outputs, strict=True):
            row = rows[index]
            alone = token_scores(model, collate([row], 2)).nll_N
            found = scores.nll_N[first : first + len(alone)]
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
            first += len(alone)
            ids = [int(i) for i in row.input_ids[: row.num_prompt_tokens]]
            written: list[int] = []
            while len(written) < 12:
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([ids + written]), use_cache=False).logits[0, -1]
                if int(logits.argmax()) in tokenizer.stop_ids:
                    break
                written.append(int(logits.argmax()))
            assert output.ids == written
            lengths.add(tuple(written))
    assert len(lengths) > 4  # prompts do matter


def test_rows_longer_than_a_sliding_window_are_generated_alone() -> None:
    config = MistralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model, tokenizer = MistralForCausalLM(config).eval(), TextTokenizer(make_tokenizer())
    prompts = [[3 + (7 * i + j) % 290 for j in range(10 + i)] for i in range(4)]
    together = generate(model, tokenizer, prompts, max_new_tokens=12)
    for prompt, output in zip(prompts, together, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=2
        )[0, len(prompt) :].tolist()
        assert output.ids == [i for i in expected if i != 2]


def test_generation_equals_transformers_generate() -> None:
    model, tokenizer = make_model(), TextTokenizer(make_tokenizer())
    for prompt, output in zip(PROMPTS, generate(model, tokenizer, PROMPTS, max_new_tokens=16), strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, pad_token_id=2
        )[0, len(prompt) :].tolist()
        assert output.ids == [i for i in expected if i != 2]


def test_asking_for_the_head_leaves_each_module_in_its_mode() -> None:
    model = make_model().train()
    model.model.layers[0].eval()  # kept so on purpose
    modes = {name: module.training for name, module in model.named_modules()}
    head_is_plain(model, collate(random_rows(2), 0))
    assert modes == {name: module.training for name, module in model.named_modules()}
