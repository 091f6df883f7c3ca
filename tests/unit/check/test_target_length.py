from pathlib import Path

import numpy as np
import pytest
from tests.fixtures.given_rows import GivenRows, row

from luthier import registry
from luthier.check.context import Skip
from luthier.records import Finding


def check(folder: Path, lengths: list[int], targets: dict[int, str] | None = None) -> list[Finding]:
    rows = [
        row(i, [1] * (3 + length), prompt=3, target=(targets or {}).get(i, f"answer {i}"))
        for i, length in enumerate(lengths)
    ]
    return list(registry.lookup("check", "target-length", "test")(GivenRows(folder, train=rows)))


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 1.5])
def test_log_normal_lengths_are_usual(tmp_path: Path, sigma: float) -> None:
    lengths = np.random.default_rng(0).lognormal(4, sigma, 4000).astype(int).clip(1)
    assert check(tmp_path, lengths.tolist()) == []


def test_lengths_of_two_tasks_are_usual(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    assert check(tmp_path, [2] * 60 + draw.integers(100, 300, 140).tolist()) == []


@pytest.mark.parametrize(("longest", "severity"), [(300, None), (900, "note"), (2000, "warning")])
def test_long_targets_count_by_their_share_of_the_tokens(
    tmp_path: Path, longest: int, severity: str | None
) -> None:
    lengths = [100] * 150
    lengths[17] = longest
    found = check(tmp_path, lengths)
    assert [f.severity for f in found] == ([severity] if severity else [])
    if severity:
        assert found[0].where.endswith(": 17") and f"up to {longest:,}" in found[0].what
        assert found[0].measured == round(longest / (149 * 100 + longest), 4)


@pytest.mark.parametrize(
    ("texts", "severity"),
    [(["nan"] * 4, "warning"), (["nan", "NaN ", "x", "NAN"], "warning"), (list("abcd"), "note")],
)
def test_short_targets_that_say_the_same_stand_for_a_missing_answer(
    tmp_path: Path, texts: list[str], severity: str
) -> None:
    lengths = [100] * 96 + [2] * 4
    (found,) = check(tmp_path, lengths, dict(zip(range(96, 100), texts, strict=True)))
    assert (found.severity, found.measured) == (severity, 0.04)
    assert ("say 'nan'" in found.what) == (severity == "warning")


def test_a_few_short_answers_are_usual(tmp_path: Path) -> None:
    assert check(tmp_path, [100] * 150 + [2]) == []


def test_few_rows_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(Skip, match="fewer than 30"):
        check(tmp_path, [100] * 20 + [10_000])
