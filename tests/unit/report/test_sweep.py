import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.fixtures.synthetic_run import SCRIPT, write_run

from luthier.errors import UserError
from luthier.report import sweep
from luthier.run_folder import RunFolder, read_json, read_jsonl, write_json, write_text


def paired(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stands in for the bootstrap: the difference of mean losses, and an interval of a fixed width."""
    base, tuned = (sum(row[side]["loss_nats"] for row in rows) / len(rows) for side in ("base", "tuned"))
    entry = {
        "base": base,
        "tuned": tuned,
        "difference": tuned - base,
        "interval": [tuned - base - 1, tuned - base + 1],
    }
    return {"metrics": {"loss": {**entry, "better": "lower", "unit": "nats"}}}


def member(folder: Path, *, loss: float, tuned: float) -> RunFolder:
    """A finished run with a validation loss and a test loss of the tuned model; the base has 2.0."""
    run = write_run(folder, num_steps=20, num_predictions=12)
    rows = read_jsonl(run.history)
    for row in rows:
        if "eval" in row:
            row["eval"] |= {"loss": loss if row["step"] == 20 else loss + 1, "best": row["step"] == 20}
    write_text(run.history, "".join(json.dumps(row) + "\n" for row in rows))
    predictions = [
        row | {"tuned": row["tuned"] | {"loss_nats": tuned}} for row in read_jsonl(run.predictions)
    ]
    write_text(run.predictions, "".join(json.dumps(row) + "\n" for row in predictions))
    entry = {"base": 2.0, "tuned": tuned, "difference": tuned - 2.0, "interval": [tuned - 2.1, tuned - 1.9]}
    write_json(
        run.scores,
        {"num_rows": 12, "num_groups": 4, "metrics": {"loss": {**entry, "better": "lower", "unit": "nats"}}},
    )
    write_json(run.stages, {"evaluate": "key"})
    return run


def write_sweep(folder: Path, settings: Mapping[str, Mapping[str, str]]) -> Path:
    write_json(
        folder / "sweep.json",
        {"runs": [{"folder": name, "settings": keys} for name, keys in settings.items()]},
    )
    return folder


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """Two learning rates with three seeds each."""
    names = {
        f"{rate}-{seed}": {"train.learning_rate": rate, "seed": seed}
        for rate in ("1e-4", "2e-4")
        for seed in "012"
    }
    for name, loss, tuned in zip(
        names, (1.1, 1.2, 1.3, 0.9, 1.0, 1.1), (1.5, 1.6, 1.7, 1.2, 1.4, 1.3), strict=True
    ):
        member(tmp_path / name, loss=loss, tuned=tuned)
    return write_sweep(tmp_path, names)


def printed(settings: Sequence[sweep.Setting]) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(sweep.table(settings))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_seeds_of_a_setting_are_one_line_with_their_spread(seeds: Path) -> None:
    first, second = sweep.collect(seeds, paired)
    assert (first.name, second.name) == ("learning_rate=1e-4", "learning_rate=2e-4")
    assert first.eval_loss == pytest.approx(1.2) and first.spread == pytest.approx(0.1)
    assert first.against_base["loss"]["tuned"] == pytest.approx(1.6)
    assert first.deviations["loss"] == pytest.approx(0.1)
    # Differences to the base: -0.5, -0.4, -0.3. Student's t with two degrees of freedom is 4.3027 at 97.5%.
    reach = 4.302653 * 0.1 / math.sqrt(3)
    assert first.against_base["loss"]["interval"] == pytest.approx([-0.4 - reach, -0.4 + reach], abs=1e-6)
    assert first.against_first == {}
    # Seed by seed: 1.2 - 1.5, 1.4 - 1.6, 1.3 - 1.7, which the synthetic base losses have no part in.
    other = second.against_first["loss"]
    assert other["difference"] == pytest.approx(-0.3)
    assert other["interval"] == pytest.approx([-0.3 - reach, -0.3 + reach], abs=1e-6)
    assert sweep.best([first, second]) is second
    text = printed([first, second])
    assert "1.200 ± 0.100" in text and "1.600 ± 0.100" in text and "3 of 3 finished" in text


def test_a_single_seed_keeps_the_interval_over_rows(tmp_path: Path) -> None:
    names = {rate: {"train.learning_rate": rate} for rate in ("1", "2")}
    for rate in names:
        member(tmp_path / rate, loss=float(rate), tuned=float(rate))
    first, second = sweep.collect(write_sweep(tmp_path, names), paired)
    assert first.against_base["loss"]["interval"] == pytest.approx([-1.1, -0.9])
    assert second.against_first["loss"]["interval"] == pytest.approx([0, 2]) and second.spread is None
    assert sweep.best([first, second]) is first and sweep.best([first]) is None


def test_only_seeds_that_both_have_are_compared(seeds: Path) -> None:
    RunFolder(seeds / "1e-4-2").note_stopped("refused", 1, "no", "", "")
    first, second = sweep.collect(seeds, paired)
    assert first.eval_loss == pytest.approx(1.15) and "2 of 3 finished" in printed([first, second])
    assert second.against_first["loss"]["difference"] == pytest.approx((-0.3 - 0.2) / 2)


def test_other_rows_are_not_compared_and_that_is_said(tmp_path: Path) -> None:
    names = {rate: {"data.max_length": rate} for rate in ("1", "2")}
    for rate in names:
        member(tmp_path / rate, loss=1, tuned=1)
    run = RunFolder(tmp_path / "2")
    rows = [row | {"id": row["id"] + "x"} for row in read_jsonl(run.predictions)]
    write_text(run.predictions, "".join(json.dumps(row) + "\n" for row in rows))
    _, second = sweep.collect(write_sweep(tmp_path, names), paired)
    assert second.against_first == {} and "they share 0" in second.notes[0]


def test_states_of_runs(tmp_path: Path) -> None:
    member(tmp_path / "done", loss=1, tuned=1)
    write_run(tmp_path / "half", num_steps=20, stage="stopped")
    failed = write_run(tmp_path / "failed", num_steps=20)
    write_json(failed.stages, {"evaluate": "of an earlier turn"})
    failed.note_stopped("defect", 3, "KeyError: 'x'", "", "")
    write_run(tmp_path / "unsaid", num_steps=20)  # scores, but the stage that wrote them was not finished
    names = ("done", "half", "failed", "unsaid", "absent")
    found = sweep.members(write_sweep(tmp_path, {name: {"description": name} for name in names}))
    assert [m.state for m in found] == ["finished", "running", "failed", "running", "waiting"]
    assert found[2].reason == "defect: KeyError: 'x'" and found[2].scores is None
    with pytest.raises(UserError, match="holds no sweep"):
        sweep.members(tmp_path / "done")


def test_the_page_shows_all_and_trusts_nothing(seeds: Path) -> None:
    tree = read_json(seeds / "sweep.json")
    tree["runs"].append({"folder": "bad", "settings": {"description": SCRIPT}})
    write_json(seeds / "sweep.json", tree)
    RunFolder(seeds / "bad").create()
    RunFolder(seeds / "bad").note_stopped("refused", 1, f"why {SCRIPT}", "", "")
    settings = sweep.collect(seeds, paired)
    page = sweep.write(seeds, "my <sweep>", settings).read_text()
    assert "<script>" not in page and "my &lt;sweep&gt;" in page and "why &lt;script&gt;" in page
    assert 'href="1e-4-0/report.html"' in page and "seed 2" in page
    assert (
        "1.600 ± 0.100" in page and "Lowest validation loss: learning_rate=2e-4 (1.000 ± 0.100 nats)" in page
    )
    table = read_json(seeds / "table.json")
    assert table["best"] == "learning_rate=2e-4" and len(table["settings"]) == 3
    assert table["settings"][0]["runs"][1]["metrics"]["loss"]["tuned"] == 1.6
