"""Records that belong together are read when they are asked for."""

import datetime

import pytest

from luthier.encoding.raw_records import Neighbours, plain_fields
from luthier.records import Dropped, Record


def test_the_last_two_are_kept() -> None:
    read: list[int] = []

    def records(places: object) -> list[Record]:
        read.append(places)
        return [Record(f"r{places}", {}, "g")]

    found = Neighbours({"a": 1, "b": 2, "c": 3}, records)
    assert list(found) == ["a", "b", "c"] and len(found) == 3 and read == []
    assert found["a"][0].id == "r1" and found["a"] is found["a"] and read == [1]
    assert found["b"] and found["a"] and found["c"] and read == [1, 2, 3]
    assert found["a"] and read == [1, 2, 3], "b was asked for longest ago"
    assert found["b"] and read == [1, 2, 3, 2]
    with pytest.raises(KeyError):
        found["d"]


def test_half_a_surrogate_pair_drops_the_record() -> None:
    for record in (
        Record("a", {"t": "x\ud800"}, "g"),
        Record("a", {}, "g\ud800"),
        Record("a\ud800", {}, "g"),
    ):
        found = plain_fields(record)
        assert isinstance(found, Dropped) and found.reason == "invalid-unicode"
        assert found.id in ("a", "a\\ud800") and found.detail == "it holds half a surrogate pair: '\\ud800'"
    assert plain_fields(Record("a", {"t": datetime.time(1, 2)}, "g")) == '{"t": "01:02:00"}'
