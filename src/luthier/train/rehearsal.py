"""A recipe's training as something to check: the very step, optimizer and checkpoints that the run will use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.encoding.batches import collate
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.models.engine import Engine
from luthier.models.forward import head_is_plain
from luthier.plan import Plan, Step, due, window
from luthier.recipe import Recipe
from luthier.records import Row
from luthier.rows import Rows
from luthier.run_folder import RunFolder
from luthier.schedule import eval_interval, learning_rate, num_warmup_steps, total_steps
from luthier.train import checkpoint
from luthier.train.checkpoint import Progress, trainable
from luthier.train.loop import Loop, accumulate_gradients
from luthier.train.optimizer import adamw
from luthier.train.ranks import Ranks


class Rehearsal:
    """Luthier's own training of a prepared run, before it starts (``luthier.plan.Training``).

    Args:
        recipe, run: The prepared run.
        model, tokenizer: Give them when they are first asked for.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        model: Callable[[], PreTrainedModel | PeftModel],
        tokenizer: Callable[[], TextTokenizer],
    ) -> None:
        self._recipe, self._run, self._model, self._tokenizer = recipe, run, model, tokenizer
        self._train, self._eval = Rows(run.rows("train")), Rows(run.rows("eval"))

    @cached_property
    def plan(self) -> Plan:
        """What the recipe comes to, by the arithmetic that training itself uses."""
        settings, num_rows = self._recipe.train, len(self._train)
        steps = total_steps(settings, num_rows, int(self._train.lengths().sum()))
        every = eval_interval(settings, steps)
        if settings.eval_every_tokens:
            tokens_per_step = settings.batch_size * float(self._train.lengths().mean())
            every = max(1, round(settings.eval_every_tokens / tokens_per_step))
        keys = (
            "learning_rate",
            "warmup_steps",
            "max_steps",
            "max_tokens",
            "epochs",
            "best_metric",
        )
        return Plan(
            learning_rates=[learning_rate(step, steps, settings) for step in range(1, steps + 1)],
            peak_learning_rate=settings.learning_rate,
            warmup_steps=num_warmup_steps(settings, steps),
            steps_per_epoch=num_rows / settings.batch_size,
            rows_per_step=settings.batch_size,
            num_rows=num_rows,
            num_eval_rows=len(self._eval),
            eval_steps=due(every, steps),
            save_steps=due(settings.checkpoint_every_steps or every, steps),
            best_metric=settings.best_metric if settings.keep == "best" else None,
            best_direction=settings.best_direction,
            max_gradient_norm=settings.max_gradient_norm,
            keys={key: f"recipe key train.{key}" for key in keys}
            | {
                "rows_per_step": "recipe key train.batch_size",
                "num_rows": "recipe key data.source",
                "num_eval_rows": "recipe key data.splits.eval",
                "num_steps": "recipe key train.epochs",
                "max_gradient_norm": "recipe key train.max_gradient_norm",
                "eval_steps": "recipe key train.eval_every_steps",
                "save_steps": "recipe key train.checkpoint_every_steps",
            },
        )

    @cached_property
    def _loop(self) -> Loop:
        model = self._model()
        ranks = Ranks(alone=True)  # others wait for the checks of the first one
        # Nothing is generated, which alone asks for what ends a target.
        loop = Loop(self._recipe, self._run, model, self._tokenizer(), self._train, self._eval, None, ranks)
        first_batch = collate([self._train.row(0)], 0).to(loop.ranks.device)
        loop.engine = Engine(plain_head=not head_is_plain(model, first_batch))
        return loop

    def step(self, micro_batches: Sequence[Sequence[int]], max_tokens: int | None = None) -> Step:
        """As ``loop._step`` does it, up to the gradients."""
        model = self._loop.model
        rows: list[Row] = []
        groups: list[list[int]] = []
        for indices in micro_batches:
            groups.append(list(range(len(rows), len(rows) + len(indices))))
            rows += [_cut(self._train.row(i), max_tokens) for i in indices]
        model.train()
        model.zero_grad(set_to_none=True)
        loss = accumulate_gradients(self._loop, rows, groups)
        gradients = {
            name: None if p.grad is None else p.grad.detach() for name, p in trainable(model).items()
        }
        model.zero_grad(set_to_none=True)
        return Step(loss, gradients)

    def optimizer(self) -> torch.optim.Optimizer:
        """As the run will have it."""
        return adamw(self._loop.model.named_parameters(), self._recipe.train)

    def save(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        """A whole checkpoint of step 0."""
        checkpoint.save(RunFolder(folder), Progress(), self._loop.model, optimizer, key="")

    def restore(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        """From that checkpoint."""
        checkpoint.load(RunFolder(folder).checkpoints / "step-0", self._loop.model, optimizer)


def _cut(row: Row, max_tokens: int | None) -> Row:
    if max_tokens is None:
        return row
    trained = np.flatnonzero(np.asarray(row.loss_weights)[1:])
    part = window(len(row.input_ids), int(trained[0]) + 1 if len(trained) else 0, max_tokens)
    return replace(
        row,
        input_ids=row.input_ids[part],
        loss_weights=row.loss_weights[part],
        span_ids=row.span_ids[part],
    )
