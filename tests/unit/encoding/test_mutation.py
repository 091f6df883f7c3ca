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


def changes(source: bytes, language: str, operator: str) -> set[tuple[str, str]]:
    (function,) = functions(source, language)
    found = mutations(source, language, function)
    assert found == sorted(found, key=lambda m: (m.start, m.end, m.operator, m.text)) and len(
        set(found)
    ) == len(found)
    return {(source[m.start : m.end].decode(), m.text.decode()) for m in found if m.operator == operator}


def test_python_operators_one_by_one() -> None:
    source = (
        b"def f(a, b=2):\n    c = a + b * 0 // 1 % a\n    c -= a\n    if a >= b or c is None or a != 0x1F:\n        return True\n    else:\n"
        b"        raise E\n    return a.b(c=b, d=a)\n"
    )
    assert changes(source, "python", "swapped-operator") == {
        ("+", "-"), ("*", "+"), ("//", "*"), ("%", "*"), ("-=", "+="), ("or", "and"), ("is", "is not"), ("!=", "=="),
    }  # fmt: skip
    assert changes(source, "python", "off-by-one") == {(">=", ">"), ("0", "1"), ("1", "2"), ("2", "3")}
    assert changes(source, "python", "wrong-constant") == {
        ("1", "0"),
        ("2", "0"),
        ("True", "False"),
        ("None", "0"),
    }
    assert changes(source, "python", "missing-branch") == set(), "an else goes with its if"
    assert changes(source, "python", "removed-statement") == {
        ("    c = a + b * 0 // 1 % a\n", ""), ("    c -= a\n", ""), ("        return True\n", "        pass\n"),
        ("        raise E\n", "        pass\n"), ("    return a.b(c=b, d=a)\n", ""),
    }  # fmt: skip
    # The next one in the order of first use; names of parameters and keyword arguments are none.
    assert changes(source, "python", "wrong-variable") == {("c", "a"), ("a", "b"), ("b", "E"), ("E", "c")}


def test_java_operators_one_by_one() -> None:
    source = (
        b"class A {\n  int f(int a) {\n    if (a <= 1 || a > 0x10) return a & 7; else a -= 1;\n    for (;;) {\n      break;\n    }\n"
        b"    while (true) {\n      continue;\n    }\n    g(null); h(a | 2);\n    return a;\n  }\n}\n"
    )
    assert changes(source, "java", "swapped-operator") == {("||", "&&"), ("&", "|"), ("-=", "+="), ("|", "&")}
    assert changes(source, "java", "off-by-one") == {
        ("<=", "<"),
        (">", ">="),
        ("1", "2"),
        ("7", "8"),
        ("2", "3"),
    }
    assert changes(source, "java", "wrong-constant") == {
        ("true", "false"),
        ("null", "0"),
        ("1", "0"),
        ("7", "0"),
        ("2", "0"),
    }
    assert changes(source, "java", "removed-statement") == {
        ("      break;\n", ""), ("      continue;\n", ""), ("    return a;\n", ""),
    }, "what shares its line stays"  # fmt: skip


def test_only_the_function_is_changed() -> None:
    source = b"a = 1\ndef f():\n    return 2\nb = 3\n"
    assert changes(source, "python", "off-by-one") == {("2", "3")}
    for text in ("'''Doc'''", 'r"""Doc"""', "'Doc'", "'Doc' 'more'"):
        documented = f"def f():\n    {text}\n    return 2".encode()
        assert changes(documented, "python", "removed-statement") == {("    return 2", "")}, text
    java = b"class A {\n  void f() {\n    if (a) {\n      g();\n    } else\n      if (b)\n        g();\n    h();\n  }\n}\n"
    assert changes(java, "java", "missing-branch") == set(), "an else goes with its if"
    nested = b"def f():\n    if a:\n        if b:\n            c()\n    elif d:\n        e()\n"
    assert changes(nested, "python", "missing-branch") == {
        ("        if b:\n            c()\n", "        pass\n")
    }
