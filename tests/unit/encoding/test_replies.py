"""The function in a free-form reply, on replies of all shapes."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.encoding import replies
from luthier.encoding.replies import extract, fenced, last_block

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


def test_a_fence_is_longer_than_any_in_the_code() -> None:
    assert fenced("x = 1\n", "python") == "```python\nx = 1\n```" and fenced("x", "java") == "```java\nx\n```"
    assert fenced("```\n", "c") == "````c\n```\n````" and fenced("`````", "c").startswith("``````c\n")


def test_the_last_block_is_what_is_compared() -> None:
    assert last_block("no fence") == "no fence"
    assert last_block("a\n```\nx\n```\nb\n~~~~ text\ny\n```\nz\n~~~~\nend") == "y\n```\nz\n"
    assert last_block("```\nx\n```\n```\n \n```\n") == "x\n", "one that is blank is none"
    assert last_block("```py\r\nx\r\n```") == "x\n" and last_block("```\nnot closed") == "not closed"
    assert last_block("> ```\n> x\n> ```") == "> x\n" and last_block("```\nx = 1```\nprose") == "x = 1\n"
    assert last_block("```\nx = X````\nprose") == "x = X\n", "the fence is longer than the one above"


def test_of_c_the_fence_alone_counts() -> None:
    asked = "  int f() {\n    return 1;\n  }\n"
    found = extract("```c\nint f() {\n  return 2;\n}\n```\n```\n\n```\n", asked, "c")
    assert (found.step, found.code) == ("fence", "  int f() {\n    return 2;\n  }\n")
    assert extract("int f() { return 2; }", asked, "c").step == "no-code"
    assert extract("```\nint f() { return '\ud800'; }\n```", asked, "java").step == "fence"
    assert (
        extract("```c\nint f() {", asked, "c").step == "no-code"
        and extract(" \n", asked, "c").step == "empty"
    )


def test_methods_are_told_apart_by_the_types_of_their_parameters() -> None:
    body = "{ return 1; }"
    types = replies._java(f"int f(String[] a, List<String> b, int... c) {body}", "f")
    assert types is not None and types[:2] == ("String[]", "List<String>")
    assert types[2].endswith("...") and types != replies._java(
        f"int f(String[] a, List<String> b, int c) {body}", "f"
    )
    assert replies._java(f"// of another\nint f() {body}", "f") == ()
    assert replies._java(f"int f(Map<String, List<A>> a) {body}", "f") == ("Map<String,List<A>>",)
    assert replies._java(f"int g() {body}", "f") is None
    assert replies._java(f"int f() {body} int g() {body}", "f") is None
    assert replies._java("package p; class A { }", "f") is None, "a file is no method"
    spread = f'int f(@A("\ud800") int... a) {body}'
    assert replies._java(spread, "f") == ('@A("\ufffd\ufffd\ufffd")int...a...',)


def test_functions_of_python_are_told_apart_by_the_names_of_their_parameters() -> None:
    assert replies._python("async def f(a, /, b, *c, d=1, **e): pass", "f") == ("a", "b", "c", "d", "e")
    for other in ("def g(): pass", "x = 1", "def f(): pass\nx = 1", "class f: pass", ""):
        assert replies._python(other, "f") is None
