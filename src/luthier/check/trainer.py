"""A live transformers ``Trainer`` as something to check: its model, collator, data, arguments and training step.

Nothing of it is changed: what a look at it would change (generators, modes, its own counters) is put back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers import TrainerControl, TrainerState

from luthier.check.as_before import attributes_as_before, modules_as_before, refill, same_draws
from luthier.check.context import CheckContext, Skip
from luthier.check.model_rows import only_embedded
from luthier.check.tokenised import IGNORED, store, to_rows
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError, one_line
from luthier.models.forward import base_model
from luthier.plan import window
from luthier.records import Row, Split
from luthier.rows import Rows

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer

    from luthier.check.trainer_step import TrainerTraining

_WHOLE_BATCHES = 4
_COLUMNS = ("input_ids", "attention_mask", "labels", "position_ids")


class TrainerContext(CheckContext):
    """A live ``Trainer``, before its ``train()``.

    Args:
        trainer: It, or an instance of a subclass.
        folder: Where to put its rows as checks read them.
        max_rows: Rows of a split that are read, as its data loader would give them first.
        quick: Leave out what needs the model.

    Attributes:
        batches: The first few batches as its collator makes them, for checks of packing and padding.
        collate: The trainer's collator, once rows have been read.
        problem_type: What the model's config says of the loss of its labels, before anything was run.
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
        self._owners: list[int | None] = []  # of each training row, the item that it came from
        self.collate: Any = None
        model: Any = trainer.model
        if base_model(model).config.is_encoder_decoder:
            raise Skip("encoder-decoder models are not looked into")
        if "TokenClassification" in type(base_model(model)).__name__:
            self.objective = "tags"
        # The first forward pass with labels sets what nobody has set.
        self.problem_type: str | None = getattr(base_model(model).config, "problem_type", None)

    @property
    def model_name(self) -> str:
        """The class, and the folder it came from."""
        model = base_model(self.trainer.model)  # type: ignore[arg-type] # a trainer may have no model by its types
        return f"{type(model).__name__} {model.config.name_or_path}".strip()

    @property
    def overrides_loss(self) -> bool:
        """Whether somebody's own method computes the loss."""
        return not type(self.trainer).compute_loss.__module__.startswith(("transformers.", "trl."))

    @property
    def has_own_loss(self) -> bool:
        """Whether somebody's own method or function computes the loss."""
        return self.overrides_loss or self.trainer.compute_loss_func is not None

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
            stored["eval"] = store(self._read_eval(), self._folder / "eval.arrow")
        return stored  # type: ignore[return-value]

    def _read_eval(self) -> Iterator[Row]:
        """The rows of the data set that it is evaluated on, or of all of them."""
        if isinstance(self.trainer.eval_dataset, dict):
            for name in self.trainer.eval_dataset:
                for row in self._read("eval", partial(self.trainer.get_eval_dataloader, name)):
                    yield replace(row, id=f"{name}/{row.id}")
        else:
            yield from self._read("eval", self.trainer.get_eval_dataloader)

    def _read(self, split: Split, make_loader: Any) -> Iterator[Row]:
        try:
            tokenizer = self.tokenizer
        except Skip:
            tokenizer = None
        pad_id = tokenizer.hf.pad_token_id if tokenizer else None
        num_tokens = num_padding = num_rows = 0
        with _foreign(f"the data loader of the {split} split fails", self.place(split)):
            loader = make_loader()
        if split == "train":
            self.collate = loader.collate_fn
        for names, items, batch in self._collated(split, loader):
            if split == "train":
                first = len(self._items)
                self._items += items
                if len(self.batches) < _WHOLE_BATCHES:
                    self.batches.append(batch)
            if not isinstance(batch, Mapping) or "input_ids" not in batch:
                raise Skip("its collator gives no input_ids")
            ids = batch["input_ids"]
            # DataCollatorForSeq2Seq gives labels that are None where its items have none.
            fields = [k for k in _COLUMNS if batch.get(k) is not None]
            made: list[Row] = []
            with _foreign("a batch cannot be read", "trainer.data_collator"):
                if "labels" in fields and batch["labels"].shape != ids.shape:
                    self.objective = "classes"
                if "attention_mask" in fields:
                    num_padding += int((batch["attention_mask"] == 0).sum())
                num_tokens += ids.numel()
                for place in range(len(ids)):
                    name = names[place] if len(ids) == len(items) else f"{names[0]}+"
                    encoded: dict[str, Any] = {k: batch[k][place].cpu().numpy() for k in fields}
                    rows = to_rows(name, encoded, tokenizer, pad_id)
                    made += rows
                    if split == "train" and len(ids) == len(items):
                        self._owners += [first + place] * len(rows)
            if split == "train" and len(ids) != len(items):
                self._owners += [None if o is None else first + o for o in _owners(made, items)]
            yield from made
            num_rows += len(items)
            if num_rows >= self._max_rows:
                break
        if split == "train" and num_tokens:
            self.padding_share = num_padding / num_tokens

    def _collated(self, split: Split, loader: Any) -> Iterator[tuple[list[str], list[Any], Any]]:
        """Names, items and collated batch, in the loader's own order; nothing is sent to worker processes."""
        groups = self._groups(loader)
        while True:
            with _foreign(f"reading {self.place(split)} fails", self.place(split)):
                names, items = next(groups, ([], []))
            if not items:
                return
            with _foreign("the collator fails", "trainer.data_collator"):
                batch = loader.collate_fn(_copies(items))
            yield names, items, batch

    def _groups(self, loader: Any) -> Iterator[tuple[list[str], list[Any]]]:
        """Names and items of each batch."""
        dataset = loader.dataset
        if isinstance(dataset, IterableDataset):
            if iter(dataset) is dataset:  # type: ignore[comparison-overlap]
                raise Skip("the training data can be read only once")
            size = loader.batch_size or self.trainer.args.per_device_train_batch_size
            stream = enumerate(dataset)
            while group := list(islice(stream, size)):
                yield [str(place) for place, _ in group], [item for _, item in group]
            return
        for indices in loader.batch_sampler:
            yield [str(i) for i in indices], [dataset[i] for i in indices]

    def _load_model(self) -> PreTrainedModel | PeftModel:
        return self.trainer.model  # type: ignore[return-value]

    def computing(self) -> AbstractContextManager[Any]:
        """The trainer's autocast, if parameters are of several formats, whose products fail without."""
        kinds = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        return nullcontext() if len(kinds) == 1 else self.trainer.accelerator.autocast()

    @cached_property
    def training(self) -> TrainerTraining:
        """The trainer's own step, optimizer and schedule."""
        from luthier.check.trainer_step import TrainerTraining

        return TrainerTraining(self)

    def items(self, indices: Sequence[int], max_tokens: int | None = None) -> list[Any]:
        """The data set's items that some training rows came from, each once; an item that is a pack holds several rows.

        Args:
            indices: Of the rows.
            max_tokens: Cut what is longer to the row's ``window``, or to its beginning where the collator has to find out
                what is trained, or where rows are packed.

        Raises:
            Skip: It is not known which item a row came from.
        """
        found: dict[int, Any] = {}
        for index in indices:
            owner = self._owners[index]
            if owner is None:
                raise Skip("the collator joins rows so that none can be put into a batch of its own")
            if owner not in found:
                found[owner] = _cut(self._items[owner], self.rows["train"].row(index), max_tokens)
        return list(found.values())

    def short_batch(self, indices: Sequence[int], max_tokens: int) -> dict[str, torch.Tensor]:
        """Some training rows as the collator makes a batch of them, on the model's device and without labels.

        Args:
            indices: Of the rows.
            max_tokens: Items are cut to at most so many tokens: the first one least and the last one to half of that,
                so that there is something to pad.

        Returns:
            What goes into the model's forward.

        Raises:
            Skip: Rows are packed, or the collator draws at random what it gives, or it fails on rows that are cut; or an id
                (of padding, as a rule) has no embedding, which would end in a crash.
        """
        packed = "rows are packed, so that none can be put into a batch of its own"
        if any("pack" in self.rows["train"].row(index).meta for index in indices):
            raise Skip(packed)
        items = self.items(indices)
        for place, item in enumerate(items):
            if isinstance(item, dict) and "input_ids" in item:
                share = 1 - place / (2 * max(1, len(items) - 1))
                _slice(item, slice(max(2, int(min(len(item["input_ids"]), max_tokens) * share))))
        try:
            with same_draws():
                batch, again = self.collate(_copies(items)), self.collate(_copies(items))
        except Exception as error:  # whatever a foreign collator raises when what it gets is cut
            raise Skip(f"the collator fails on shortened rows: {one_line(error)}") from error
        tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        if len(tensors["input_ids"]) != len(items):
            raise Skip(packed)
        if any(not torch.equal(value, again[name]) for name, value in tensors.items()):
            raise Skip("the collator gives something else each time")
        only_embedded(self, tensors["input_ids"])
        device = base_model(self.model).device
        return {name: value.to(device) for name, value in tensors.items() if not name.startswith("label")}

    @cached_property
    def new_tokens(self) -> list[int]:
        """Ids of the tokenizer that the one in the model's own folder has not; none if there is no such folder."""
        from transformers import AutoTokenizer

        folder = base_model(self.trainer.model).config.name_or_path  # type: ignore[arg-type]
        if not folder or not (Path(folder) / "tokenizer_config.json").is_file():
            return []
        try:
            own = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            known = set(own.get_vocab().values())
            return sorted(set(self.tokenizer.hf.get_vocab().values()) - known)
        except (OSError, ValueError, TypeError, ImportError, Skip):  # what cannot be read tells nothing
            return []


@contextmanager
def _foreign(what: str, where: str) -> Iterator[None]:
    """Names whatever somebody else's data sets and collators raise."""
    try:
        yield
    except (Skip, UserError):
        raise
    except Exception as error:  # whatever a foreign data set or collator raises
        raise UserError(
            f"{what}: {one_line(error)}", where, "training would fail too: see the message"
        ) from error


def is_cut_as_row(item: Any, row: Row) -> bool:
    """Whether cutting an item gives the same tokens as cutting its row."""
    if not isinstance(item, Mapping) or "input_ids" not in item or "pack" in row.meta:
        return False
    real = _real(item)
    labelled = "label" in row.meta or np.shape(item.get("labels", ())) == (len(item["input_ids"]),)
    return labelled and len(real) == len(row.input_ids)


def _real(item: Mapping[str, Any]) -> np.ndarray:
    """Positions of an item's tokens that are no padding."""
    length = len(item["input_ids"])
    mask = np.asarray(item.get("attention_mask", np.ones(length)))
    return np.flatnonzero(mask) if mask.shape == (length,) else np.arange(length)


def _cut(item: Any, row: Row, max_tokens: int | None) -> Any:
    """A copy of a row's item; of one that is padded to a fixed length all cuts have the same length again."""
    (item,) = _copies([item])
    if max_tokens is None or not isinstance(item, dict) or "input_ids" not in item:
        return item
    length, real = len(item["input_ids"]), _real(item)
    if not len(real) or length <= max_tokens:
        return item
    labels = np.asarray(item["labels"] if "pack" in row.meta and "labels" in item else row.loss_weights)
    trained = np.flatnonzero((labels != IGNORED) & (labels != 0))
    first = int(trained[trained > 0][0]) if (trained > 0).any() else 0
    if is_cut_as_row(item, row):
        start = min(int(real[0]) + window(len(real), first, max_tokens).start, length - max_tokens)
        stop = start + max_tokens
    else:
        start = 0
        stop = min(int(real[-1]) + 1, int(real[0]) + max(max_tokens, first + max_tokens // 2))
    _slice(item, slice(start, stop))
    if "seq_lengths" in item:  # of the rows in a pack
        lengths = np.diff(np.minimum(np.cumsum(item["seq_lengths"]), stop), prepend=0)
        item["seq_lengths"] = lengths[lengths > 0].tolist()
    return item


def _slice(item: dict[str, Any], part: slice) -> None:
    """Cuts the columns of an item that hold one value a token."""
    length = len(item["input_ids"])
    for name, value in item.items():
        if hasattr(value, "__len__") and not isinstance(value, str | bytes) and len(value) == length:
            item[name] = value[part]


def _copies(items: Sequence[Any]) -> list[Any]:
    """Items that a collator may take things out of, as some do."""
    return [dict(item) if isinstance(item, Mapping) else copy.copy(item) for item in items]


def _owners(rows: Sequence[Row], items: Sequence[Any]) -> list[int | None]:
    """The item that each row of a batch which the collator joined came from; None where lengths do not tell."""
    if len(rows) == len(items):
        return list(range(len(items)))
    lengths = [
        len(item["input_ids"]) if isinstance(item, Mapping) and "input_ids" in item else 0 for item in items
    ]
    sizes = [len(row.input_ids) for row in rows]
    if sum(lengths) != sum(sizes):
        return [None] * len(rows)
    starts = np.cumsum([0, *sizes[:-1]])
    return [int(place) for place in np.searchsorted(np.cumsum(lengths), starts, side="right")]


@contextmanager
def untouched(trainer: Trainer) -> Iterator[None]:
    """A block after which a trainer is as before: attributes, counters, modes, gradients, generators, data loaders.

    Weights that a check changes it puts back itself (``as_before.unchanged``).
    """
    model = trainer.model
    assert model is not None
    attributes = dict(vars(trainer))
    contents = {name: _content(value) for name, value in attributes.items() if not name.endswith("dataset")}
    others = attributes_as_before([trainer.args, trainer.accelerator, trainer.callback_handler])
    gradients = {p: (p.grad, p.requires_grad) for p in model.parameters()}
    try:
        with same_draws(), modules_as_before(model), others:
            yield
    finally:
        vars(trainer).clear()
        vars(trainer).update(attributes)
        for name, content in contents.items():
            _restore(attributes[name], content)
        for parameter, (gradient, trained) in gradients.items():
            parameter.grad = gradient
            parameter.requires_grad_(trained)


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
    elif isinstance(value, dict | list | set):
        refill(value, content)
    elif isinstance(value, torch.Tensor):
        value.detach().copy_(content)
