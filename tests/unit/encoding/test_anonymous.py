"""Names that are taken out of code: alike on both sides, and nothing else changed."""

import re

import pytest

from luthier.encoding.anonymous import GIVEAWAY, anonymous, identifiers
from luthier.encoding.lexer import NotCode, tokens

PYTHON = '''    def fetch(self, name, *rest, limit=3, **others):
        """Fetch the good ones."""
        # the fix
        for key, value in self.name.items():
            total, left = lookup(name=name, key=key), f"{value} of {limit}"
            total = [each for each in rest if each.name == name]
        with open(name) as file:
            return (lambda x: x + total)(file)
'''
JAVA = """    private static int goodG2B(Map<String, Integer> counts, int... more) throws BadCase {
        int total = 0; // FIX: counted
        outer:
        for (Map.Entry<String, Integer> entry : counts.entrySet()) {
            total += this.total(entry.getKey()) + counts.size();
            if (total > 3) break outer;
        }
        try { CWE89_Helper.badSink("a bad source", total); } catch (IOException problem) { log(problem, "total"); }
        return total + goodG2B(counts);
    }
"""
C = """static int *CWE121_x_bad(const char *data, struct node *list) {
    char buffer[10], *end = buffer;
    int i, bad = 0;
    for (i = 0; i <= strlen(data); i++) { list->data[i] = data[i]; }
    if (bad) goto out;
    printf("%s bad", data);
out:
    return &i;
}
"""


def one(text: str, language: str) -> str:
    return anonymous([text], language)[0]  # type: ignore[arg-type]


def test_python_names_are_renamed_by_what_they_stand_for() -> None:
    found = one(PYTHON, "python")
    # Members, names of arguments and functions of others stay.
    assert (
        found
        == '''    def func_1(self, var_1, *var_2, var_3=3, **var_4):
        """text_1"""
        for var_5, var_6 in self.name.items():
            var_7, var_8 = lookup(name=var_1, key=var_5), f"{var_6} of {var_3}"
            var_7 = [var_9 for var_9 in var_2 if var_9.name == var_1]
        with open(var_1) as var_10:
            return (lambda var_11: var_11 + var_7)(var_10)
'''
    )


def test_java_names_are_renamed_by_what_they_stand_for() -> None:
    found = one(JAVA, "java")
    names = identifiers(found, "java")
    assert found.count("func_1(") == 2 and "goodG2B" not in found
    assert not [name for name in names if GIVEAWAY.search(name)] and "bad" not in found and "CWE" not in found
    for kept in ("entrySet()", "getKey()", "size()", "IOException", '"total"', "log(", "Map.Entry"):
        assert kept in found
    for gone in ("counts", "entry ", "problem", "outer", "more"):
        assert gone not in found
    assert "this.total(" in found, "a method that is not declared here"


def test_c_names_are_renamed_by_what_they_stand_for() -> None:
    found = one(C, "c")
    for kept in ("strlen(", "printf(", "->data[", "struct node *"):
        assert kept in found
    for gone in ("bad", "CWE", "buffer", "end", " i ", "out", "list-", "(data"):
        assert gone not in found, found
    assert "goto label_1;" in found and "label_1:" in found


@pytest.mark.parametrize(("text", "language"), [(PYTHON, "python"), (JAVA, "java"), (C, "c")])
def test_only_names_texts_and_comments_change(text: str, language: str) -> None:
    before, after = (
        [t.kind for t in tokens(side, language) if t.kind != "comment"]  # type: ignore[arg-type]
        for side in (text, one(text, language))
    )
    assert before == after
    assert one(one(text, language), language) == one(text, language)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ('def f(a):\n    """Reads a file."""\n    log("a bad \\n one", f"{a} untrusted")\n    return "kept"\n', "python",
         'def func_1(var_1):\n    """text_1"""\n    log("text_2", f"{var_1}text_3")\n    return "kept"\n'),
        ('int f(int a) { log("path traversal\\n"); return g("kept"); }', "java",
         'int func_1(int var_1) { log("text_1\\n"); return g("kept"); }'),
        ('int f(int a) { puts("use after free\\n"); return g("kept"); }', "c",
         'int func_1(int var_1) { puts("text_1\\n"); return g("kept"); }'),
    ],
)  # fmt: skip
def test_texts_that_tell_and_docstrings_go(text: str, language: str, expected: str) -> None:
    assert one(text, language) == expected
    (found,) = anonymous([text], language, all_texts=True)
    assert '"kept"' not in found and found.count("text_") == expected.count("text_") + 1


def test_both_sides_of_a_fix_have_the_same_new_names() -> None:
    bad = "def bad(path, mode):\n    other = path\n    return open(other, mode)\n"
    good = "def good(path, mode):\n    base = clean(path)\n    return open(base, mode)\n"
    before, after = anonymous([bad, good], "python")
    main, path, mode, other = identifiers(before, "python")[:4]
    base = identifiers(after, "python")[3]
    assert len({path, mode, other, base}) == 4
    assert before == f"def {main}({path}, {mode}):\n    {other} = {path}\n    return open({other}, {mode})\n"
    assert (
        after == f"def {main}({path}, {mode}):\n    {base} = clean({path})\n    return open({base}, {mode})\n"
    )


def test_numbers_do_not_tell_which_side_is_which() -> None:
    sides = ["def f(a):\n    b = {0}\n    return a\n", "def f(a):\n    c = {0}\n    return a\n"]
    higher = 0
    for number in range(60):
        both = anonymous([side.format(number) for side in sides], "python")
        before, after = (int(identifiers(side, "python")[2].partition("_")[2]) for side in both)
        higher += after > before
    assert 15 < higher < 45


def test_names_that_differ_only_in_what_tells_become_one() -> None:
    sides = ["def bad(badData, goodData):\n    return helper.badSink(badData)\n",
             "def goodG2B(badData, goodData):\n    return helper.goodG2BSink(goodData)\n"]  # fmt: skip
    before, after = (identifiers(side, "python") for side in anonymous(sides, "python"))
    assert before[:5] == after[:5] and len(set(before[1:3])) == 2, "two names of one version stay two"
    assert before[5] != after[5]
    sides = ["def f(data_bad):\n    return data_bad\n", "def f(goodData):\n    return -goodData\n"]
    before, after = (identifiers(side, "python") for side in anonymous(sides, "python"))
    assert before == after and before[1] == before[2], "underscores and case do not tell them apart"
    sides = ["def f(a):\n    badSink(a)\n", "def f(a):\n    goodSource(a)\n"]
    before, after = (identifiers(side, "python") for side in anonymous(sides, "python"))
    assert before[2] != after[2], "what does not tell does"


def test_new_names_are_not_those_that_are_there() -> None:
    assert (
        one("def f(a):\n    return var_1 + a\n", "python") == "def func_1(var_2):\n    return var_1 + var_2\n"
    )
    assert one("var_1(lambda a: a)\n", "python") == "var_1(lambda var_2: var_2)\n"


def test_broken_code_is_renamed_as_far_as_it_goes_and_no_code_is_refused() -> None:
    for language in ("c", "java"):
        text = "int f(int a) { int = 5; return a + ; }"
        assert one(text, language) == "int func_1(int var_1) { int = 5; return var_1 + ; }"
        (found,) = anonymous([text], language, everything=True)  # type: ignore[arg-type]
        assert re.sub(r"\d+", "1", found) == "int func_1(int var_1) { int = 1; return var_1 + ; }"
        assert identifiers("int a = b", language) == ["a", "b"]  # type: ignore[arg-type]
    assert one("void f(int a) { return a;", "java") == "void func_1(int var_1) { return var_1;"
    assert one("void (int a) { } void g() { }", "java") == "void (int var_1) { } void func_1() { }"
    with pytest.raises(NotCode):
        one("def f(:\n  'x\n", "python")


def test_indents_and_line_ends_stay() -> None:
    text = "\tdef f(a):\r\n\t\treturn a\r\n"
    assert one(text, "python") == "\tdef func_1(var_1):\r\n\t\treturn var_1\r\n"
    assert one("int f(int a) { g('\ud800'); }", "c") == "int func_1(int var_1) { g('\ud800'); }"
    broken = "def f(a): return '\ud800'"
    assert one(broken, "python") == "def func_1(var_1): return '\ud800'"
    assert all(side.endswith("return '\ud800'") for side in anonymous([broken, broken], "python"))


@pytest.mark.parametrize(("text", "language"), [(PYTHON, "python"), (JAVA, "java"), (C, "c")])
def test_all_names_can_go(text: str, language: str) -> None:
    (found,) = anonymous([text], language, everything=True)  # type: ignore[arg-type]
    before, after = (identifiers(side, language) for side in (text, found))  # type: ignore[arg-type]
    left = {name for name in after if not re.fullmatch(r"(func|var|type|label)_\d+", name)}
    assert left == ({"self"} if language == "python" else set())
    assert [before.index(name) for name in before] == [after.index(name) for name in after]


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("async def f(a: int, *, b: T = 1):\n    (c, [d, *e]), g.h = a\n    for i, j in c: c += i\n    return [k for k in d if (n := k)]\n", "python",
         "async def func_1(var_1: int, *, var_2: T = 1):\n    (var_3, [var_4, *var_5]), g.h = var_1\n    for var_6, var_7 in var_3: var_3 += var_6\n    return [var_8 for var_8 in var_4 if (var_9 := var_8)]\n"),
        ("def f(self, cls, __x__, main):\n    return g(f=f, x=self.f)\n", "python",
         "def func_1(self, cls, __x__, main):\n    return g(f=func_1, x=self.f)\n"),
        ("def f(__a, b__): return __a + b__\n", "python", "def func_1(var_1, var_2): return var_1 + var_2\n"),
        ("int f(char *const p) { return *p; }", "c", "int func_1(char *const var_1) { return *var_1; }"),
        ("class A:\n    def g(self): return A.g(A)\n", "python", "class type_1:\n    def func_1(self): return type_1.g(type_1)\n"),
        ("int f(int a) { Runnable r = x -> y(x); return r.f(a).a; }", "java",
         "int func_1(int var_1) { Runnable var_2 = var_3 -> y(var_3); return var_2.func_1(var_1).a; }"),
        ("int S::f(int a[2], int *(*g)(int)) { x: for (auto v : a) goto x; return g(a[0])->a; }", "c",
         "int S::func_1(int var_1[2], int *(*func_2)(int)) { label_1: for (auto var_2 : var_1) goto label_1; return func_2(var_1[0])->a; }"),
        ("int f(int *) { auto g = [](int a) { return a; }; return g(1); }", "c",
         "int func_1(int *) { auto var_1 = [](int var_2) { return var_2; }; return var_1(1); }"),
        ("A(int a) { super(a); f(X.a); }", "java", "type_1(int var_1) { super(var_1); f(X.a); }"),
        ("a = 1; a", "python", "var_1 = 1; var_1"),
    ],
)  # fmt: skip
def test_each_kind_of_declaration_is_found(text: str, language: str, expected: str) -> None:
    assert one(text, language) == expected
    (found,) = anonymous([text], language, everything=True)  # type: ignore[arg-type]
    places = [re.split(r"[A-Za-z_]\w*", side) for side in (text, found)]
    assert places[0] == places[1], "only names have changed"


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("def f(x):\n    badSink(x); o.badSink2(x); o.bad_a = bad_b\n    return x(bad=1)\n", "python",
         "def func_1(var_1):\n    func_2(var_1); o.func_3(var_1); o.var_2 = var_3\n    return var_1(var_4=1)\n"),
        ("int f(BadT x) { badSink(x); o.badSink2(x); BadY.bad = x; }", "java",
         "int func_1(type_1 var_1) { func_2(var_1); o.func_3(var_1); var_2.var_3 = var_1; }"),
        ("int f(BadT x) { bad_ns::y(x); badSink(x); o.badSink2(x); p->bad = bad_z; }", "c",
         "int func_1(type_1 var_1) { type_2::y(var_1); func_2(var_1); o.func_3(var_1); p->var_2 = var_3; }"),
    ],
)  # fmt: skip
def test_names_of_others_that_tell_are_renamed_by_where_they_stand(
    text: str, language: str, expected: str
) -> None:
    assert one(text, language) == expected


def test_words_that_tell_are_found_wherever_they_stand_and_no_others() -> None:
    for word in ("goodG2B", "xbad", "CWE-79_", "cwe 5", "isUnsafe", "fixed", "a_fix", "fixes", "Overflow"):
        assert GIVEAWAY.search(word), word
    for word in ("prefix", "fixture", "suffixes", "harmless"):
        assert not GIVEAWAY.search(word), word


def test_numbers_are_drawn_by_the_texts_alone() -> None:
    # As they are in data that was prepared before.
    assert anonymous(["def bad(a):\n    return a\n", "def good(a):\n    return -g(a)\n"], "python") == [
        "def func_91(var_36):\n    return var_36\n",
        "def func_91(var_36):\n    return -g(var_36)\n",
    ]


def test_drawn_numbers_do_not_tell_how_many_names_there_are() -> None:
    sides = ["def f(a):\n    return a\n", "def f(a):\n    return -a\n"]
    numbers = set()
    for extra in range(800):
        before, _ = anonymous([side + f"x{extra}\n" for side in sides], "python")
        numbers.add(int(identifiers(before, "python")[1].partition("_")[2]))
    assert (min(numbers), max(numbers)) == (1, 100)
    many = "def f(" + ", ".join(f"a{i}" for i in range(80)) + "): pass\n"
    found = [
        int(name.partition("_")[2])
        for name in identifiers(anonymous([many, many + "\n"], "python")[0], "python")[1:]
    ]
    assert len(set(found)) == 80 and 100 < max(found) <= 160
