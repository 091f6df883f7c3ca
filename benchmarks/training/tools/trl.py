"""TRL's ``SFTTrainer`` with its defaults, which are bf16 and gradient checkpointing; rows already tokenised."""

from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from trl import SFTConfig, SFTTrainer

from tools.common import Clock, arguments, lora, read


class InOrder(SFTTrainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


def main() -> None:
    settings, rows = read()
    adapter = lora(settings)
    trainer = InOrder(
        model=settings["model"],
        args=SFTConfig(**arguments(settings)),
        train_dataset=Dataset.from_list(
            [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
        ),
        peft_config=LoraConfig(**adapter) if adapter else None,
        callbacks=[Clock(rows)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
