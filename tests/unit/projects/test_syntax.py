from itertools import pairwise

from luthier.projects import syntax

PYTHON = '''"""Doc.

More."""
import a.b as c, d, e.f
from .x import y as z
from .k import *
class A(B):
    """Of a class.

    Long."""
    n = 1

    @deco(1)
    def f(self, x: int = 3) -> dict[str, int]:  # note: here
        """Short."""
        return c.g(x)[0].h(k=1)
def t():
    def inner(): pass
    return A.f(1)
'''
JAVA = """package a.b; import c.D; import static e.F.g; import h.*;
/** Doc. */
class X extends Y { int a; X() { q(); }
  int f(int q) { return D.g(q).h(); } Foo z = new Foo(1); }
"""


def test_skeletons_keep_signatures_and_fields_and_no_bodies() -> None:
    assert syntax.skeleton(PYTHON, "python") == (
        '"""Doc."""\nimport a.b as c, d, e.f\nfrom .x import y as z\nfrom .k import *\nclass A(B):\n    """Of a class."""\n'
        "    n = 1\n    @deco(1)\n    def f(self, x: int = 3) -> dict[str, int]: ...\ndef t(): ...\n"
    )
    compile(syntax.skeleton(PYTHON, "python"), "skeleton", "exec")
    assert syntax.skeleton(JAVA, "java").splitlines()[1:] == [
        "class X extends Y { int a; X();",
        "  int f(int q); Foo z = new Foo(1); }",
    ]
    assert syntax.skeleton("x = 1\n", "python") == "" == syntax.skeleton("fn main() {}", "rust")


def test_names_that_are_declared_imported_and_called() -> None:
    assert syntax.declared_names(PYTHON, "python") == {"A", "f", "t", "inner"}
    assert syntax.declared_names(JAVA, "java") == {"X", "f"}
    assert [(i.module, i.name, i.bound) for i in syntax.imports(PYTHON, "python")] == [
        ("a.b", None, "c"), ("d", None, "d"), ("e.f", None, "e"), (".x", "y", "z"), (".k", "*", "*"),
    ]  # fmt: skip
    assert [(i.module, i.name, i.bound) for i in syntax.imports(JAVA, "java")] == [
        ("c.D", None, "D"), ("e.F", "g", "g"), ("h", "*", "*"),
    ]  # fmt: skip
    assert sorted(syntax.called_names(PYTHON)) == [("A.f", "f"), ("c.g", "g"), ("deco", "deco"), ("h", "h")]


def test_identifiers_know_the_beginning_of_their_chain_and_their_place() -> None:
    line = "é = a.b.c(k=d)[0].e\n"
    found = {i.name: i for i in syntax.identifiers(line, "python")}
    assert {name: i.root for name, i in found.items()} == {
        "é": "é", "a": "a", "b": "a", "c": "a", "d": "d", "e": None,
    }  # fmt: skip
    assert found["a"].column == line.index("a") and found["e"].column == line.rindex("e")


def test_broken_code_is_read_as_far_as_it_goes() -> None:
    assert syntax.declared_names("x = = 1\nclass Good:\n    pass\n", "python") == {"Good"}
    assert syntax.skeleton("def f(:\n", "python") == "def f(: ...\n"


def test_blocks_cover_a_file_once() -> None:
    found = syntax.blocks(PYTHON, "python", most_lines=6)
    assert found[0][0] == 0 and found[-1][1] == PYTHON.count("\n")
    assert all(end == start for (_, end), (start, _) in pairwise(found))
    assert max(end - start for start, end in found) <= 6
    # Statements stay whole where they fit; a language without a grammar here is cut by lines.
    assert found == [(0, 3), (3, 6), (6, 12), (12, 16), (16, 19)]
    assert syntax.blocks(PYTHON, "rust", most_lines=6) == [(0, 6), (6, 12), (12, 18), (18, 19)]
