"""What a model is told of a broken program: by outputs of real ones, and by nonsense."""

import json
import shutil
import time
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


def test_a_long_message_does_not_hold_up_what_reads_it() -> None:
    report = f"<testsuite><testcase name='a'><failure message='{'token=' * 50_000}'/></testcase></testsuite>"
    began = time.process_time()
    found = feedback("test", Where(("a.py",), 1, "x"), "", files=[report])
    assert found.test == "a" and found.said.startswith("token=")
    assert time.process_time() - began < 60  # reading all of it takes many times as long


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
    assert words(Feedback(stage="test")) == ["the tests fail"]
    assert words(Feedback(stage="memory")) == ["out of memory"]
    assert words(Feedback(stage="passed")) == ["this passes all tests; another way to write it:"]


HERE = Where(("a.py", "A.java"), 4, "def f(x):\n    return x\n")
TRACE = 'Traceback (most recent call last):\n  File "a.py", line 4, in f\n'


def said(stage: Any, output: str, **more: Any) -> dict[str, Any]:
    found = feedback(stage, HERE, output, **more).model_dump()
    return {name: value for name, value in found.items() if value and name != "stage"}


def test_each_error_of_a_compiler_has_its_own_details() -> None:
    one, two, three, four = (f"A.java:{3 + n}: error: {n}\n  symbol:   s{n}\n" for n in range(1, 5))
    errors = said("compile", one + two + three + four)["errors"]
    assert [(e["line"], e["message"]) for e in errors] == [
        (1, "1; symbol: s1"), (2, "2; symbol: s2"), (None, "A.java: 3; symbol: s3"),
    ]  # fmt: skip
    inner = TRACE + '  File "b.py", line 9\nSyntaxError: bad, on line 5\n'
    (error,) = said("compile", inner)["errors"]
    assert (error["line"], error["message"]) == (1, "SyntaxError: bad, on line 2")
    (bare,) = said("compile", '  File "a.py", line 5\n    return\nSyntaxError: bad\n')["errors"]
    assert (bare["line"], bare["code"]) == (2, "return x")


def test_the_innermost_place_in_the_function_is_shown() -> None:
    assert said("test", "a.py:4: in f\n    g()\na.py:5: in f\nE   ValueError: x\n")["frame"]["line"] == 2
    assert said("test", "a.py:4: in f\n    g()\nb.py:5: in g\nE   ValueError: x\n")["frame"]["line"] == 1
    inner = '  File "a.py", line 5, in f\n  File "b.py", line 1, in g\nValueError: x\n'
    assert said("test", TRACE + inner)["frame"]["line"] == 2


@pytest.mark.parametrize(
    ("line", "raised", "expected"),
    [
        ("assert f(1) == 2, a and b", "AssertionError", "2"),
        ("assert f(1) == 2 == x", "AssertionError", "2 == x"),
        ("assert f('\\'') == 2", "AssertionError", "2"),
        ("assert f(1) == 2 and x", "AssertionError", None),
        ("assert f(1) == 2 or x", "AssertionError", None),
        ("assert f(1) is None", "AssertionError", "None"),
        ("assert g([1 == 2])", "AssertionError", None),
        ("assert 1 / 0 == 2", "ZeroDivisionError: division by zero", None),
    ],
)
def test_what_an_assertion_wanted(line: str, raised: str, expected: str | None) -> None:
    found = said("test", f'Traceback (most recent call last):\n  File "t.py", line 1\n    {line}\n{raised}\n')
    assert found["error"] == raised and found.get("expected") == expected
    assert ("assertion" in found) == (raised == "AssertionError")


def test_what_java_says() -> None:
    native = "java.lang.Error: x\nmore\n\tat A.f(Native Method)\n"
    spaced = "java.lang.Error: x\nmore\n    at A.f(A.java:5)\n"
    assert said("test", native) == {"error": "java.lang.Error: x more"}
    assert said("test", spaced)["frame"]["line"] == 2
    assert said("test", f"1) works(ATest)\n{native}")["test"] == "works(ATest)"


def test_of_several_failures_of_unittest_the_first_is_told() -> None:
    rule = "=" * 70
    first = f"{rule}\nFAIL: test_one (T)\n{'-' * 70}\n"
    other = f"{rule}\nERROR: test_two: twice (T)\n{'-' * 70}\n{TRACE}    x\nKeyError: 'k'\n"
    found = feedback(
        "test", HERE, f"{first}{TRACE}    self.assertEqual(f(1), 2)\nAssertionError: 3 != 2\n{other}"
    )
    assert (found.test, found.actual, found.expected) == ("test_one (T)", "3", "2")
    found = feedback("test", HERE, f"{first}AssertionError: 3: 4\n{other}")
    assert (found.test, found.error) == ("test_one (T)", "AssertionError: 3: 4")


def test_of_what_took_too_long_only_that_is_said() -> None:
    assert said("timeout", f"{TRACE}ValueError: x\n", limit="no end", test="t") == {
        "error": "no end",
        "test": "t",
    }


def test_reports_of_tests_go_before_their_output() -> None:
    assert said("test", "talk", files=[f"{TRACE}ValueError: x\n"])["error"] == "ValueError: x"
    assert said("test", "talk", files=["<testsuite/>"]) == {"said": "talk"}


VALUES = ("assertion", "expected", "actual")


def test_what_is_too_long_is_cut() -> None:
    assert clean("x" * 300) == "x" * 300 and len(clean("x" * 301)) == 300
    assert clean("ab" * 200, 9) == "aba...bab"
    assert len(said("test", "", test="x" * 400)["test"]) == 200
    long = "x" * 250
    frame = 'Traceback (most recent call last):\n  File "t.py", line 1\n'
    for output in (
        f"{frame}    assert {long} == {long}\nAssertionError\n",
        f"{frame}    self.assertEqual(a, {long})\nAssertionError: {long} != {long}\n",
        f"t.py:1: in f\n    assert f({long}) == a\nE   assert {long} == {long}\n",
        f"java.lang.AssertionError: expected:<{long}> but was:<{long}>\n\tat A.f(A.java:5)\n",
    ):
        values = {name: len(found) for name, found in said("test", output).items() if name in VALUES}
        assert values and set(values.values()) == {200}, output
    assert len(Where(("a.py",), 1, "y" * 400).code(1)) == 160
    lines = [f"line {n}" for n in range(20)]
    assert said("compile", "\n".join(lines)) == {"said": "\n".join(lines[:8])}
    assert said("test", "\n\n".join(lines)) == {"said": "\n".join(lines[-8:])}
    assert words(Feedback(stage="test", said="a\n \nb")) == ["a", "b"]
