"""TRL's ``SFTTrainer``: text or conversations as they are where it tokenises them, tokenised rows where it cannot."""

import tempfile

import cases
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from tools.common import Finding, distinct, each, heard, listen, train


def look(setup: cases.SetUp) -> list[Finding]:
    settings = {**cases.ARGUMENTS, **setup.args, **setup.sft}
    args = SFTConfig(output_dir=tempfile.mkdtemp(), bf16=False, **settings)  # bf16, its default, wants a GPU
    given = dict(setup.trainer)
    if setup.rows is None:
        rows, eval_rows = setup.train, setup.eval
        if not isinstance(setup.collator, cases.DataCollatorForSeq2Seq):
            given["data_collator"] = setup.collator
    else:
        rows, eval_rows = setup.rows, setup.eval_rows
    trainer = SFTTrainer(
        model=setup.model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(eval_rows),
        processing_class=setup.tokenizer,
        peft_config=setup.peft,
        **given,
    )
    ended = train(trainer)
    return distinct(heard) + ended


if __name__ == "__main__":
    listen()
    each(look)
