import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.fixtures.tiny_prepare import rows_source, tiny_recipe, tiny_tokenizer, write_rows

from luthier.errors import UserError
from luthier.prepare.build import prepare
from luthier.prepare.ledger import Ledger, _lengths
from luthier.records import SPLITS, Dropped
from luthier.rows import Rows
from luthier.run_folder import RunFolder, read_json, read_jsonl

TOKENIZER = tiny_tokenizer()

PARTS = st.sampled_from(
    ["a>b", "a b c d e f>g", "a b c d e f >g", "long" * 30 + ">x", "p>" + "y" * 70, "!odd", "no target", ">t"]
)
RECORDS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"text": st.lists(PARTS, max_size=4).map("|".join), "group": st.sampled_from("pqrstuvw")}
        ),
        st.fixed_dictionaries({"text": st.text(max_size=20)}),
        st.fixed_dictionaries({"drop": st.sampled_from(["broken", "no-target"]), "budgeted": st.booleans()}),
    ),
    max_size=30,
)
DATA = st.fixed_dictionaries(
    {"near_duplicates": st.sampled_from(["drop", "keep-together", "off"])},
    optional={
        "max_rows": st.fixed_dictionaries(
            {}, optional={"train": st.integers(1, 5), "test": st.integers(1, 3)}
        )
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records=RECORDS, test=st.none() | RECORDS, data=DATA, seed=st.integers(0, 5))
@example(
    records=[{"text": "a>b"}, {"text": "a>b|c>d"}],
    test=[{"text": "a>b"}],
    data={"near_duplicates": "drop"},
    seed=0,
)
def test_everything_is_kept_once_or_dropped_once(
    records: list[dict[str, Any]], test: list[dict[str, Any]] | None, data: dict[str, Any], seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if test is not None:
            data = {**data, "test_source": rows_source(write_rows(folder / "test.jsonl", test))}
        recipe = tiny_recipe(
            write_rows(folder / "rows.jsonl", records),
            seed=seed, splits={"train": 1.0, "eval": 0.0, "test": 0.0} if seed % 2 else {"train": 0.8, "eval": 0.2, "test": 0.0},
            **data,
        )  # fmt: skip
        run = RunFolder(folder / "run")
        try:
            prepare(recipe, run, TOKENIZER)
        except UserError as error:
            assert "empty" in error.what or "no records" in error.what
            assert not run.data.exists()
            return
        kept = {split: list(Rows(run.rows(split))) for split in SPLITS}
        ledger, dropped = read_json(run.ledger), read_jsonl(run.dropped)

    assert ledger["records"]["in"] == len(records) + len(test or [])
    for level in ("records", "rows"):
        counts = Counter(line["reason"] for line in dropped if line["stage"] == level)
        assert counts == {reason: entry["count"] for reason, entry in ledger[level]["dropped"].items()}
        assert ledger[level]["in"] == ledger[level]["kept"] + counts.total()
        for reason, entry in ledger[level]["dropped"].items():
            ids = [line["id"] for line in dropped if line["stage"] == level and line["reason"] == reason]
            assert entry["ids"] == ids[:20]
    ids = [row.id for rows in kept.values() for row in rows]
    lost = [line["id"] for line in dropped if line["stage"] == "rows"]
    assert len({*ids, *lost}) == len(ids) + len(lost) == ledger["rows"]["in"]
    # Each record is named by its rows, by its dropped rows, or by itself.
    named = {name.rpartition("#")[0] for name in ids + lost}
    gone = {line["id"] for line in dropped if line["stage"] == "records"}
    expected = {f"row:{n}" for n in range(1, len(records) + 1)}
    # A source's own drops carry its own id, a record of a test source "test:" before it.
    expected |= {("" if "drop" in row else "test:") + f"row:{n}" for n, row in enumerate(test or [], 1)}
    assert named | gone == expected

    groups = {split: {row.group for row in rows} for split, rows in kept.items()}
    assert not (
        groups["train"] & groups["eval"]
        or groups["train"] & groups["test"]
        or groups["eval"] & groups["test"]
    )
    assert all(row.num_prompt_tokens and any(row.loss_weights) for rows in kept.values() for row in rows)


@pytest.mark.parametrize("level", ["records", "rows"])
def test_a_loss_is_a_defect_that_stops(tmp_path: Path, level: Any) -> None:
    with Ledger(tmp_path / "dropped.jsonl") as ledger:
        ledger.num_in[level] += 3
        ledger.num_kept[level] += 1
        ledger.drop(level, Dropped("a", "odd"))
        with pytest.raises(RuntimeError, match=f"3 {level} came in, but 1 kept \\+ 1 dropped"):
            ledger.check()
        ledger.drop(level, Dropped("b", "odd", budgeted=False))
        ledger.check()
        assert ledger.drop_share() == pytest.approx(1 / 2)  # of those that no rule drops
        ledger.num_in[level] += 2
        for name in "cd":
            ledger.drop(level, Dropped(name, "over-max-rows", budgeted=False))
        assert ledger.drop_share() == pytest.approx(1 / 4)  # these could have been kept
    assert [json.loads(line)["id"] for line in (tmp_path / "dropped.jsonl").read_text().splitlines()] == [
        *"abcd",
    ]


def test_percentiles_are_lengths_that_rows_have() -> None:
    found = _lengths(np.array([1, 2, 3, 10]))
    assert {key: found[key] for key in ("min", "p50", "p90", "p99", "max")} == {
        "min": 1, "p50": 3, "p90": 10, "p99": 10, "max": 10,
    }  # fmt: skip
    assert sum(found["histogram"]["counts"]) == 4
