"""Functions and trees by tree-sitter."""

from luthier.encoding.syntax import functions, outside, parses, shape

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
    text = "def f():\n{0}  '''a\n{0}  b'''\n"
    assert shape(text.format(""), "python") == shape("  " + text.format("  "), "python")
    assert not parses("int f( {", "java") and shape("int f( {", "java") is None
    assert parses("    def f():\n        return 1\n", "python")
    assert shape(text.format(""), "python") == shape("\n\n  " + text.format("  "), "python")


CPP = b"""int *f(int a, char b[3]) { return 0; }
namespace n { struct S { int g() { return 1; } ~S() {} bool operator==(const S &o) { return true; } }; }
void S::h(int x = 1) {}
"""
MORE = b"""class A {
  @Override
  void f(int a, java.util.List<String> b) { }
  void f(int... more) { }
  void f() { } // behind
  enum E { X; int g(final int a[]) { return 1; } }
  record R(int x) { R { } }
  interface I { int K = 2; void h(); }
}
"""


def test_functions_of_c_are_named_by_their_declarators() -> None:
    assert [f.name for f in functions(CPP, "c")] == ["f", "n.S.g", "n.S.~S", "n.S.operator==", "h"]
    nameless = b"namespace { int f() { return 1; } }"
    assert [f.name for f in functions(nameless, "c")] == [".f"], "what is round it has no name"


def test_bytes_that_are_no_utf8_are_shown_as_such() -> None:
    text = b"x = '\xe9'\ndef f(a='\xe9'): pass\n"
    (found,) = functions(text, "python")
    assert (found.parameters, outside(text, "python", found)) == ("(a='\ufffd')", "x = '\ufffd'\n")
    (found,) = functions(b"template <> struct S<'\xe9'> { int g() { return 1; } };", "c")
    assert found.name == "S<'\ufffd'>.g"


def test_functions_have_their_parameters() -> None:
    assert [(f.name, f.parameters) for f in functions(MORE, "java")] == [
        ("A.f", "int,java.util.List<String>"), ("A.f#2", "(int...more)"), ("A.f#3", "()"), ("A.E.g", "(finalinta[])"),
        ("A.R.R", ""), ("A.I.h", "()"),
    ]  # fmt: skip
    python = functions(b"def f(a, b: int = 1): pass\nclass A:\n  def f(self): pass\n", "python")
    assert [(f.name, f.parameters) for f in python] == [("f", "(a,b:int=1)"), ("A.f", "(self)")]


def test_whole_lines_are_taken_where_a_function_has_them_for_itself() -> None:
    first, _, third, *_ = functions(MORE, "java")
    assert MORE[first.start : first.end] == b"  @Override\n  void f(int a, java.util.List<String> b) { }\n"
    assert MORE[third.start : third.end] == b"void f() { }", "a comment shares its line"
    (last,) = functions(b"x = 1\ndef f(): pass", "python")
    assert (last.start, last.end) == (6, 19)
    (only,) = functions(b"\ndef f(): pass\n", "python")
    assert (only.start, only.end) == (1, 15)


def test_only_what_stands_before_a_function_is_outside_of_it() -> None:
    text = (
        b"from __future__ import annotations\nif x:\n    import os\nA: int = 1\nf()\nclass C:\n    y = 2\n"
        b"    def g(self):\n        z = 3\n    def f(self): pass\nB = 1\n"
    )
    found = next(f for f in functions(text, "python") if f.name == "C.f")
    assert outside(text, "python", found) == "from __future__ import annotations\nA: int = 1\ny = 2\n"
    found = next(f for f in functions(MORE, "java") if f.name == "A.I.h")
    assert outside(MORE, "java", found) == "int K = 2;\n"


def test_shapes_are_of_words_and_nesting() -> None:
    for one, other in (
        ("f(a, b)", "f(b, a)"),
        ("a - b - c", "a - (b - c)"),
        ("x = 1", "x = 2"),
        ("if a:\n  b\n  c", "if a:\n  b\nc"),
    ):
        assert shape(one, "python") != shape(other, "python")
    assert shape("((a))  # x", "python") == shape("a", "python")
    assert parses("class A { }", "java") and not parses("int f() {", "java")
    assert not parses("def f(:", "python") and parses("\n\n    x = 1\n    y = 2\n", "python")
    assert parses("", "java") and parses("\n \n", "python"), "nothing is no error"
    assert parses("import a.b;\nclass A { }", "java"), "an import stands in no class"
    assert parses('A() { String s = "\ud800"; }', "java"), "half a surrogate pair is text"
