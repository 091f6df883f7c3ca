"""What a check may look at, and how it says that it could not look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier import recipe as recipes
from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.records import SPLITS, Row, Split
from luthier.rows import Rows
from luthier.run_folder import RunFolder, read_json
from luthier.tasks import Task

if TYPE_CHECKING:  # a plug-in's check is imported whenever names are looked up, which must not load torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from luthier.encoding.text_tokenizer import TextTokenizer


class Skip(Exception):
    """Raised by a check that does not apply or could not run; its text says why, and ends up in the report."""


@dataclass
class CheckContext:
    """The prepared run, read-only; what is costly is loaded when first asked for and shared by all checks.

    A check leaves everything as it found it: it restores what it changes in the model.
    """

    recipe: Recipe
    run: RunFolder
    _model_failed: bool = field(default=False, init=False, repr=False)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer, with the recipe's new tokens."""
        from luthier.models.load import load_tokenizer

        return load_tokenizer(self.recipe.model)

    @cached_property
    def task(self) -> Task:
        """The recipe's task."""
        task: Task = recipes.build("task", self.recipe.task, "recipe key task")
        return task

    @cached_property
    def ledger(self) -> dict[str, Any]:
        """``ledger.json``."""
        ledger: dict[str, Any] = read_json(self.run.ledger)
        return ledger

    @cached_property
    def rows(self) -> Mapping[Split, Rows]:
        """The rows of each split that has any."""
        return {split: Rows(self.run.rows(split)) for split in SPLITS if self.run.rows(split).is_file()}

    @cached_property
    def model(self) -> PreTrainedModel | PeftModel:
        """The model in the form in which training starts, adapter included.

        Raises:
            UserError: It cannot be loaded; the first check that asks says so.
            Skip: It could not be, said to each one after that.
        """
        from luthier.models.load import load_model

        if self._model_failed:
            raise Skip("the model cannot be loaded, see the errors")
        try:
            return load_model(self.recipe.model, len(self.tokenizer), training=True, seed=self.recipe.seed)
        except UserError:
            self._model_failed = True
            raise

    @cached_property
    def plain_forward(self) -> bool:
        """Whether logits must come from the model's own forward, as training finds out too; asked over 32 tokens."""
        from luthier.encoding.batches import collate
        from luthier.models.forward import base_model, head_is_plain

        base = base_model(self.model)
        places = np.arange(32, dtype=np.int32)
        weights = (places > 0).astype(np.float32)
        row = replace(
            self.rows["train"].row(0), input_ids=places % base.config.vocab_size, loss_weights=weights
        )
        return not head_is_plain(self.model, collate([row], pad_id=0).to(base.device))

    def spread(self, split: Split, count: int) -> Iterator[Row]:
        """At most ``count`` rows of a split, evenly spread over it."""
        rows = self.rows[split]
        step = max(1, len(rows) // count)
        for index in range(0, len(rows), step)[:count]:
            yield rows.row(index)
