"""Comments and tokens by rules of the language."""

import pytest

from luthier.encoding.lexer import NotCode, normalised, tokens, without_comments

PYTHON = '''    def f(x):  # why
        """doc # no"""

        # gone
        y = """a

        # stays
        """  # gone
        return x  # "not a string
'''
JAVA = '''  int f(/*a*/int/*b*/x) { // c
   String s = "// no", t = """
      a // no

      """; /* m
   n */ int y = '"';

   /** doc */ return 1; }
'''
C = 'int f() { // a \\\n still\n  char *s = R"x(// )" no)x"; /* b */\n#define A 1 // c\n  return 1; }\n'


def texts(code: str, language: str) -> list[str]:
    return [code[t.start : t.end] for t in tokens(code, language) if t.kind != "comment"]


@pytest.mark.parametrize(("code", "language"), [(PYTHON, "python"), (JAVA, "java"), (C, "c")])
def test_comments_go_and_tokens_stay(code: str, language: str) -> None:
    plain = without_comments(code, language)
    assert texts(plain, language) == texts(code, language)
    assert not any(t.kind == "comment" for t in tokens(plain, language))
    assert without_comments(plain, language) == plain


def test_lines_and_indents_are_left_as_they_were() -> None:
    assert without_comments(PYTHON, "python") == (
        '    def f(x):\n        """doc # no"""\n        y = """a\n\n        # stays\n        """\n        return x\n'
    )
    assert without_comments(JAVA, "java") == (
        '  int f(int x) {\n   String s = "// no", t = """\n      a // no\n\n      """;  int y = \'"\';\n   return 1; }\n'
    )
    assert 'R"x(// )" no)x"' in without_comments(C, "c") and "still" not in without_comments(C, "c")
    assert without_comments("a();\r\n\r\n// b\r\nc();\r\n", "java") == "a();\r\nc();\r\n"


def test_what_is_no_code_is_said() -> None:
    for code, language in (("int a = 'ab", "java"), ("x = 'a", "python"), ("  a\n b", "python"), ("@", "c")):
        with pytest.raises(NotCode):
            tokens(code, language)


def test_code_is_the_same_whatever_its_white_space_but_for_pythons_indents() -> None:
    assert (
        normalised("int a=1; // x", "java")
        == normalised("int  a = 1 ;", "java")
        != normalised("int a=2;", "java")
    )
    one = "def f(a):\n  if a:\n    g()\n  h([1,\n2])\n"
    same = "    def f(a):  # c\n\n        if a:\n            g()\n        h([1, 2])\n"
    other = "def f(a):\n  if a:\n    g()\n    h([1, 2])\n"
    assert normalised(one, "python") == normalised(same, "python") != normalised(other, "python")
    assert normalised("x = 'a", "python") == normalised("x  = 'a ", "python")
