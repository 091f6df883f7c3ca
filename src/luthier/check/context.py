"""What a check may look at, and how it says that it could not look or how much it saw.

One interface for three things that can be checked: a prepared run of ours (here), a live transformers ``Trainer``
(``trainer.py``) and tokenised rows that any framework wrote (``tokenised.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from luthier import recipe as recipes
from luthier.errors import UserError, one_line
from luthier.recipe import Classifier, Recipe
from luthier.records import SPLITS, Row, Split
from luthier.rows import Rows
from luthier.run_folder import RunFolder, read_json
from luthier.tasks import Task

if TYPE_CHECKING:  # a plug-in's check is imported whenever names are looked up, which must not load torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from luthier.encoding.text_tokenizer import TextTokenizer
    from luthier.plan import Training

_NO_RECIPE = "only a recipe's run has this, and this is none"


class Skip(Exception):
    """Raised by a check that does not apply or could not run; its text says why, and ends up in the report."""


def shown(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def evenly(num_rows: int, count: int) -> list[int]:
    """Indices of at most ``count`` rows, from the first to the last with the same distances."""
    places: list[int] = np.linspace(0, num_rows - 1, min(num_rows, count)).round().astype(int).tolist()
    return places


class CheckContext:
    """What is checked, read-only; what is costly is loaded when first asked for and shared by all checks.

    What is not there raises ``Skip`` when it is asked for, so that a check need not know what it is looking at. A check
    leaves everything as it found it: it restores what it changes in the model.

    Attributes:
        objective: What the model is trained to give: ``tokens`` (causal language model), ``classes`` (a label for each
            row, in ``meta["label"]``) or ``tags`` (a label for each token).
        padding_share: Share of padding in the training rows as they came; None if they came without.
        trust_remote_code: Whether code that comes with the model may be run.
        quick: Whether the model is left out.
        seen: How much each check looked at, as it said.
        forward_failed: Whether a forward pass of the model has failed, which is said once.
        comparable: Why forward passes of the model cannot be compared, empty if they can, None before it was tried.
        hollow: Parameters on the meta device, which have no numbers; known once the model has been asked for.
    """

    objective: Literal["tokens", "classes", "tags"] = "tokens"
    padding_share: float | None = None
    trust_remote_code = False

    def __init__(self, *, quick: bool = False) -> None:
        self.quick = quick
        self.seen: list[str] = []
        self._model_failed = False
        self.forward_failed = False
        self.comparable: str | None = None
        self.hollow: list[str] = []

    def looked_at(self, what: str = "") -> None:
        """Notes how much the running check looked at: ``4 batches``, ``30 steps``; without a text all rows."""
        self.seen.append(what or f"all {sum(map(len, self.rows.values())):,} rows")

    # What a run of Luthier has

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        raise Skip(_NO_RECIPE)

    @property
    def run(self) -> RunFolder:
        """The run folder."""
        raise Skip(_NO_RECIPE)

    @property
    def task(self) -> Task:
        """The recipe's task."""
        raise Skip(_NO_RECIPE)

    @property
    def ledger(self) -> dict[str, Any]:
        """``ledger.json``."""
        raise Skip(_NO_RECIPE)

    # What all have

    @property
    def model_name(self) -> str:
        """The model's name, for messages."""
        raise NotImplementedError

    @property
    def rows(self) -> Mapping[Split, Rows]:
        """The rows of each split that has any."""
        raise NotImplementedError

    def training_rows(self, fewest: int = 1) -> Rows:
        """The training rows.

        Raises:
            Skip: There are fewer than so many.
        """
        rows = self.rows.get("train")
        if rows is None or len(rows) < fewest:
            raise Skip(
                f"there are fewer than {fewest} training rows" if fewest > 1 else "there are no training rows"
            )
        return rows

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer, with the recipe's new tokens."""
        raise Skip("there is no tokenizer")

    @cached_property
    def model(self) -> PreTrainedModel | PeftModel:
        """The model in the form in which training starts, adapter included.

        Raises:
            UserError: It cannot be loaded; the first check that asks says so.
            Skip: It could not be, said to each one after that; or it is left out.
        """
        if self.quick:
            raise Skip("it needs the model, which --quick leaves out")
        if self._model_failed:
            raise Skip("the model cannot be loaded, see the errors")
        try:
            model = self._load_model()
        except UserError:
            self._model_failed = True
            raise
        self.hollow = [name for name, p in model.named_parameters() if p.is_meta]
        if self.hollow:
            raise Skip("some of its parameters have no numbers (see weights)")
        return model

    def _load_model(self) -> PreTrainedModel | PeftModel:
        raise Skip("there is no model")

    @property
    def training(self) -> Training:
        """The training that would be done: its plan, its step and its optimizer."""
        raise Skip("rows and a model alone say nothing of the training")

    @property
    def new_tokens(self) -> list[int]:
        """Ids that were added to the vocabulary and that the model cannot know yet."""
        return []

    @cached_property
    def is_exact(self) -> bool:
        """Whether the model computes in 32 bits throughout, so that only rounding of the last digits may differ."""
        import torch

        return all(p.dtype == torch.float32 for p in self.model.parameters() if p.is_floating_point())

    def computing(self) -> AbstractContextManager[Any]:
        """The number format in which the training computes, where the model's own parameters leave that open."""
        return nullcontext()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Room for forward passes in the number format of the training; a failure is said once.

        Raises:
            Skip: A forward pass has failed before.
            UserError: This one fails.
        """
        if self.forward_failed:
            raise Skip("the model's forward pass fails, see the errors")
        try:
            with self.computing():
                yield
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            self.forward_failed = True
            raise UserError(
                f"the model's forward pass fails: {one_line(error)}",
                f"model {self.model_name}",
                "see what weights, precision and pooled-position found; else try one batch by hand: model(**batch)",
            ) from error

    def place(self, split: Split) -> str:
        """Where a split's rows lie, for messages."""
        return f"data/{split}.arrow"

    def fix(self, run: str, other: str) -> str:
        """What to do about a finding: in a recipe's run, and in anything else."""
        return other

    def only_tokens(self) -> None:
        """Ends a check of target tokens where there are none.

        Raises:
            Skip: The model is trained to give labels, or to fill in masked tokens.
        """
        if self.objective != "tokens":
            raise Skip("the model is trained to give labels, so there are no target tokens")
        if "ForMaskedLM" in self.model_name:
            raise Skip("the model fills in tokens that are masked, so nothing of a row is its target")

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
        with self.forward():
            return not head_is_plain(self.model, collate([row], pad_id=0).to(base.device))

    def spread(self, split: Split, count: int) -> Iterator[Row]:
        """At most ``count`` rows of a split, evenly spread over it."""
        rows: Sequence[Row] = self.rows.get(split, ())
        for index in evenly(len(rows), count):
            yield rows[index]


class RunContext(CheckContext):
    """A prepared run of a recipe.

    Args:
        recipe: The recipe.
        run: Its folder, prepared.
        training: Makes the training that would be done of the context; without it, checks of training are skipped.
        quick: Leave out what needs the model.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        training: Callable[[RunContext], Training] | None = None,
        *,
        quick: bool = False,
    ) -> None:
        super().__init__(quick=quick)
        self._recipe, self._run, self._make_training = recipe, run, training
        self.trust_remote_code = recipe.model.trust_remote_code
        if isinstance(recipe.model, Classifier):
            self.objective = "classes"

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self._recipe

    @property
    def run(self) -> RunFolder:
        """The run folder."""
        return self._run

    @cached_property
    def task(self) -> Task:
        """The recipe's task, as rows were made by it."""
        labels = self.run.labels
        options = read_json(labels)["task"] if labels.is_file() else self.recipe.task
        task: Task = recipes.build("task", options, "recipe key task")
        return task

    @cached_property
    def ledger(self) -> dict[str, Any]:
        """``ledger.json``."""
        ledger: dict[str, Any] = read_json(self.run.ledger)
        return ledger

    @property
    def model_name(self) -> str:
        """As the recipe says."""
        return self.recipe.model.name

    @cached_property
    def rows(self) -> Mapping[Split, Rows]:
        """The rows of each split that has any."""
        found = {split: Rows(self.run.rows(split)) for split in SPLITS if self.run.rows(split).is_file()}
        return {split: rows for split, rows in found.items() if len(rows)}

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer, with the recipe's new tokens."""
        from luthier.models.load import load_tokenizer

        return load_tokenizer(self.recipe.model)

    def _load_model(self) -> PreTrainedModel | PeftModel:
        from luthier.models.load import load_model

        return load_model(self.recipe.model, len(self.tokenizer), training=True, seed=self.recipe.seed)

    @cached_property
    def training(self) -> Training:
        """The recipe's training."""
        if self._make_training is None:
            raise Skip("there is no training to look at")
        return self._make_training(self)

    @cached_property
    def new_tokens(self) -> list[int]:
        """Those of ``model.new_tokens``."""
        size, count = len(self.tokenizer), len(self.recipe.model.new_tokens)
        return list(range(size - count, size))

    @cached_property
    def is_exact(self) -> bool:
        """Whether model and matrix products are in 32 bits."""
        from luthier.models.load import choose_precision

        return choose_precision(self.recipe.model) == "fp32" and super().is_exact

    def fix(self, run: str, other: str) -> str:
        """The recipe's way."""
        return run
