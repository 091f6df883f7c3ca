"""Comments and tokens by rules of the language."""

import pytest

from luthier.encoding.lexer import NotCode, normalised, split_lines, tokens, without_comments

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


@pytest.mark.parametrize(
    ("code", "language", "expected"),
    [
        ("0x1F_FL .5e-3f 1_0.d 0b1_0L 0x1.8p-3 7", "java", "n:0x1F_FL n:.5e-3f n:1_0.d n:0b1_0L n:0x1.8p-3 n:7"),
        ("a>>>=b>>>c>>=d<<=e...f->g::h++--&&||", "java",
         "w:a s:>>>= w:b s:>>> w:c s:>>= w:d s:<<= w:e s:... w:f s:-> w:g s::: w:h s:++ s:-- s:&& s:||"),
        ("a<=b>=c!=d==e%=f^=g<<h>>i@j", "java",
         "w:a s:<= w:b s:>= w:c s:!= w:d s:== w:e s:%= w:f s:^= w:g s:<< w:h s:>> w:i s:@ w:j"),
        (r"""'\u0041' '\177' '\n' 'x' "a\"b" $a1 \u0062c é""", "java",
         r"""s:'\u0041' s:'\177' s:'\n' s:'x' s:"a\"b" w:$a1 w:\u0062c w:é"""),
        ("1'000u 0x1p-3 0xFFu L'ab' u8\"a\"", "c", "n:1'000u n:0x1p-3 n:0xFFu s:L'ab' s:u8\"a\""),
        ('R"x(a)")x" b', "c", 's:R"x(a)")x" w:b'),
        ("a<=>b->*c##d#e\\f", "c", "w:a s:<=> w:b s:->* w:c s:## w:d s:# w:e s:\\ w:f"),
        ("f'a{b!r:>{w}}c'+0x1f**2@y->z:=1.5e3j#c", "python",
         "s:f'a{b!r:>{w}}c' s:+ n:0x1f s:** n:2 s:@ w:y s:-> w:z s::= n:1.5e3j c:#c"),
        ("f'{f\"{a}\"}' 'b'", "python", "s:f'{f\"{a}\"}' s:'b'"),
        ("a // b\n/* c\n*/ d /**/", "java", "w:a c:// b c:/* c\n*/ w:d c:/**/"),
    ],
)  # fmt: skip
def test_tokens_are_those_of_the_language(code: str, language: str, expected: str) -> None:
    found = [f"{t.kind[0]}:{code[t.start : t.end]}" for t in tokens(code, language)]
    assert " ".join(found) == expected


def test_places_of_python_are_characters_of_the_text() -> None:
    code = "    é = 'a\u2028b'\n\n    if é: g('''x\ny''')\n"
    assert [code[t.start : t.end] for t in tokens(code, "python")] == [
        "é", "=", "'a\u2028b'", "if", "é", ":", "g", "(", "'''x\ny'''", ")",
    ]  # fmt: skip
    assert split_lines("a\r\nb\u2028\nc") == ["a\r\n", "b\u2028\n", "c"] and split_lines("") == []


def test_what_a_comment_kept_apart_stays_apart() -> None:
    for code, language, plain in (
        ("int/**/x", "java", "int x"),
        ("a/**/+b", "java", "a+b"),
        ("int/**/_x", "java", "int _x"),
        ("int/*a*//*b*/x", "java", "int x"),
        ("a+/**/+b", "java", "a+ +b"),
        ("return/*a*/$b;", "java", "return $b;"),
        ("a /**/b", "java", "a b"),
        ("  /* a */  b();\n", "java", "  b();\n"),
        ("a(); /* b */\nc();", "java", "a();\nc();"),
        ("a();  // b", "java", "a();"),
        ("/* a */ b", "java", "b"),
        ("a\n\n\n// b\n  // c\nd\n", "java", "a\nd\n"),
        ("x = 1  # a\n# b\ny\n", "python", "x = 1\ny\n"),
        ("x = '''a\n\n'''\n\n# b\n", "python", "x = '''a\n\n'''\n"),
    ):
        assert without_comments(code, language) == plain


def test_pythons_lines_count_by_their_depth() -> None:
    assert normalised("if a:\n\tb\n\tc\nd\n", "python") == "1 if a : \n2 b \n2 c \n1 d"
    assert normalised("a = [\n1,\n  2]\nb", "python") == "1 a = [ 1 , 2 ] \n1 b"
    assert normalised("a = 1 + \\\n  2\n", "python") == "1 a = 1 + 2"
    assert normalised("if a:\n  if b:\n    c\n  d\n", "python") == "1 if a : \n2 if b : \n3 c \n2 d"
    assert normalised("a  b // c", "c") == "a b" and normalised("  a\n 'b", "java") == "a 'b"
