"""A case from life (transformers#47688): a classifier of 280 classes, twelve micro-batches a step, in transformers' own Trainer."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    Trainer,
    TrainingArguments,
)

import luthier

NUM_LABELS, WORDS = 280, [f"word{i}" for i in range(500)]


def make_trainer(*, fixed: bool) -> Trainer:
    vocabulary = {word: i for i, word in enumerate(["<pad>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")

    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    rows = []
    for index in range(1400):  # five texts a class
        chosen = torch.randint(len(WORDS), (12 + index % 20,), generator=draw)
        text = " ".join([WORDS[index % NUM_LABELS], *(WORDS[i] for i in chosen)])
        rows.append({**tokenizer(text), "labels": index % NUM_LABELS})
    order = torch.randperm(len(rows), generator=draw).tolist()

    config = Qwen3Config(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_labels=NUM_LABELS,
                         pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    model = Qwen3ForSequenceClassification(config)
    if fixed:
        model.accepts_loss_kwargs = False
    return Trainer(
        model,
        TrainingArguments("out", per_device_train_batch_size=4, gradient_accumulation_steps=12, num_train_epochs=3, use_cpu=True,
                          eval_strategy="epoch", report_to=[]),
        train_dataset=[rows[i] for i in order[:1200]],
        eval_dataset=[rows[i] for i in order[1200:]],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )  # fmt: skip


if __name__ == "__main__":
    print(luthier.audit(make_trainer(fixed=False)))
    print("\nWith model.accepts_loss_kwargs = False:\n")
    luthier.audit(make_trainer(fixed=True)).show(verbose=True)
