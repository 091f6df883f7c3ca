"""Rows that another framework tokenised, as rows of ours: from its collated batches, or from its files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.check.context import CheckContext
from luthier.errors import UserError
from luthier.recipe import Model
from luthier.records import Row, Split
from luthier.rows import BATCH_ROWS, Rows, RowWriter, to_batch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from luthier.encoding.text_tokenizer import TextTokenizer

IGNORED = -100
_SPLITS: dict[str, Split] = {"train": "train", "validation": "eval", "eval": "eval", "test": "test"}


def to_rows(
    name: str, encoded: Mapping[str, Any], tokenizer: TextTokenizer | None, pad_id: int | None = None
) -> list[Row]:
    """The rows of one sequence, as the model gets them; several, if it is a pack of several.

    Args:
        name: Row id.
        encoded: ``input_ids``, and if there are ``labels`` (one a token, -100 is ignored; or the row's label),
            ``attention_mask`` (0 at padding; numbers from 1 tell packed rows apart) and ``position_ids`` (which begin
            anew in each packed row). Numbers, lists or arrays. A ``group`` is what must not straddle splits.
        tokenizer: Gives the target's text; without one it is the ids.
        pad_id: What padding holds, to find padding that no mask tells.

    Returns:
        Rows without their padding. ``meta`` holds what a row of ours could not have: ``label`` (of the whole row),
        ``other_labels`` (trained tokens whose label is not the token itself), ``shifted_labels`` (of these, those whose
        label is the next token), ``trained_padding`` (padding that has a label), ``attended_padding`` (padding that the
        mask does not hide), ``pack`` (id of the pack).
    """
    ids = np.asarray(encoded["input_ids"], dtype=np.int64).reshape(-1)
    mask = np.asarray(encoded.get("attention_mask", np.ones(len(ids)))).reshape(-1)
    labels = np.asarray(encoded.get("labels", ids))
    whole = labels.ndim == 0 or labels.shape != ids.shape
    meta: dict[str, Any] = {}
    if whole:
        meta["label"] = labels.tolist()
        labels = np.full(len(ids), IGNORED)
    elif (labels != IGNORED)[mask == 0].any():
        meta["trained_padding"] = int((labels != IGNORED)[mask == 0].sum())
    real = mask != 0
    positions = np.asarray(encoded.get("position_ids", np.arange(len(ids)))).reshape(-1)
    segments = mask if mask.max(initial=0) > 1 else np.cumsum(positions == 0)
    ids, labels, segments, positions = ids[real], labels[real], segments[real], positions[real]
    starts = np.flatnonzero(np.diff(segments, prepend=-1)) if len(ids) else np.array([0])
    ends = [*starts[1:].tolist(), len(ids)]
    rows = []
    for number, (start, end) in enumerate(zip(starts.tolist(), ends, strict=True)):
        packed = {"pack": name} if len(starts) > 1 else {}
        part = slice(start, end)
        row_id = f"{name}/{number}" if packed else name
        row = _row(row_id, ids[part], labels[part], tokenizer, pad_id, {**meta, **packed})
        rows.append(replace(row, group=str(encoded["group"])) if "group" in encoded else row)
    return rows


def _row(
    name: str,
    ids: np.ndarray,
    labels: np.ndarray,
    tokenizer: TextTokenizer | None,
    pad_id: int | None,
    meta: dict[str, Any],
) -> Row:
    trained = labels != IGNORED
    other = trained & (labels != ids)
    if other.any():
        shifted = other[:-1] & (labels[:-1] == ids[1:])
        meta |= {"other_labels": int(other.sum()), "shifted_labels": int(shifted.sum())}
    if pad_id is not None and len(ids) and ids[-1] == pad_id:
        length = len(ids) - int(np.argmin((ids == pad_id)[::-1])) if (ids != pad_id).any() else 0
        if len(ids) - length > 1:  # a single one may well be the end of the row
            meta["attended_padding"] = len(ids) - length
    if "label" in meta:
        target = json.dumps(meta["label"])
    else:
        special = list(tokenizer.special_ids) if tokenizer else []
        own = ids[trained & ~np.isin(ids, special)].tolist()
        target = tokenizer.decode(own) if tokenizer else " ".join(map(str, own))
    first = np.flatnonzero(trained)
    return Row(
        id=name,
        group="",  # not known
        input_ids=ids.astype(np.int32),
        loss_weights=trained.astype(np.float32),
        span_ids=trained.astype(np.int16),
        span_names=["context", "target"],
        num_prompt_tokens=int(first[0]) if len(first) else len(ids),
        target=target,
        target_bytes=len(target.encode("utf-8", "surrogatepass")),
        meta=meta,
    )


def store(rows: Iterable[Row], path: Path) -> Rows:
    """The rows in an Arrow file, where every check finds them; memory stays flat."""
    with RowWriter(path) as writer:
        waiting: list[Row] = []
        for row in rows:
            waiting.append(row)
            if len(waiting) == BATCH_ROWS:
                writer.write(to_batch(waiting))
                waiting = []
        if waiting:
            writer.write(to_batch(waiting))
    return Rows(path)


class RowsContext(CheckContext):
    """Tokenised rows in files of any framework, and the model that they are for.

    Args:
        model: Folder or Hub name of model and tokenizer.
        rows: JSON lines, Parquet, or a folder that ``datasets.save_to_disk`` wrote, with ``input_ids`` and, if there
            are, ``labels``, ``attention_mask`` and ``position_ids``: prepared folders of axolotl and LLaMA-Factory as
            they are. A folder of several splits gives all of them.
        folder: Where to put the rows as checks read them.
        eval_rows: Rows that the model will be evaluated on.
        quick: Leave out what needs the model.
        trust_remote_code: Run code that comes with the model.
    """

    def __init__(
        self,
        model: str,
        rows: str | Path,
        folder: Path,
        eval_rows: str | Path | None = None,
        *,
        quick: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(quick=quick)
        self._settings = Model(name=model, adapter=None, trust_remote_code=trust_remote_code)
        self._files = {"train": str(rows)} | ({"eval": str(eval_rows)} if eval_rows else {})
        self._folder = folder
        self._places: dict[Split, str] = {}

    @property
    def model_name(self) -> str:
        """As it was named."""
        return self._settings.name

    def place(self, split: Split) -> str:
        """The file, whose rows are named by file and line."""
        return self._places[split]

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The one in the model's folder."""
        from luthier.models.load import load_tokenizer

        return load_tokenizer(self._settings)

    @cached_property
    def rows(self) -> Mapping[Split, Rows]:
        """The rows of all files.

        Raises:
            UserError: A file that cannot be read, or that holds no tokenised rows.
        """
        stored: dict[Split, Rows] = {}
        for name, path in self._files.items():
            for split_name, split in _splits_of(path, name):
                rows = _read(path, split_name, self.tokenizer)
                self._places[split] = path + (f" ({split_name})" if split_name else "")
                stored[split] = store(rows, self._folder / f"{split}.arrow")
                if len(stored[split]) and "label" in stored[split].row(0).meta:
                    self.objective = "classes"
        return stored

    def _load_model(self) -> PreTrainedModel | PeftModel:
        from luthier.models.load import load_classifier, load_model

        if self.objective == "classes":
            return load_classifier(self._settings)
        return load_model(self._settings, len(self.tokenizer), training=True, seed=0)


def _splits_of(path: str, name: str) -> list[tuple[str | None, Split]]:
    """The splits of a saved ``DatasetDict``, and of anything else the one that it was named for."""
    listed = Path(path) / "dataset_dict.json"
    if not listed.is_file():
        return [(None, _SPLITS[name])]
    names = json.loads(listed.read_text(encoding="utf-8"))["splits"]
    return [(found, _SPLITS[found]) for found in names if found in _SPLITS]


def _read(path: str, split: str | None, tokenizer: TextTokenizer) -> Iterator[Row]:
    from luthier.records import Dropped
    from luthier.sources.files import Files

    pad_id = tokenizer.hf.pad_token_id
    for record in Files(path=path, split=split).records():
        if isinstance(record, Dropped):
            raise UserError(
                f"a row cannot be read: {record.reason} ({record.detail})", record.id, "mend or remove it"
            )
        try:
            # A column that some rows lack is None in the others.
            present = {name: value for name, value in record.fields.items() if value is not None}
            yield from to_rows(record.id, present, tokenizer, pad_id)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"a row is not tokenised: it has {', '.join(sorted(record.fields))}, and {type(error).__name__}: {error}",
                record.id,
                "give rows with input_ids and, if there are, labels and attention_mask, all of one length",
            ) from error
