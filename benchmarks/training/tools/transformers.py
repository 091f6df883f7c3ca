"""transformers' ``Trainer``: dynamic padding, bf16, LoRA by peft; or the whole model."""

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    set_seed,
)

from tools.common import Clock, arguments, lora, read


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


def main() -> None:
    settings, rows = read()
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"])
    adapter = lora(settings)
    if adapter:
        set_seed(settings["seed"])
        model = get_peft_model(model, LoraConfig(**adapter))
    trainer = InOrder(
        model=model,
        args=TrainingArguments(bf16=True, **arguments(settings)),
        train_dataset=Dataset.from_list(
            [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[Clock(rows)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
