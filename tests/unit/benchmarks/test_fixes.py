"""The benchmark of real fixes notices what does not come back, and what is read otherwise."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.tiny_model import make_tokenizer

from luthier.encoding.lexer import Token
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Record

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "fixes" / "run.py"


def test_what_does_not_come_back_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("fixes", SCRIPT)
    assert spec is not None and spec.loader is not None
    fixes: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fixes)
    tokenizer = TextTokenizer(make_tokenizer())
    before = "def f(a):\r\n    b = a  # one\n\n    return b\n"
    good, inserted, same = (
        Record("r", {"before": before, "after": after, "language": "python"}, "g")
        for after in (
            before.replace("return b", "return -b"),
            before.replace("return b", "b += 1\n    return b"),
            before.replace("# one", "# two"),
        )
    )
    assert fixes.there_and_back(good, tokenizer) == fixes.there_and_back(inserted, tokenizer) == {}
    assert fixes.there_and_back(same, tokenizer) == {"unchanged": "all"}
    texts = [("a", "python", before), ("b", "python", "def f(:\n  'x"), ("c", "c", "int f;")]
    assert list(fixes.read_alike(texts)) == [("a", "python", True), ("b", "python", True)]
    monkeypatch.setattr(fixes, "without_comments", lambda text, language: text.replace("b = a", "b = c"))
    assert [alike for _, _, alike in fixes.read_alike(texts[:1])] == [False]
    monkeypatch.setattr(fixes, "by_javac", lambda texts: ["0:3"])
    monkeypatch.setattr(fixes, "tokens", lambda text, language: [Token("word", 0, 2)])
    assert list(fixes.read_alike([("d", "java", "int")])) == [("d", "java", False)]
    usual = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **how: usual(ids, **how).replace("b", "c"))
    assert set(fixes.there_and_back(good, tokenizer)) == {"wrong"}
    chunk = fixes.chunk([good], tokenizer)
    assert chunk["counts"]["wrong"] == 1 and chunk["listed"]["wrong"] == {"r": "wrong: all"}
