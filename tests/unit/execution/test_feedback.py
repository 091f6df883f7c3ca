"""What a model is told of a broken program: by outputs of real ones, and by nonsense."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.broken_programs import CASES, LIMITS, OUTPUTS, Case

from luthier.execution.adapters import JUNIT, adapter
from luthier.execution.feedback import Feedback, Where, clean, failed_case, feedback, words
from luthier.execution.sandbox import Outcome

RECORDED: dict[str, list[dict[str, Any]]] = json.loads(OUTPUTS.read_text())


def told(case: Case, outcomes: list[Outcome]) -> dict[str, Any]:
    kind = adapter(case.bug)
    limits = replace(LIMITS, timeout_s=kind.timeout_s or LIMITS.timeout_s)
    found = kind.judged(case.bug, case.function, outcomes, limits).feedback
    assert found is not None
    return {name: value for name, value in found.model_dump(mode="json").items() if value}


def wanted(case: Case) -> dict[str, Any]:
    return {name: value for name, value in Feedback(**case.wanted).model_dump(mode="json").items() if value}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_real_output_gives_its_record(case: Case) -> None:
    assert told(case, [Outcome(**outcome) for outcome in RECORDED[case.name]]) == wanted(case)


def test_the_recorded_outputs_are_those_of_the_table() -> None:
    assert set(RECORDED) == {case.name for case in CASES} and len(CASES) >= 60


LIVE = ["assert", "division", "syntax colon", "pytest ints", "unittest equal", "junit strings"]


@pytest.mark.parametrize("name", LIVE)
def test_a_program_that_is_run_now_gives_it_too(name: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    if case.bug.language == "java" and (shutil.which("javac") is None or not Path(JUNIT[0]).is_file()):
        pytest.skip("needs a JDK and Debian's junit4")
    kind = adapter(case.bug)
    found = kind.judge(case.bug, case.function, LIMITS).feedback
    assert found is not None
    assert {k: v for k, v in found.model_dump(mode="json").items() if v} == wanted(case)


PIECES = ["Traceback (most recent call last):\n", '  File "a.py", line 4, in f\n', '  File "a.py", line 99999999999999999999\n', "AssertionError", ": ",
          "E   assert 1 == 2\n", "E   \n", "test_a.py:3: in f\n", "\tat A.f(A.java:5)\n", "\tat ", "1) works(ATest)\n", "a.py:4: error: ", "expected:<", "> but was:<", ">",
          "\n", "    assert f(1) == (", "==", " is ", " and ", "'", "[", "\\", "\x1b[0m", "\x00", "\ud800", "FAIL: x\n", "=====\n", "/home/a/b", "token=", "0xdeadbeef"]  # fmt: skip
NOISE = st.lists(st.sampled_from(PIECES) | st.text(max_size=20), max_size=30).map("".join)


@settings(max_examples=150, deadline=None)
@given(
    NOISE,
    NOISE,
    st.sampled_from(["compile", "test", "timeout", "memory", "passed"]),
    st.sampled_from(["", "{}", "<testsuite><testcase name='x'><failure>{}</failure></testcase></testsuite>"]),
)
def test_no_output_is_too_strange(output: str, inner: str, stage: Any, frame: str) -> None:
    where = Where(("a.py", "A.java"), 4, "def f(x):\n    return x\n")
    found = feedback(stage, where, output, files=[frame.format(inner)] if frame else [])
    assert Feedback(**found.model_dump()) == found
    lines = words(found)
    assert lines and all(line and "\n" not in line and "\r" not in line for line in lines)
    assert sum(map(len, lines)) < 4000
    for place in [*found.errors, *([found.frame] if found.frame else [])]:
        assert place.line is None or place.line in (1, 2)


def test_lines_are_those_of_the_function_and_of_no_other_file() -> None:
    where = Where(("src/pkg/a.py",), 10, "def f():\n    x\n    y\n")
    assert [where.line("src/pkg/a.py", n) for n in (9, 10, 12, 13)] == [None, 1, 3, None]
    assert where.line("a.py", 11) == 2 and where.line("./src/pkg/a.py", 11) == 2
    assert where.line("other/a.py", 11) is None and where.line("/usr/lib/a.py", 11) is None


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("open /home/jo/x/y.txt failed", "open .../y.txt failed"),
        ("in /home/jo and C:\\Users\\jo\\a.txt", "in /~ and .../a.txt"),
        ("file:///srv/data/a.py, a/b and 1 / 2", ".../a.py, a/b and 1 / 2"),
        ("https://jo:pass123@host.org/a/b", "https://[removed]@host.org/a/b"),
        ("AKIAABCDEFGHIJKLMNOP", "[removed]"),
        ("api_key = 'abc123def456'", "[removed]'"),
        ("Bearer abcdefghijklmnop1234", "Bearer [removed]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----!", "[removed]!"),
        ("unexpected token: identifier", "unexpected token: identifier"),
        ("<A object at 0x7f8a12345678>", "<A object at 0x...>"),
    ],
)
def test_secrets_and_folders_go(text: str, left: str) -> None:
    assert clean(text) == left


def test_a_report_names_its_first_failure() -> None:
    inner = "<testcase name='a'/><testcase classname='T' name='b'><error message='m'/></testcase>"
    assert failed_case(f"<testsuite>{inner}</testsuite>") == ("T::b", "m")
    assert failed_case("<testsuite><testcase name='a'/></testsuite>") is None
    assert failed_case("no xml \ud800") is None


def test_words_of_each_stage() -> None:
    shown = {case.name: words(Feedback(**case.wanted)) for case in CASES}
    assert shown["javac types"] == [
        "does not compile",
        'line 2, int y = "a";: incompatible types: String cannot be converted to int',
    ]
    assert shown["pytest ints"] == [
        "assert 3 == 2", "failing test: test_a::test_f", "assert f(1) == 2", "expected: 2", "actual: 3",
    ]  # fmt: skip
    assert shown["time-out"] == ["timed out: no end after 2 s"]
    assert shown["memory"] == ["out of memory: MemoryError", "at line 2: return len(bytes(1 << 40))"]
    assert words(Feedback(stage="extract")) == ["there is no function in it"]
    assert words(Feedback(stage="test", unchanged=True, error="E"))[0] == "this changes nothing"
    assert words(Feedback(stage="passed")) == ["this passes all tests; another way to write it:"]
