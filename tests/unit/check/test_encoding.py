import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fixtures.given_rows import GivenRows, row
from tests.fixtures.tiny_model import make_tokenizer

from luthier import registry
from luthier.check.context import RunContext
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Finding, Row

REAL = [
    "café", "naïve – “quoted”", "Müller", "привет", "日本語", "😀 ok", "żółć się", "µ 5° C", "é", "Ελληνικά", "‘x’",
    "São Paulo", "שלום", "مرحبا", "fiancée’s", "©®", "£5",
]  # fmt: skip
UNUSUAL = [
    "café CAFÉ» «ÉTÉ» Straß» MANHû „Ä“ PÅ… 2×3 Ø” ÂGE", "São naïve Ñandú “ÀÉ”", "Ç’est l’été… Noël, œuvre", "ÄÖÜ äöüß",
    "Ðá ÍSLENSKA ÞÓR ÆÐAR", "√2 ≈ 1.41 – × ÷", "ÎLE ÏLE ÎÎ", "a™ b€ c•", "Â and Ã are letters",
]  # fmt: skip


def module() -> Any:
    registry.lookup("check", "encoding", "test")
    return sys.modules["luthier.check.checks.encoding"]


def texts(rows: list[str]) -> list[Row]:
    tokenizer = make_tokenizer()
    made = []
    for i, text in enumerate(rows):
        ids = tokenizer.encode(text, add_special_tokens=False)
        made.append(row(i, [3, *ids, 2], target=text))
    return made


def check(folder: Path, rows: list[Row]) -> list[Finding]:
    return list(module().encoding(GivenRows(folder, TextTokenizer(make_tokenizer()), train=rows)))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize("text", REAL)
def test_utf8_that_was_read_otherwise_is_found_and_real_text_is_not(
    tmp_path: Path, text: str, encoding: str
) -> None:
    broken = text.encode().decode(encoding, errors="ignore")
    plain = [f"some text {i}" for i in range(40)]
    assert check(tmp_path, texts([*plain, text])) == []
    (tmp_path / "broken").mkdir()
    (found,) = check(tmp_path / "broken", texts([*plain, f"so {broken} it is"]))
    assert found.severity == "warning" and "wrong encoding" in found.what and found.where.endswith(": 40")


@pytest.mark.parametrize("text", UNUSUAL)
def test_unusual_text_is_left_alone(tmp_path: Path, text: str) -> None:
    assert check(tmp_path, texts(["plain"] * 30 + [text])) == []


@pytest.mark.parametrize(
    ("text", "said"), [("caf\ufffd", "U+FFFD"), ("a\x00b", "NUL"), ("first \ufeffsecond", "byte order mark")]
)
def test_damage_in_texts(tmp_path: Path, text: str, said: str) -> None:
    (found,) = check(tmp_path, texts(["plain"] * 30 + [f"so {text} it is"]))
    assert said in found.what and found.measured == round(1 / 31, 4)


def test_letters_cut_at_the_ends_of_rows_are_no_damage(tmp_path: Path) -> None:
    ids = make_tokenizer().encode("日本語 text 日本語", add_special_tokens=False)
    cut = row("cut", ids[1:-1], target="本語 text 日本")
    assert check(tmp_path, [*texts(["plain"] * 30), cut]) == []


def test_ids_that_are_no_text_are_left_alone(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [row(i, draw.integers(3, 260, 30).tolist(), target="x") for i in range(200)]
    assert check(tmp_path, rows) == []


@pytest.mark.parametrize(
    ("windows", "others", "found"), [(30, 30, 1), (6, 54, 1), (4, 56, 0), (60, 0, 0), (0, 60, 0)]
)
def test_line_ends(tmp_path: Path, windows: int, others: int, found: int) -> None:
    rows = texts(["one\r\ntwo"] * windows + ["one\ntwo"] * others + ["one line"] * 20)
    assert len(check(tmp_path, rows)) == found


def test_targets_of_a_run_are_all_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Given(GivenRows, RunContext):
        fix = RunContext.fix

    monkeypatch.setattr(module(), "NUM_ROWS", 10)
    rows = texts(["plain"] * 3000)
    rows[1234] = row(1234, [3, 4, 5], target="caf\u00c3\u00a9")
    assert list(module().encoding(Given(tmp_path, TextTokenizer(make_tokenizer()), train=rows))) == []
    rows[1235:1240] = [row(i, [3, 4, 5], target="caf\u00c3\u00a9") for i in range(1235, 1240)]
    (tmp_path / "six").mkdir()
    (found,) = module().encoding(Given(tmp_path / "six", TextTokenizer(make_tokenizer()), train=rows))
    assert found.severity == "note" and found.what.startswith("the targets of 6 of 3,000 rows (0.20%)")
