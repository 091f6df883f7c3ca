"""The function in a free-form reply, on replies of all shapes."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.encoding.replies import extract

TREE: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "fixtures" / "replies.yaml").read_text())


@pytest.mark.parametrize("case", TREE["replies"], ids=lambda case: case["name"])
def test_a_reply_gives_its_function_by_its_step(case: dict[str, Any]) -> None:
    of = TREE["functions"][case["of"]]
    found = extract(case["reply"], of["asked"], of["language"])
    code = case.get("code")
    assert (found.step, found.code) == (case["step"], of["fixed"] if code == "fixed" else code)


def test_there_are_replies_of_all_shapes() -> None:
    steps = Counter(case["step"] for case in TREE["replies"])
    assert len(TREE["replies"]) >= 80 and len({case["name"] for case in TREE["replies"]}) == len(
        TREE["replies"]
    )
    assert set(steps) == {
        "fence", "diff", "signature", "parse", "unparsed", "truncated", "wrong-method", "no-code", "empty",
    }  # fmt: skip


PIECES = ["```", "```python\n", "~~~\n", "\n", "def add(a, b):\n", "    return a + b\n", "add(", "@@ -1,2 +1,2 @@\n", "-    return a - b\n", "+    return a + b\n",
          "public static int add(int a, int b) {", "}", "@x\n", "class A {\n", "'", '"""', "\x00", "\ud800", "(", "\\"]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES) | st.text(max_size=10), max_size=20).map("".join),
    st.sampled_from(sorted(TREE["functions"])),
)
def test_no_reply_is_too_strange(reply: str, name: str) -> None:
    of = TREE["functions"][name]
    found = extract(reply, of["asked"], of["language"])
    assert (found.code is None) == (found.step in ("truncated", "wrong-method", "no-code", "empty"))
