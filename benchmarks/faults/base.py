"""What all set-ups share: made-up rows, a tokenizer trained on them, and two tiny models that have learned a little.

Only plain tokenizers, torch and transformers, so that it runs in every peer's environment.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

Row = dict[str, Any]

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
PAD, BOS, EOS, IM_START, IM_END = range(len(SPECIAL))
IGNORED = -100
NUM_POSITIONS = 256
OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%"}
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def words(count: int = 400) -> list[str]:
    """Made-up words of two or three syllables, always the same."""
    draw = random.Random(0)
    made: dict[str, None] = {}
    while len(made) < count:
        syllables = (
            draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(draw.choice((2, 2, 3)))
        )
        made["".join(syllables)] = None
    return list(made)


def completions(count: int, seed: int, *, length: tuple[int, int] = (5, 14), noted: bool = True) -> list[Row]:
    """Functions to complete: a comment of random words and a signature; the body follows from the signature.

    ``noted`` bodies have a comment besides; the models have seen few of them, so that something is left to be learned.
    """
    draw, vocabulary = random.Random(seed), words()
    made = []
    for _ in range(count):
        comment = " ".join(draw.choices(vocabulary, k=draw.randint(*length)))
        verb = draw.choice(list(OPERATORS))
        name, first, second = draw.sample(vocabulary, 3)
        prompt = f"# {comment}\ndef {verb}_{name}({first}, {second}):"
        note = f"\n    # takes {second} to {verb} it to {first}" if noted else ""
        body = f"{note}\n    return {first} {OPERATORS[verb]} {second}\n"
        made.append({"prompt": prompt, "completion": body})
    return made


def conversations(count: int, seed: int, *, turns: int = 2) -> list[Row]:
    """Questions and answers; the answer says which word of the question follows another one."""
    draw, vocabulary = random.Random(seed), words()
    made = []
    for _ in range(count):
        messages = []
        for _ in range(turns):
            said = draw.sample(vocabulary, draw.randint(4, 8))
            place = draw.randrange(len(said) - 1)
            messages += [
                {"role": "user", "content": f"In {' '.join(said)}, what follows {said[place]}?"},
                {"role": "assistant", "content": f"After {said[place]} comes {said[place + 1]}."},
            ]
        made.append({"messages": messages})
    return made


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens that begins a text with BOS, as a Llama's does; padding is a token of its own."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [row["prompt"] + row["completion"] for row in completions(400, 0)]
    texts += [message["content"] for row in conversations(400, 0) for message in row["messages"]]
    made.train_from_iterator([*texts, *["system\nuser\nassistant\n"] * 50], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT,
    )


def config(family: str) -> PreTrainedConfig:
    """Two layers; every dimension is a multiple of 16, so that no tool has a reason to speak of alignment."""
    common = {"vocab_size": 512, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    if family == "gpt2":
        drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=NUM_POSITIONS, **drops, **common)
    return LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=NUM_POSITIONS,
        **common,
    )


def teach(family: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A model after 600 steps on functions and conversations: well under ln V, and a first position that is BOS."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(family)).train()
    texts = [
        [*tokenizer(row["prompt"] + row["completion"]).input_ids, EOS]
        for row in completions(1200, 1, noted=False) + completions(60, 4)
    ]
    chats = [row["messages"] for row in conversations(400, seed=1)]
    texts += [tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] for chat in chats]
    random.Random(0).shuffle(texts)
    steps = 600
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for step in range(steps):
        batch = [texts[(16 * step + i) % len(texts)] for i in range(16)]
        longest = max(map(len, batch))
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
        loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, IGNORED)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    print(f"{family}: loss {loss.item():.2f} after {steps} steps", flush=True)
    return model


def make(folder: Path) -> None:
    """Writes ``llama`` and ``gpt2`` with their tokenizer below the folder, unless they are there."""
    torch.set_num_threads(1)
    for family in ("llama", "gpt2"):
        if not (folder / family / "tokenizer_config.json").is_file():
            tokenizer = make_tokenizer()
            teach(family, tokenizer).save_pretrained(folder / family)
            tokenizer.save_pretrained(folder / family)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer as a user loads it."""
    return AutoTokenizer.from_pretrained(folder / "llama")
