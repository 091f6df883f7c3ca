"""Packs of which a batch holds more than one."""

from pathlib import Path
from typing import Any

import torch
from tests.faults.suite import Said, planted
from tests.fixtures import tiny_trainer

import luthier


class TwoPacks:
    """Packs the batch's rows into two sequences of one length; positions begin anew in each row."""

    def __init__(self, mask: bool) -> None:
        self.mask = mask

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        packs = []
        for half in (items[: len(items) // 2], items[len(items) // 2 :]):
            ids = [i for item in half for i in item["input_ids"]]
            labels = [i for item in half for i in item["labels"]]
            positions = [i for item in half for i in range(len(item["input_ids"]))]
            packs.append((ids, labels, positions))
        length = min(len(ids) for ids, _, _ in packs)
        names = ("input_ids", "labels", "position_ids")
        batch = {name: torch.tensor([pack[n][:length] for pack in packs]) for n, name in enumerate(names)}
        return batch | ({"attention_mask": torch.ones_like(batch["input_ids"])} if self.mask else {})


@planted("packing", catalogue=(46, 47), where="collator")
def two_packs_a_batch_with_a_mask_of_ones(folder: Path) -> Said:
    """A batch holds two packs, and where their rows begin is lost behind a mask of ones."""
    return luthier.audit(tiny_trainer.trainer(tiny_trainer.model("qwen3"), collator=TwoPacks(mask=True)))
