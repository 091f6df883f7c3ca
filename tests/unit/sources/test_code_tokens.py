"""CodeXGLUE's token lines, on code whose lines were worked out by hand from its description, and against javalang."""

import re
import sys

import javalang.tokenizer
import pytest

from luthier.sources.code_tokens import Kept, normalise

KEPT = Kept(
    frozenset({"name", "U+0020", "aU+002Cb", "\\n"}),
    frozenset({"0", "1", "0x1F"}),
    frozenset({"a", "U+0020"}),
)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("x = 1\n", "<s> x = <NUM_LIT:1> </s>"),
        ("# only a comment\n\nx = 12\n\n\ny\n", "<s> x = <NUM_LIT> <EOL> y </s>"),
        ("def f(a):\n    return a\n", "<s> def f ( a ) : <EOL> return a </s>"),
        ("f('name', r\"x\", ' ')", "<s> f ( '<STR_LIT:name>' , r\"<STR_LIT>\" , '<STR_LIT:U+0020>' ) </s>"),
        ("f('a,b', '''a\n  b''')", "<s> f ( '<STR_LIT:aU+002Cb>' , '''<STR_LIT>''' ) </s>"),
        ("x = (1,\n  # why\n  2)\n", "<s> x = ( <NUM_LIT:1> , <EOL> <NUM_LIT> ) </s>"),
        ("B'name'", "<s> <STR_LIT> </s>"),  # only small letters are a prefix there
        ("x = f'{a} {b!r:>{w}} {\"q\"}' + 'name'", "<s> x = f'<STR_LIT>' + '<STR_LIT:name>' </s>"),
        ("", None),
        ("# nothing\n", None),
    ],
)
def test_python(code: str, line: str | None) -> None:
    if '{"q"}' in code and sys.version_info < (3, 12):
        code = code.replace('{"q"}', "q")
    assert normalise(code, "python", KEPT) == line


JAVA = r"""
/* A class. */
@Deprecated public class A<T extends Map<String, List<T>>> {
    // numbers
    int[] x = {0, 1, 0x1F, 1_000, 0b11, 017, 12L}; double d = .5 + 1e5f + 1. + 3.14D;
    char c = 'a', n = '\n', q = '\'', s = ' '; String t = "name", u = "a,b", v = "\"quoted\" \\", w = "";
    void f(int... y) { x >>= y >>> 2; z >>>= 1; a <<= b << 3; i++; --j; k != l; m = n -> A::new; g = b ? ~c : !d; }
    T $t_1 = a%b^c|d&e; boolean e = a<=b && c>=d || e==f; { a+=1; a-=1; a*=2; a/=2; a%=2; a&=1; a|=1; a^=1; }
}
"""


def test_java_tokens_are_those_of_javalang() -> None:
    expected = []
    for token in javalang.tokenizer.tokenize(JAVA):
        kind, text = type(token).__name__, token.value
        if kind in ("String", "Character"):
            expected.append("CHAR" if re.fullmatch("'[^\\\\]'", text) else "STR")
        elif "Integer" in kind or "FloatingPoint" in kind:
            expected.append("NUM")
        else:
            expected.append(text)
    line = normalise(JAVA, "java", Kept())
    assert line is not None
    words = [re.sub(r"""^["']<(\w+)_LIT>["']$""", r"\1", word) for word in line.split()[1:-1]]
    assert [re.sub(r"^<NUM_LIT>$", "NUM", word) for word in words] == expected


def test_java_keeps_the_listed_literals() -> None:
    code = "f(\"name\", \"a,b\", 'a', 'b', ' ', '\\n', 0x1F, 31);"
    assert normalise(code, "java", KEPT) == (
        "<s> f ( \"<STR_LIT:name>\" , \"<STR_LIT:aU+002Cb>\" , '<CHAR_LIT:a>' , '<CHAR_LIT>' , "
        "'<CHAR_LIT:U+0020>' , '<STR_LIT:\\n>' , <NUM_LIT:0x1F> , <NUM_LIT> ) ; </s>"
    )
    assert normalise("int # x;", "java", KEPT) is None


def test_the_commonest_literals_are_kept() -> None:
    codes = ["f('often', 7)\n"] * 3 + [f"g('s{i}', {i + 100})\n" for i in range(300)]
    kept = Kept.commonest(codes, "python")
    assert len(kept.strings) == 200 and "often" in kept.strings
    assert len(kept.numbers) == 30 and "7" in kept.numbers
    assert not kept.characters
