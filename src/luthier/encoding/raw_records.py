"""Raw records as they reach a task: named apart by split, fields as plain JSON values. Preparing and checking share it."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from luthier.errors import UserError
from luthier.records import Dropped, Record, Split


def own_name(record: Record, split: Split | None) -> Record:
    """The record with the split in its id if it is from a split's own source, for two sources may give the same id."""
    if split is None:
        return record
    name = f"{split}:{record.id}"
    return Record(name, record.fields, name if record.group == record.id else record.group)


def plain_fields(record: Record) -> str | Dropped:
    """The fields as JSON, or why they cannot be kept.

    Raises:
        UserError: A field is no text, number, list, mapping, date, decimal or array.
    """
    try:
        text = json.dumps(dict(record.fields), ensure_ascii=False, default=_plain_value)
        (record.id + record.group + text).encode()
    except UnicodeEncodeError as error:
        name = record.id.encode("utf-8", "backslashreplace").decode()
        return Dropped(
            name, "invalid-unicode", f"it holds half a surrogate pair: {error.object[error.start]!r}"
        )
    except TypeError as error:
        raise UserError(
            str(error), f"record {record.id}", "leave that field out in data.source, or make it text"
        ) from error
    return text


def _plain_value(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a field holds {type(value).__name__}, which is no text, number, list or mapping")


class Neighbours(Mapping[str, Sequence[Record]]):
    """The records of one source by what holds them together, read when they are asked for; the last two are kept.

    Args:
        places: Where the records of each key are, in any form that ``read`` knows.
        read: The records at such places.
    """

    _KEPT = 2

    def __init__(
        self, places: Mapping[str, Sequence[Any]], read: Callable[[Sequence[Any]], list[Record]]
    ) -> None:
        self._places, self._read = places, read
        self._kept: OrderedDict[str, list[Record]] = OrderedDict()

    def __getitem__(self, key: str) -> Sequence[Record]:
        if key not in self._kept:
            self._kept[key] = self._read(self._places[key])
            if len(self._kept) > self._KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
