"""Rows that another framework tokenised, as rows of ours: from its collated batches, or from its files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.check.context import CheckContext, Skip
from luthier.errors import UserError
from luthier.recipe import Model
from luthier.records import Row, Split
from luthier.rows import BATCH_ROWS, Rows, RowWriter, to_batch
from luthier.run_folder import logger, read_json

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from luthier.encoding.text_tokenizer import TextTokenizer

IGNORED = -100
_SPLITS: dict[str, Split] = {"train": "train", "validation": "eval", "eval": "eval", "test": "test"}
# What TRL writes in place of labels: 1 at the tokens that are trained.
_TRL_MASKS = ("completion_mask", "assistant_masks")
# Labels of a row that are kept where they are not the row's own tokens: so many cannot agree by chance.
_SAMPLE = 16


def to_rows(
    name: str, encoded: Mapping[str, Any], tokenizer: TextTokenizer | None, pad_id: int | None = None
) -> list[Row]:
    """The rows of one sequence, as the model gets them; several, if it is a pack of several.

    Args:
        name: Row id.
        encoded: ``input_ids``, and if there are ``labels`` (one a token, -100 is ignored; or the row's label),
            ``attention_mask`` (0 at padding; numbers from 1 tell packed rows apart) and ``position_ids`` (which begin
            anew in each packed row). Numbers, lists or arrays. A ``group`` is what must not straddle splits. TRL's
            ``completion_mask``, ``assistant_masks`` and ``seq_lengths`` are known too.
        tokenizer: Gives the target's text; without one it is the ids.
        pad_id: What padding holds, to find padding that no mask tells.

    Returns:
        Rows without their padding. ``meta`` holds what a row of ours could not have: ``label`` (of the whole row),
        ``other_labels`` (trained tokens whose label is not the token itself), ``shifted_labels`` (of these, those whose
        label is the next token), ``label_sample`` (places and ids of some other labels), ``trained_padding`` (padding
        that has a label), ``attended_padding`` and ``attended_before`` (padding behind and before the row that the mask
        does not hide), ``first_position`` (that of the first token, if it is not 0), ``bad_positions`` (tokens whose
        position neither counts on nor begins anew), ``pack`` (id of the pack).

    Raises:
        ValueError: Columns that do not fit together.
    """
    ids, labels, mask, positions, label = _columns(encoded)
    real, meta = mask != 0, {} if label is None else {"label": label}
    unhidden = _unhidden(ids, labels, real, positions, pad_id, tokenizer)
    before, behind = unhidden.before, unhidden.behind
    if count := int((labels != IGNORED)[~real | unhidden.places].sum()):
        meta["trained_padding"] = count
    meta |= {k: n for k, n in (("attended_before", before), ("attended_padding", behind)) if n}
    places = np.flatnonzero(real & ~unhidden.places)
    if len(places) < len(ids):
        ids, labels, mask = ids[places], labels[places], mask[places]
        positions = places if positions is None else positions[places]
    starts, num_bad = _limits(mask, positions, places)
    first = int(positions[0]) if positions is not None and len(positions) else 0
    meta |= {k: n for k, n in (("bad_positions", num_bad), ("first_position", first)) if n}
    ends = [*starts[1:].tolist(), len(ids)]
    rows = []
    for number, (start, end) in enumerate(zip(starts.tolist(), ends, strict=True)):
        packed = {"pack": name} if len(starts) > 1 else {}
        part = slice(start, end)
        row_id = f"{name}/{number}" if packed else name
        # What is counted of a pack stands in its first row alone.
        own = meta if not number else {k: v for k, v in meta.items() if k == "label"}
        row = _row(row_id, ids[part], labels[part], tokenizer, {**own, **packed})
        rows.append(replace(row, group=str(encoded["group"])) if "group" in encoded else row)
    return rows


def _limits(mask: np.ndarray, positions: np.ndarray | None, places: np.ndarray) -> tuple[np.ndarray, int]:
    """Where each row of a sequence begins, and how many positions make no sense.

    Args:
        mask: Of the tokens that are no padding; numbers over 1 tell rows apart.
        positions: Theirs, if they are not simply those in the sequence.
        places: Where they stand in the sequence.
    """
    starts, numbered = np.zeros(1, np.int64), bool(mask.max(initial=0) > 1)
    if numbered:
        starts = np.flatnonzero(np.diff(mask, prepend=-1))
    if positions is None or not len(places):
        return starts, 0
    if not numbered:
        starts = np.flatnonzero(positions == 0)
        if not len(starts) or starts[0]:
            starts = np.concatenate([[0], starts])
    if len(starts) > max(2, len(places) // 2):  # position 0 over and over: no pack is made of single tokens
        return np.zeros(1, np.int64), len(starts)
    return starts, int(((np.diff(positions) != np.diff(places)) & (positions[1:] != 0)).sum())


def _columns(
    encoded: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, Any]:
    """Ids, labels, mask and positions (None: counted from 0), all of one shape (num_tokens,); and the label of the whole row."""
    ids = _integers("input_ids", encoded["input_ids"])
    mask = _integers("attention_mask", encoded.get("attention_mask", np.ones(len(ids), np.int64)))
    if len(mask) != len(ids):
        raise ValueError(f"{len(ids)} input_ids, but an attention_mask of {len(mask)}")
    positions = None
    if "seq_lengths" in encoded:
        positions = np.concatenate([np.arange(0), *map(np.arange, encoded["seq_lengths"])])
        if len(positions) != len(ids):
            raise ValueError(f"{len(ids)} input_ids, but seq_lengths of {len(positions)}")
    given = np.asarray(encoded.get("position_ids", ())).reshape(-1)
    if len(given) == len(ids):  # images have three positions a token
        positions = given
    named = next((column for column in _TRL_MASKS if column in encoded), None)
    if "labels" not in encoded and named:
        trained = _integers(named, encoded[named])
        if len(trained) != len(ids):
            raise ValueError(f"{len(ids)} input_ids, but a {named} of {len(trained)}")
        return ids, np.where(trained != 0, ids, IGNORED), mask, positions, None
    labels = np.asarray(encoded.get("labels", ids))
    if labels.dtype.kind not in "iufb":
        raise ValueError(f"labels are {labels.dtype}, not numbers")
    # Several targets of a regression are no ids; an empty list is of floats to numpy.
    if labels.shape == ids.shape and (labels.dtype.kind != "f" or not len(ids)):
        return ids, labels.astype(np.int64), mask, positions, None
    # One label of the row; or one for each class, 0 or 1. Labels of tokens would be as many as these.
    if labels.dtype.kind != "f" and labels.ndim and ((labels < 0) | (labels > 1)).any():
        raise ValueError(f"{len(ids)} input_ids, but {labels.size} labels")
    return ids, np.full(len(ids), IGNORED), mask, positions, labels.tolist()


def _integers(name: str, values: Any) -> np.ndarray:
    found = np.asarray(values).reshape(-1)
    if len(found) and found.dtype.kind not in "iub":
        raise ValueError(f"{name} are {found.dtype}, not whole numbers")
    return found.astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Unhidden:
    """Padding that no mask hides, bool, shape (num_tokens,); and how much of it real tokens could look at."""

    places: np.ndarray
    before: int = 0
    behind: int = 0


def _unhidden(
    ids: np.ndarray,
    labels: np.ndarray,
    real: np.ndarray,
    positions: np.ndarray | None,
    pad_id: int | None,
    tokenizer: TextTokenizer | None,
) -> _Unhidden:
    """Runs of the padding id at either end of what the mask shows."""
    places = np.zeros(len(ids), dtype=bool)
    shown = np.flatnonzero(real)
    if pad_id is None or not len(shown) or pad_id not in (ids[shown[0]], ids[shown[-1]]):
        return _Unhidden(places)
    other = np.flatnonzero(ids[shown] != pad_id)
    if not len(other):
        return _Unhidden(places)
    behind = shown[other[-1] + 1 :]
    # Flattened batches are filled up with tokens that are rows of their own, each at position 0.
    alone = (
        positions is not None
        and len(behind) > 0
        and not positions[behind].any()
        and bool((labels[behind] == IGNORED).all())
    )
    if not alone:
        if tokenizer is not None and pad_id in tokenizer.stop_ids:
            behind = behind[1:]  # the first one ends the row
        elif len(behind) == 1:
            behind = behind[1:]  # one may well be the end of the row
    before = shown[: other[0]]
    if len(before) == 1:
        before = before[1:]  # and one its beginning: where all control tokens are one, this is BOS
    places[behind] = places[before] = True
    return _Unhidden(places, len(before), 0 if alone else len(behind))


def _row(
    name: str,
    ids: np.ndarray,
    labels: np.ndarray,
    tokenizer: TextTokenizer | None,
    meta: dict[str, Any],
) -> Row:
    trained = labels != IGNORED
    other = trained & (labels != ids)
    if other.any():
        shifted = other[:-1] & (labels[:-1] == ids[1:])
        sample = np.flatnonzero(other)[:_SAMPLE]
        meta |= {"other_labels": int(other.sum()), "shifted_labels": int(shifted.sum())}
        meta["label_sample"] = [sample.tolist(), labels[sample].tolist()]
    if "label" in meta:
        target = json.dumps(meta["label"])
    else:
        special = tokenizer.special_ids if tokenizer else frozenset()
        own = [i for i in ids[trained].tolist() if i not in special]
        target = tokenizer.decode(own) if tokenizer else " ".join(map(str, own))
    first = np.flatnonzero(trained)
    weights = trained.astype(np.float32)
    weights[:1] = 0.0  # transformers never computes a loss there: nothing stands before it
    return Row(
        id=name,
        group="",  # not known
        input_ids=ids.astype(np.int32),
        loss_weights=weights,
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
            they are. Of a folder of several splits those are read that are called train,
            validation (or eval) and test.
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
        # How it will be trained is not known; in 32 bits nothing is hidden by rounding.
        self._settings = Model(
            name=model, adapter=None, precision="fp32", trust_remote_code=trust_remote_code
        )
        self.trust_remote_code = trust_remote_code
        self._files: dict[Split, str] = {"train": str(rows)}
        if eval_rows:
            self._files["eval"] = str(eval_rows)
        self._folder = folder
        self._places: dict[Split, str] = {}
        self.padding_share = 0.0

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
        places: dict[Split, tuple[str, str | None]] = {}
        for given, path in self._files.items():
            places |= _splits_of(path, given)
        stored: dict[Split, Rows] = {}
        for split, (path, name) in places.items():
            self._places[split] = path + (f" ({name})" if name else "")
            stored[split] = store(self._read(path, name, split), self._folder / f"{split}.arrow")
            if len(stored[split]) and "label" in stored[split].row(0).meta:
                self.objective = "classes"
        if self.objective == "tokens" and "TokenClassification" in self._architecture():
            self.objective = "tags"
        return stored

    def _read(self, path: str, split_name: str | None, split: Split) -> Iterator[Row]:
        from luthier.records import Dropped
        from luthier.sources.files import Files

        source = Files(path=path, split=split_name)
        source.inputs()  # a path that leads nowhere is said before a model is fetched
        tokenizer, pad_id = self.tokenizer, self.tokenizer.hf.pad_token_id
        num_tokens = num_stored = 0
        for record in source.records():
            if isinstance(record, Dropped):
                raise UserError(
                    f"a row cannot be read: {record.reason} ({record.detail})", record.id, "mend or remove it"
                )
            try:
                # A column that some rows lack is None in the others.
                present = {name: value for name, value in record.fields.items() if value is not None}
                rows = to_rows(record.id, present, tokenizer, pad_id)
            except (KeyError, ValueError, TypeError, OverflowError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise UserError(
                    f"a row is not tokenised ({reason}); it has the columns {', '.join(sorted(record.fields))}",
                    record.id,
                    "give rows with input_ids and, if there are, labels and attention_mask, all of one length",
                ) from error
            num_stored += np.size(present["input_ids"])
            num_tokens += sum(len(row.input_ids) for row in rows)
            yield from rows
        if split == "train" and num_stored:
            self.padding_share = 1 - num_tokens / num_stored

    def _architecture(self) -> str:
        """The model's class as its config names it."""
        from transformers import AutoConfig

        from luthier.models.load import resolve

        try:
            config = AutoConfig.from_pretrained(
                resolve(self._settings), trust_remote_code=self.trust_remote_code
            )
        except (OSError, ValueError, KeyError, TypeError):  # the first check that needs the model says so
            return ""
        return str((getattr(config, "architectures", None) or [""])[0])

    def _load_model(self) -> PreTrainedModel | PeftModel:
        from luthier.models.load import load_classifier, load_model

        if self.objective == "tags":
            raise Skip("models that label each token are not looked into")
        try:
            if self.objective == "classes":
                return load_classifier(self._settings)
            # Whether the tokenizer fits is what a check says, and loading would refuse it.
            return load_model(self._settings, tokenizer_size=0, training=True, seed=0)
        except UserError as error:
            where = error.where.replace("recipe key model.name", "model")
            raise UserError(error.what, where, error.fix) from error


def _splits_of(path: str, given: Split) -> dict[Split, tuple[str, str | None]]:
    """Where the splits of a saved ``DatasetDict`` lie, by path and name; of anything else the one that it was given for.

    Raises:
        UserError: No split has a name that says that it is the one it was given for.
    """
    listed = Path(path) / "dataset_dict.json"
    if not listed.is_file():
        return {given: (path, None)}
    names: list[str] = read_json(listed)["splits"]
    found: dict[Split, tuple[str, str | None]] = {}
    for name in names:
        split = _SPLITS.get(name)
        if split and split not in found and not (given == "eval" and split == "train"):
            found[split] = (path, name)
    if given not in found:
        raise UserError(
            f"none of the splits of the data set is called {given}: {', '.join(names)}",
            str(listed),
            f"give one of them alone: {Path(path) / names[0] if names else path}",
        )
    if left := set(names) - {name for _, name in found.values()}:
        logger.warning("%s: not looked at are the splits %s", path, ", ".join(sorted(left)))
    return found
