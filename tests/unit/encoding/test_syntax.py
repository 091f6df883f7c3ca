"""Functions and trees by tree-sitter."""

from luthier.encoding.syntax import enclosing, functions, outside, parses, shape

PYTHON = b"import os\nX = 1\nprint(X)\nclass A:\n    y = 2\n    @property\n    def f(self):\n        def g(): return '\xc3\xa9'\n        return g\n\ndef f(): return 1\ndef f(): return 2\n"
JAVA = b"package p;\nimport java.util.*;\nclass A {\n  int x = 1;\n  A() { }\n  int f() {\n    return 1;\n  } int g() { return 2; }\n}\n"


def test_functions_have_names_and_whole_lines() -> None:
    found = functions(PYTHON, "python")
    assert [f.name for f in found] == ["A.f", "A.f.g", "f", "f#2"]
    assert PYTHON[found[0].start : found[0].end].decode().startswith("    @property\n")
    assert PYTHON[found[1].start : found[1].end].decode() == "        def g(): return 'é'\n"
    found = functions(JAVA, "java")
    assert [f.name for f in found] == ["A.A", "A.f", "A.g"]
    assert JAVA[found[0].start : found[0].end] == b"  A() { }\n"
    assert (
        JAVA[found[1].start : found[1].end] == b"int f() {\n    return 1;\n  }"
    )  # another shares its last line


def test_the_innermost_function_holds_a_change() -> None:
    place = PYTHON.index(b"'\xc3")
    inner = enclosing(PYTHON, "python", place, place + 2)
    assert inner is not None and inner.name == "A.f.g"
    assert enclosing(PYTHON, "python", 0, 3) is None


def test_what_stands_outside_is_found() -> None:
    assert outside(PYTHON, "python", functions(PYTHON, "python")[0]) == "import os\nX = 1\ny = 2\n"
    assert (
        outside(JAVA, "java", functions(JAVA, "java")[1]) == "package p;\nimport java.util.*;\nint x = 1;\n"
    )


def test_trees_are_equal_whatever_the_white_space() -> None:
    one, same = "int f() { return (a + b); }", "    int f() {\n  // why\n  return a+b;\n}\n"
    assert shape(one, "java") == shape(same, "java") is not None
    assert shape(one, "java") != shape("int f() { return a - b; }", "java")
    assert shape("def f():\n    return 1\n", "python") == shape("  def f():\n      return (1)\n", "python")
    assert not parses("int f( {", "java") and shape("int f( {", "java") is None
    assert parses("    def f():\n        return 1\n", "python")
