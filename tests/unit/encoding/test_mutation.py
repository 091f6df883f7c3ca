"""Planted bugs: what is changed, and that nothing else is."""

import random

from luthier.encoding.mutation import OPERATORS, mutations, planted
from luthier.encoding.syntax import functions, parses

PYTHON = b"""X = 1


def f(items, limit=3):
    \"\"\"Doc 1.\"\"\"
    total = 0
    for item in items:
        if item < limit and True:
            total += item * 2
        if not item:
            continue
    return total
"""
JAVA = b"""class A {
  int f(int a, boolean b) {
    if (a < 3 && b) {
      a += 1;
      return 7;
    }
    return a + 1;
  }
}
"""


def test_every_operator_finds_its_place() -> None:
    (function,) = functions(PYTHON, "python")
    found = mutations(PYTHON, "python", function)
    assert {m.operator for m in found} == set(OPERATORS)
    shown = {(m.operator, PYTHON[m.start : m.end], m.text) for m in found}
    assert {
        ("off-by-one", b"<", b"<="), ("swapped-operator", b"and", b"or"), ("wrong-constant", b"True", b"False"),
        ("off-by-one", b"3", b"4"), ("swapped-operator", b"*", b"+"), ("wrong-variable", b"item", b"items"),
        ("missing-branch", b"        if not item:\n            continue\n", b""), ("removed-statement", b"    return total\n", b""),
        ("removed-statement", b"            continue\n", b"            pass\n"),
    } <= shown  # fmt: skip
    for mutation in found:
        changed = mutation.applied(PYTHON)
        assert changed != PYTHON and parses(changed.decode(), "python"), mutation
        assert changed.startswith(b"X = 1\n") and b"Doc 1." in changed


def test_java_stays_java() -> None:
    (function,) = functions(JAVA, "java")
    found = mutations(JAVA, "java", function)
    assert all(parses(m.applied(JAVA).decode(), "java") for m in found)
    shown = {(m.operator, JAVA[m.start : m.end], m.text) for m in found}
    assert {
        ("swapped-operator", b"&&", b"||"),
        ("off-by-one", b"<", b"<="),
        ("removed-statement", b"      a += 1;\n", b""),
    } <= shown
    assert any(m.operator == "missing-branch" and m.text == b"" for m in found)


def test_kinds_take_turns_and_the_draw_decides() -> None:
    (function,) = functions(PYTHON, "python")
    first = list(planted(PYTHON, "python", function, random.Random(1)))
    assert {m.operator for m in first[: len(OPERATORS)]} == set(OPERATORS)
    assert sorted(first, key=str) == sorted(mutations(PYTHON, "python", function), key=str)
    assert first == list(planted(PYTHON, "python", function, random.Random(1)))
    assert first != list(planted(PYTHON, "python", function, random.Random(2)))
    only = list(planted(PYTHON, "python", function, random.Random(1), ("off-by-one",)))
    assert {m.operator for m in only} == {"off-by-one"}
