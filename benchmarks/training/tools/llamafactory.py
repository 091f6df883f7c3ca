"""LLaMA-Factory: what its command line gets, given to the function that it calls, so that the clock can be told of steps."""

import json
from pathlib import Path

from llamafactory.train.tuner import run_exp

from tools.common import Clock, arguments, read


def main() -> None:
    settings, rows = read()
    folder = Path(settings["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    # The template `empty` adds nothing, not even the token that ends a text.
    records = [
        {"instruction": row["prompt"], "input": "", "output": row["completion"] + settings["eos_token"]}
        for row in rows
    ]
    (folder / "rows.json").write_text(json.dumps(records))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    if settings["full"]:
        method = {"finetuning_type": "full"}
    else:
        method = {
            "finetuning_type": "lora",
            "lora_rank": settings["rank"],
            "lora_alpha": settings["alpha"],
            "lora_dropout": 0.0,
            "lora_target": "all",
        }
    given = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": settings["model"],
        "template": "empty",
        "dataset_dir": str(folder),
        "dataset": "rows",
        "cutoff_len": settings["max_length"],
        "disable_shuffling": True,
        "bf16": True,
        **method,
        **arguments(settings),
    }
    run_exp(given, [Clock(rows)])


if __name__ == "__main__":
    main()
