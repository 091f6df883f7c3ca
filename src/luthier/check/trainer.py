"""A live transformers ``Trainer`` as something to check: its model, collator, data, arguments and training step.

Nothing of it is changed: what a look at it would change (generators, modes, its own counters) is put back.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset
from transformers import TrainerControl, TrainerState

from luthier.check.context import CheckContext, Skip
from luthier.check.model_rows import same_draws
from luthier.check.tokenised import store, to_rows
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.models.forward import base_model
from luthier.plan import Plan, Step, due
from luthier.records import Row, Split
from luthier.rows import Rows

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer

_WHOLE_BATCHES = 4


class TrainerContext(CheckContext):
    """A live ``Trainer``, before its ``train()``.

    Args:
        trainer: It, or an instance of a subclass.
        folder: Where to put its rows as checks read them.
        max_rows: Rows of a split that are read, as its data loader would give them first.
        quick: Leave out what needs the model.

    Attributes:
        batches: The first few batches as its collator makes them, for checks of packing and padding.
        padding_share: Share of padding in the batches read.
        collate: The trainer's collator, once rows have been read.
    """

    def __init__(
        self, trainer: Trainer, folder: Path, *, max_rows: int = 20_000, quick: bool = False
    ) -> None:
        super().__init__(quick=quick)
        self.trainer = trainer
        self.batches: list[dict[str, Any]] = []
        self.padding_share = 0.0
        self._folder, self._max_rows = folder, max_rows
        self._items: list[Any] = []
        self.collate: Any = None
        model: Any = trainer.model
        if base_model(model).config.is_encoder_decoder:
            raise Skip("encoder-decoder models are not looked into")
        if "TokenClassification" in type(base_model(model)).__name__:
            self.objective = "tags"

    @property
    def model_name(self) -> str:
        """The class, and the folder it came from."""
        model = base_model(self.model if not self.quick else self.trainer.model)  # type: ignore[arg-type]
        return f"{type(model).__name__} {model.config.name_or_path}".strip()

    def place(self, split: Split) -> str:
        """The attribute that holds the data set, whose rows are named by their index."""
        return f"trainer.{split}_dataset"

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The trainer's ``processing_class``."""
        from transformers import PreTrainedTokenizerFast

        hf = self.trainer.processing_class
        if not isinstance(hf, PreTrainedTokenizerFast):
            raise Skip("the trainer has no processing_class that is a fast tokenizer")
        stops = getattr(getattr(self.trainer.model, "generation_config", None), "eos_token_id", None)
        return TextTokenizer(hf, stops if isinstance(stops, list) else [] if stops is None else [stops])

    @cached_property
    def rows(self) -> Mapping[Split, Rows]:
        """The rows of the first batches of each split, as the collator makes them, without padding."""
        stored = {
            "train": store(
                self._read("train", self.trainer.get_train_dataloader), self._folder / "train.arrow"
            )
        }
        if self.trainer.eval_dataset is not None:
            stored["eval"] = store(
                self._read("eval", self.trainer.get_eval_dataloader), self._folder / "eval.arrow"
            )
        return stored  # type: ignore[return-value]

    def _read(self, split: Split, make_loader: Any) -> Iterator[Row]:
        try:
            tokenizer = self.tokenizer
        except Skip:
            tokenizer = None
        pad_id = tokenizer.hf.pad_token_id if tokenizer else None
        num_tokens = num_padding = num_rows = 0
        loader = make_loader()
        if split == "train":
            self.collate = loader.collate_fn
        for names, items, batch in self._collated(loader):
            if split == "train":
                self._items += items
                if len(self.batches) < _WHOLE_BATCHES:
                    self.batches.append(batch)
            ids = batch["input_ids"]
            if "labels" in batch and batch["labels"].shape != ids.shape:
                self.objective = "classes"
            if "attention_mask" in batch:
                num_padding += int((batch["attention_mask"] == 0).sum())
            num_tokens += ids.numel()
            fields = [k for k in ("input_ids", "attention_mask", "labels", "position_ids") if k in batch]
            for place in range(len(ids)):
                name = names[place] if len(ids) == len(items) else f"{names[0]}+"
                yield from to_rows(
                    name, {k: batch[k][place].cpu().numpy() for k in fields}, tokenizer, pad_id
                )
            num_rows += len(items)
            if num_rows >= self._max_rows:
                break
        if split == "train" and num_tokens:
            self.padding_share = num_padding / num_tokens

    def _collated(self, loader: Any) -> Iterator[tuple[list[str], list[Any], dict[str, Any]]]:
        """Names, items and collated batch, in the loader's own order; nothing is sent to worker processes."""
        dataset, collate = loader.dataset, loader.collate_fn
        if isinstance(dataset, IterableDataset):
            if iter(dataset) is dataset:  # type: ignore[comparison-overlap]
                raise Skip("the training data can be read only once")
            size = loader.batch_size or self.trainer.args.per_device_train_batch_size
            stream, start = iter(dataset), 0
            while items := list(islice(stream, size)):
                yield [str(start + i) for i in range(len(items))], items, collate(items)
                start += len(items)
            return
        for indices in loader.batch_sampler:
            items = [dataset[i] for i in indices]
            yield [str(i) for i in indices], items, collate(items)

    def _load_model(self) -> PreTrainedModel | PeftModel:
        return self.trainer.model  # type: ignore[return-value]

    @cached_property
    def is_exact(self) -> bool:
        """Whether parameters are in 32 bits; the checks' own forward passes never cast."""
        return super().is_exact

    def computing(self) -> AbstractContextManager[Any]:
        """The trainer's autocast, if parameters are of several formats, whose products fail without."""
        kinds = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        return nullcontext() if len(kinds) == 1 else self.trainer.compute_loss_context_manager()

    @cached_property
    def training(self) -> TrainerTraining:
        """The trainer's own step, optimizer and schedule."""
        return TrainerTraining(self)

    def items(self, indices: Sequence[int]) -> list[Any]:
        """The data set's items of some training rows.

        Raises:
            Skip: Rows are packed, so that no single item makes a row.
        """
        if len(self._items) != len(self.rows["train"]):
            raise Skip("rows are packed, so that none can be put into a batch of its own")
        return [self._items[i] for i in indices]


class TrainerTraining:
    """How a ``Trainer`` would train: its arguments as a plan, and its own ``training_step``."""

    def __init__(self, context: TrainerContext) -> None:
        self._context, self._trainer = context, context.trainer

    @cached_property
    def plan(self) -> Plan:
        """What its arguments come to; the same arithmetic as ``Trainer.train`` does."""
        from transformers import get_scheduler

        trainer, args = self._trainer, self._trainer.args
        sized = _length(trainer.train_dataset)
        batch = args.per_device_train_batch_size * max(1, args.n_gpu)
        rows_per_step = batch * args.gradient_accumulation_steps * args.world_size
        num_batches = None if sized is None else math.ceil(sized / (batch * args.world_size))
        per_epoch = (
            math.inf
            if num_batches is None
            else max(1, math.ceil(num_batches / args.gradient_accumulation_steps))
        )
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        warmup = args.get_warmup_steps(steps)
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
        scheduler = get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=warmup,
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs or {},  # type: ignore[arg-type] # parsed by now
        )
        rates = []
        for _ in range(steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
        metric = args.metric_for_best_model if args.load_best_model_at_end else None
        keys = ("warmup_steps", "learning_rate", "eval_steps", "save_steps", "max_grad_norm")
        names = {name: f"TrainingArguments.{name}" for name in keys}
        return Plan(
            learning_rates=rates,
            peak_learning_rate=args.learning_rate,
            warmup_steps=warmup,
            steps_per_epoch=per_epoch,
            rows_per_step=rows_per_step,
            num_rows=sized,
            num_eval_rows=0 if trainer.eval_dataset is None else _length(trainer.eval_dataset),
            accumulation_steps=args.gradient_accumulation_steps,
            num_ranks=args.world_size,
            eval_steps=_due(args.eval_strategy, args.eval_steps, steps, per_epoch),
            save_steps=_due(args.save_strategy, args.save_steps, steps, per_epoch),
            best_metric=metric,
            best_direction="max" if args.greater_is_better else "min",
            max_gradient_norm=args.max_grad_norm or None,
            keys=names
            | {
                "num_steps": "TrainingArguments.max_steps",
                "num_epochs": "TrainingArguments.num_train_epochs",
                "rows_per_step": "TrainingArguments.per_device_train_batch_size",
                "accumulation_steps": "TrainingArguments.gradient_accumulation_steps",
                "best_metric": "TrainingArguments.metric_for_best_model",
                "best_direction": "TrainingArguments.greater_is_better",
                "num_eval_rows": "trainer.eval_dataset",
            },
        )

    def step(self, micro_batches: Sequence[Sequence[int]]) -> Step:
        """As ``Trainer.train`` does it: count the items of all micro-batches, then one ``training_step`` for each."""
        trainer, model = self._trainer, self._trainer.model
        assert model is not None
        batches = [self._context.collate(self._context.items(indices)) for indices in micro_batches]
        model.zero_grad(set_to_none=True)
        samples, num_items = trainer.get_batch_samples(iter(batches), len(batches), trainer.args.device)
        trainer.current_gradient_accumulation_steps = len(samples)
        loss = 0.0
        for inputs in samples:
            with trainer.accelerator.autocast():
                loss += float(trainer.training_step(model, dict(inputs), num_items))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        gradients = {name: None if p.grad is None else p.grad.detach() for name, p in trained.items()}
        model.zero_grad(set_to_none=True)
        return Step(loss, gradients)

    def optimizer(self) -> torch.optim.Optimizer:
        """A new one, as ``create_optimizer`` makes it."""
        before = self._trainer.optimizer
        self._trainer.optimizer = None
        try:
            return self._trainer.create_optimizer()
        finally:
            self._trainer.optimizer = before

    def save(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        """The model as ``save_model`` writes it, and the optimizer's state as a checkpoint has it."""
        self._trainer.save_model(str(folder), _internal_call=True)
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")

    def restore(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        """As ``resume_from_checkpoint`` does."""
        self._trainer._load_from_checkpoint(str(folder))
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))


@contextmanager
def untouched(trainer: Trainer) -> Iterator[None]:
    """A block after which a trainer is as before: attributes, counters, modes, gradients, generators, data loaders.

    Weights that a check changes it puts back itself (``model_rows.unchanged``).
    """
    model = trainer.model
    assert model is not None
    attributes = dict(vars(trainer))
    contents = {name: _content(value) for name, value in attributes.items() if not name.endswith("dataset")}
    lists = {name: list(v) for name, v in vars(trainer.accelerator).items() if isinstance(v, list)}
    modes = {module: module.training for module in model.modules()}
    gradients = {p: p.grad for p in model.parameters()}
    try:
        with same_draws():
            yield
    finally:
        vars(trainer).clear()
        vars(trainer).update(attributes)
        for name, content in contents.items():
            _restore(attributes[name], content)
        for name, value in lists.items():
            vars(trainer.accelerator)[name][:] = value
        for module, mode in modes.items():
            module.training = mode
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


def _content(value: Any) -> Any:
    """A deep copy of what containers and the trainer's state hold; None of anything else."""
    if isinstance(value, TrainerState | TrainerControl):
        return copy.deepcopy(vars(value))
    if isinstance(value, dict | list | set):
        try:
            return copy.deepcopy(value)
        except Exception:  # whatever a foreign object in a container raises when it is copied
            return copy.copy(value)
    return value.clone() if isinstance(value, torch.Tensor) else None


def _restore(value: Any, content: Any) -> None:
    """Puts a content back into the very object that it was copied from, to which others may refer."""
    if isinstance(value, TrainerState | TrainerControl):
        vars(value).update(content)
    elif isinstance(value, list):
        value[:] = content
    elif isinstance(value, dict | set):
        value.clear()
        value.update(content)
    elif isinstance(value, torch.Tensor):
        value.detach().copy_(content)


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None


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
