"""How a transformers ``Trainer`` would train: its arguments as a plan, its own step, optimizer and checkpoints."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from luthier.check.as_before import modules_as_before
from luthier.check.context import Skip
from luthier.check.trainer import TrainerContext
from luthier.errors import UserError, one_line
from luthier.plan import Plan, Step, due

if TYPE_CHECKING:
    from transformers import Trainer


class TrainerTraining:
    """How a ``Trainer`` would train: its arguments as a plan, and its own ``training_step``.

    Attributes:
        takes_cut_rows: Whether its step takes rows that are cut; found out at the first one.
    """

    def __init__(self, context: TrainerContext) -> None:
        self._context, self._trainer = context, context.trainer
        self._failed = False
        self.takes_cut_rows = True

    @cached_property
    def plan(self) -> Plan:
        """What its arguments come to; the same arithmetic as ``Trainer.train`` does."""
        trainer, args = self._trainer, self._trainer.args
        sized = _length(trainer.train_dataset)
        batch = args.per_device_train_batch_size * max(1, args.n_gpu)
        per_rank = math.floor if args.dataloader_drop_last else math.ceil
        num_batches = None if sized is None else per_rank(sized / (batch * args.world_size))
        per_epoch = (
            math.inf if num_batches is None else math.ceil(num_batches / args.gradient_accumulation_steps)
        )
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        if not per_epoch:
            steps = 0  # not one whole batch: nothing is trained
        scheduler = self._scheduler(max(1, steps))
        own = trainer.lr_scheduler is not None
        peak = max(float(g.get("initial_lr", g["lr"])) for g in scheduler.optimizer.param_groups)
        chooses = args.load_best_model_at_end or getattr(args.save_strategy, "value", "") == "best"
        return Plan(
            learning_rates=_rates(scheduler, steps),
            peak_learning_rate=peak,
            warmup_steps=args.get_warmup_steps(steps),
            steps_per_epoch=per_epoch,
            rows_per_step=batch * args.gradient_accumulation_steps * args.world_size,
            num_rows=sized,
            num_eval_rows=_num_eval_rows(trainer.eval_dataset),
            accumulation_steps=args.gradient_accumulation_steps,
            num_ranks=args.world_size,
            eval_steps=_due(args.eval_strategy, args.eval_steps, steps, per_epoch),
            save_steps=_due(args.save_strategy, args.save_steps, steps, per_epoch),
            best_metric=args.metric_for_best_model if chooses else None,
            best_direction="max" if args.greater_is_better else "min",
            max_gradient_norm=args.max_grad_norm or None,
            schedule_steps=_end_of(scheduler, steps) if own else None,
            ignored_epochs=_ignored_epochs(args, steps, per_epoch),
            saves_optimizer=not args.save_only_model,
            keys=_KEYS,
        )

    def _scheduler(self, steps: int) -> Any:
        """The scheduler that was passed, or the one that will be made, over an optimizer of its own."""
        from transformers import get_scheduler

        trainer, args = self._trainer, self._trainer.args
        rate = args.learning_rate
        if trainer.optimizer is not None:
            group = max(trainer.optimizer.param_groups, key=lambda g: float(g.get("initial_lr", g["lr"])))
            rate = float(group.get("initial_lr", group["lr"]))
        if trainer.lr_scheduler is not None:
            return trainer.lr_scheduler
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
        return get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs or {},  # type: ignore[arg-type] # parsed by now
        )

    def step(self, micro_batches: Sequence[Sequence[int]], max_tokens: int | None = None) -> Step:
        """As ``Trainer.train`` does it: count the items of all micro-batches, then one ``training_step`` for each.

        Raises:
            Skip: The model is spread over processes, or a step has failed before.
            UserError: The step fails.
        """
        trainer = self._trainer
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise Skip("the model will be spread over processes, so that no step can be made here")
        if self._failed:
            raise Skip("the training step fails, see the errors")
        if self.takes_cut_rows and max_tokens is not None:
            try:
                return self._step(micro_batches, max_tokens)
            except Skip:
                raise
            except Exception:  # it may want rows whole, or of one length
                self.takes_cut_rows = False
        try:
            return self._step(micro_batches, None)
        except Skip:
            raise
        except Exception as error:  # whatever a foreign step raises
            self._failed = True
            raise UserError(
                f"a training step fails: {one_line(error)}",
                f"{type(trainer).__name__}.training_step",
                "it would fail in training too: see the message",
            ) from error

    def _step(self, micro_batches: Sequence[Sequence[int]], max_tokens: int | None) -> Step:
        trainer, model = self._trainer, self._trainer.model
        assert model is not None
        items = [self._context.items(indices, max_tokens) for indices in micro_batches]
        model.zero_grad(set_to_none=True)
        with _as_in_training(trainer):
            loss = self._loss([self._context.collate(batch) for batch in items])
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        gradients = {name: None if p.grad is None else p.grad.detach() for name, p in trained.items()}
        model.zero_grad(set_to_none=True)
        return Step(loss, gradients)

    def _loss(self, batches: list[Any]) -> float:
        """The loss of a step, whose gradients are left in the parameters."""
        trainer = self._trainer
        samples, num_items = trainer.get_batch_samples(iter(batches), len(batches), trainer.args.device)
        trainer.current_gradient_accumulation_steps = len(samples)
        loss = 0.0
        for inputs in samples:
            with trainer.accelerator.autocast():
                try:
                    loss += float(trainer.training_step(trainer.model, dict(inputs), num_items))  # type: ignore[arg-type] # a trainer may have no model by its types
                except RuntimeError as error:
                    if "does not require grad" not in str(error):
                        raise
                    loss = math.nan  # nothing that is trained is reached, which check gradients says
        return loss

    def optimizer(self) -> torch.optim.Optimizer:
        """A new one: grouped and set as the one that was passed, or as ``create_optimizer`` makes it.

        Raises:
            Skip: It hooks itself into the parameters, or cannot be made a second time.
        """
        trainer = self._trainer
        passed: Any = trainer.optimizer
        if passed is not None:
            passed = getattr(passed, "optimizer", passed)  # without accelerate's wrapper
            groups = [dict(group) | {"params": list(group["params"])} for group in passed.param_groups]
            options = inspect.signature(type(passed)).parameters
            try:
                made: torch.optim.Optimizer = type(passed)(
                    groups, **{name: value for name, value in passed.defaults.items() if name in options}
                )
            except TypeError as error:
                raise Skip(f"a second {type(passed).__name__} cannot be made: {error}") from error
            return made
        if any(kind in str(trainer.args.optim).lower() for kind in ("lomo", "layerwise")):
            raise Skip(f"{trainer.args.optim} hooks itself into the parameters")
        try:
            return trainer.create_optimizer()
        finally:
            trainer.optimizer = None

    def save(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        """The model as ``save_model`` writes it, and the optimizer's state as a checkpoint has it."""
        self._trainer.save_model(str(folder), _internal_call=True)
        if not self._trainer.args.save_only_model:
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")

    def restore(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        """As ``resume_from_checkpoint`` does, which goes on without the optimizer's state if none was saved."""
        self._trainer._load_from_checkpoint(str(folder))
        if (folder / "optimizer.pt").is_file():
            optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))


_KEYS = {
    "accumulation_steps": "TrainingArguments.gradient_accumulation_steps",
    "best_direction": "TrainingArguments.greater_is_better",
    "best_metric": "TrainingArguments.metric_for_best_model",
    "eval_steps": "TrainingArguments.eval_steps",
    "learning_rate": "TrainingArguments.learning_rate",
    "max_gradient_norm": "TrainingArguments.max_grad_norm",
    "max_steps": "TrainingArguments.max_steps",
    "num_eval_rows": "trainer.eval_dataset",
    "optimizer": "Trainer(optimizers=...)",
    "rows_per_step": "TrainingArguments.per_device_train_batch_size",
    "save_only_model": "TrainingArguments.save_only_model",
    "save_steps": "TrainingArguments.save_steps",
    "schedule": "Trainer(optimizers=...)",
    "warmup_steps": "TrainingArguments.warmup_steps",
    "weight_decay": "TrainingArguments.weight_decay",
}


@contextmanager
def _as_in_training(trainer: Trainer) -> Iterator[None]:
    """What ``Trainer.train`` sets up before its first step, on one rank and with gradients as they are, and is put back."""
    args, model = trainer.args, trainer.model
    scaler, across = trainer.accelerator.scaler, args.average_tokens_across_devices
    trainer.accelerator.scaler = None  # gradients come unscaled
    if args.world_size > 1:
        # Ranks would wait for each other; what they add is arithmetic (see check accumulation).
        args.average_tokens_across_devices = False
    with modules_as_before(model):  # type: ignore[arg-type] # likewise
        if getattr(args, "activation_checkpointing", None) and hasattr(
            model, "activation_checkpointing_enable"
        ):
            settings: dict[str, Any] = dict(args.activation_checkpointing_kwargs or {})  # type: ignore[arg-type] # parsed by now
            every, offload = settings.pop("every_n_layers", 1), settings.pop("offload", False)
            model.activation_checkpointing_enable(  # type: ignore[operator, union-attr] # likewise
                activation_checkpointing_kwargs=settings or None, every_n_layers=every, offload=offload
            )
        try:
            yield
        finally:
            trainer.accelerator.scaler = scaler
            args.average_tokens_across_devices = across


def _rates(scheduler: Any, steps: int) -> list[float]:
    """The learning rate of each step, without touching the scheduler."""
    if isinstance(scheduler, LambdaLR):
        place = max(range(len(scheduler.base_lrs)), key=lambda i: float(scheduler.base_lrs[i]))
        base, share = float(scheduler.base_lrs[place]), scheduler.lr_lambdas[place]
        return [base * share(step) for step in range(scheduler.last_epoch, scheduler.last_epoch + steps)]
    mine = _twin(scheduler)
    rates = []
    for _ in range(steps):
        rates.append(max(float(group["lr"]) for group in mine.optimizer.param_groups))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the optimizer made no step before
                mine.step()
        except (TypeError, ValueError):  # it goes by a metric, or has come to its end
            return rates + [rates[-1]] * (steps - len(rates))
    return rates


def _twin(scheduler: Any) -> Any:
    """A scheduler of the same state over parameters of its own."""
    groups = [
        {k: copy.copy(v) for k, v in group.items() if k != "params"} | {"params": [torch.zeros(1)]}
        for group in scheduler.optimizer.param_groups
    ]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    optimizer.param_groups[:] = groups
    twin = copy.copy(scheduler)
    vars(twin).update({k: copy.copy(v) for k, v in vars(twin).items() if isinstance(v, list | dict)})
    twin.optimizer = optimizer
    if hasattr(twin, "_schedulers"):  # one after another, over the same optimizer
        twin._schedulers = [_twin(inner) for inner in twin._schedulers]
        for inner in twin._schedulers:
            inner.optimizer = optimizer
    return twin


def _end_of(scheduler: Any, steps: int) -> int | None:
    """Steps after which a schedule is at 1% of its peak, looked for in ten times the run; None if not beyond the run."""
    rates = _rates(scheduler, 10 * steps)
    low = [step for step, rate in enumerate(rates) if step >= steps and rate <= 0.01 * max(rates)]
    return low[0] if low and rates[steps - 1] > 0.01 * max(rates) else None


def _ignored_epochs(args: Any, steps: int, per_epoch: float) -> float | None:
    default = type(args).__dataclass_fields__["num_train_epochs"].default
    if args.max_steps <= 0 or args.num_train_epochs == default or not math.isfinite(per_epoch):
        return None
    return float(args.num_train_epochs) if abs(args.num_train_epochs * per_epoch - steps) > 1 else None


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None


def _num_eval_rows(dataset: Any) -> int | None:
    """Rows of the data set that a Trainer is evaluated on, or of all of them; None if one is streamed."""
    several = dataset.values() if isinstance(dataset, dict) else [] if dataset is None else [dataset]
    lengths = [_length(one) for one in several]
    return None if None in lengths else sum(filter(None, lengths))


def _due(strategy: Any, every: float | None, steps: int, per_epoch: float) -> list[int]:
    """Steps after which something planned by a strategy happens."""
    kind = getattr(strategy, "value", strategy)
    if kind == "epoch":
        every = per_epoch
    elif kind != "steps" or not every:
        return []
    elif every < 1:
        every = math.ceil(steps * every)
    if not math.isfinite(every):
        return []
    return due(max(1, int(every)), steps)
