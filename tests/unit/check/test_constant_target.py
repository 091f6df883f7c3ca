from pathlib import Path

import pytest
from tests.fixtures.given_rows import GivenRows, row

from luthier import registry
from luthier.check.context import Skip
from luthier.records import Finding


def check(folder: Path, targets: list[str]) -> list[Finding]:
    rows = [row(i, [1, 2, i], target=target) for i, target in enumerate(targets)]
    return list(registry.lookup("check", "constant-target", "test")(GivenRows(folder, train=rows)))


OTHERS = [f"answer {'abcdefghij'[i % 10] * (i + 1)} of its own: {i * 7919}" for i in range(40)]


@pytest.mark.parametrize(
    ("targets", "severity", "said"),
    [
        (
            ["N/A"] * 60 + OTHERS,
            "warning",
            "60 of 100 rows (60.00%) have the same target 'N/A'; there are 41",
        ),
        (
            ["N/A", "n/a", " N/A.", "n / a\n"] * 15 + OTHERS,
            "warning",
            "but for case, white space and punctuation",
        ),
        (
            [f"Ticket {i} was closed after {i * 3} days." for i in range(60)] + OTHERS,
            "note",
            "but for digits",
        ),
        (["yes"] * 85 + ["no"] * 15, "warning", "85 of 100 rows"),
        (["Yes.", "yes"] * 43 + ["no", "No"] * 7, "warning", "86 of 100 rows (86.00%) looked at have"),
    ],
)
def test_one_answer_for_most(tmp_path: Path, targets: list[str], severity: str, said: str) -> None:
    (found,) = check(tmp_path, targets)
    assert found.severity == severity and said in found.what


@pytest.mark.parametrize(
    "targets",
    [
        ["N/A"] * 30 + ["n/a"] * 15 + OTHERS + OTHERS,
        ["yes"] * 70 + ["no"] * 30,
        ["Yes", "yes"] * 35 + ["no", "No"] * 15,
        [str(i * 7919) for i in range(100)],  # sums: little but numbers
        [f"= {i}.5 kg" for i in range(100)],
        ["+", "-", "*", "/"] * 25,  # nothing is left of these without punctuation
        ["你好", "再见", "谢谢"] * 30,
    ],
)
def test_answers_that_differ(tmp_path: Path, targets: list[str]) -> None:
    assert check(tmp_path, targets) == []


def test_a_sample_of_large_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    registry.lookup("check", "constant-target", "test")
    monkeypatch.setattr(sys.modules["luthier.check.checks.constant_target"], "NUM_ROWS", 300)
    targets = [("N/A" if i % 2 else "n/a") if i % 10 < 7 else f"answer {i}" for i in range(2500)]
    (found,) = check(tmp_path, targets)
    assert " of 278 rows" in found.what and 0.6 < found.measured < 0.8
    assert found.where.startswith("data/train.arrow: ")


def test_a_single_row_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(Skip, match="fewer than 2 "):
        check(tmp_path, ["a"])
