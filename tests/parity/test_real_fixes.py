"""Every representation there and back on real fixes, where the data for measuring is present."""

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.encoding.lexer import Language, NotCode, tokens, without_comments
from luthier.encoding.repair import output_text, patched, place_of

DATA = Path(os.environ.get("LUTHIER_TEST_DATA", "data")) / "repair"


def pairs(every: int) -> Iterator[tuple[Language, str, str]]:
    for name, before, after in (
        ("codrep-java", "buggy_function", "fixed_function"),
        ("sven-train", "func_src_before", "func_src_after"),
        ("sven-val", "func_src_before", "func_src_after"),
    ):
        with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number % every == 0:
                    row = json.loads(line)
                    path = row.get("file_name", "A.java")
                    language: Language = (
                        "java" if path.endswith(".java") else "python" if path.endswith(".py") else "c"
                    )
                    yield language, row[before], row[after]


@pytest.mark.skipif(not DATA.is_dir(), reason="the rows are not there (LUTHIER_TEST_DATA)")
def test_real_fixes_come_back_byte_for_byte() -> None:
    counts: Counter[str] = Counter()
    for language, before, after in pairs(every=40):
        try:
            sides = [without_comments(side, language) for side in (before, after)]
        except NotCode as error:
            counts[f"not code: {error}"] += 1
            continue
        for side, plain in zip((before, after), sides, strict=True):
            kept = [side[t.start : t.end] for t in tokens(side, language) if t.kind != "comment"]
            assert kept == [plain[t.start : t.end] for t in tokens(plain, language)]
        place, lines = place_of(sides[0], sides[1])
        for form in ("OR1", "OR2", "OR3", "OR4"):
            if sides[0] != sides[1]:
                assert patched(place, output_text(place, lines, form), form) == sides[1]
        counts["unchanged" if sides[0] == sides[1] else "exact"] += 1
    assert counts["exact"] > 0.98 * sum(counts.values()), counts
