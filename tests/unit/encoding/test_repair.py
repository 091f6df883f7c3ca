"""Representations of fixes: as they look, and there and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.encoding.repair import (
    Hunk,
    Place,
    ending,
    hunks,
    input_parts,
    output_text,
    patched,
    place_of,
    single_chunks,
)

BUGGY = (
    "    int f() {\n        int x = 1;\n        if (y)\n            x = 2;\n        return x | y;\n    }\n"
)
FIXED = BUGGY.replace("|", "^")
OUTPUTS = ("OR1", "OR2", "OR3", "OR4")


def shown(buggy: str, fixed: str, form: str, language: str = "java", comments: str = "margin") -> str:
    return input_parts(place_of(buggy, fixed)[0], form, language, comments).text


def test_inputs_look_as_published() -> None:
    head, tail = BUGGY.split("        return x | y;\n")
    assert shown(BUGGY, FIXED, "IR1") == BUGGY
    assert shown(BUGGY, FIXED, "IR2") == (
        f"{head}// buggy lines start:\n        return x | y;\n// buggy lines end:\n{tail}"
    )
    assert shown(BUGGY, FIXED, "IR3") == f"{head}        <FILL_ME>\n{tail}"
    assert shown(BUGGY, FIXED, "IR4") == (
        f"{head}// buggy code\n//         return x | y;\n        <FILL_ME>\n{tail}"
    )
    assert shown(BUGGY, FIXED, "IR4", comments="indented") == (
        f"{head}        // buggy code\n        // return x | y;\n        <FILL_ME>\n{tail}"
    )
    assert "#         return x | y;\n" in shown(BUGGY, FIXED, "IR4", "python")


def test_a_pure_insertion_has_an_empty_comment() -> None:
    fixed = BUGGY.replace("        if (y)", "        y++;\n        if (y)")
    assert shown(BUGGY, fixed, "IR4").endswith(
        "x = 1;\n// buggy code\n// \n        <FILL_ME>\n        if (y)\n            x = 2;\n        return x | y;\n    }\n"
    )
    place, lines = place_of(BUGGY, fixed)
    assert place.start == place.end and output_text(place, lines, "OR2") == "        y++;\n"
    place, lines = place_of(fixed, BUGGY)
    assert lines == "" and patched(place, "", "OR2") == BUGGY


def test_outputs_look_as_published() -> None:
    place, lines = place_of(BUGGY, FIXED)
    assert output_text(place, lines, "OR2") == "        return x ^ y;\n"
    assert output_text(place, lines, "OR4") == (
        "@@ -4,3 +4,3 @@\n             x = 2;\n-        return x | y;\n+        return x ^ y;\n     }\n"
    )
    assert output_text(place, lines, "OR3").startswith("@@ -2,5 +2,5 @@\n")


def test_changes_far_apart_are_one_span_or_one_row_each() -> None:
    fixed = FIXED.replace("x = 1", "x = 0")
    place, lines = place_of(BUGGY, fixed)
    assert (place.start, place.end) == (1, 5) and "if (y)" in lines
    rows = single_chunks(BUGGY, fixed)
    assert [place_of(*row)[0].buggy for row in rows] == ["        int x = 1;\n", "        return x | y;\n"]
    assert all(fixed == patched(*(lambda p: (p[0], p[1]))(place_of(*row)), "OR2") for row in rows)


LINES = st.lists(
    st.sampled_from(
        ["    a();\n", "  b\n", "\n", "--- x\n", "+++ y\n", "@@ -1 +1 @@\n", "c\r\n", "\\ no\n", " d"]
    ),
    max_size=9,
)


@settings(max_examples=150, deadline=None)
@given(LINES, LINES)
def test_every_pair_comes_back_byte_for_byte(old: list[str], new: list[str]) -> None:
    buggy, fixed = "".join(old), "".join(new)
    place, lines = place_of(buggy, fixed)
    assert place.text == buggy and place.before + place.buggy + place.behind == buggy
    for form in OUTPUTS:
        if buggy != fixed:
            assert patched(place, output_text(place, lines, form), form) == fixed, form


def test_a_diff_with_wrong_numbers_goes_where_it_fits_only_once() -> None:
    place, lines = place_of(BUGGY, FIXED)
    diff = output_text(place, lines, "OR4").replace("-4,3 +4,3", "-40,3 +1,3")
    assert patched(place, diff, "OR4") == FIXED
    assert patched(place, diff.replace("x | y", "x | z"), "OR4") is None
    assert patched(place, "no diff", "OR4") is None and patched(place, diff + "and more", "OR4") is None
    assert patched(place, "@@ -40,0 +41,1 @@\n+behind the end\n", "OR4") is None
    twice, _ = place_of("a\nb\na\n", "a\nc\na\n")
    assert patched(twice, "@@ -9,1 +9,1 @@\n-a\n+d\n", "OR4") is None


@pytest.mark.parametrize("cut", ["        return x ^ y;", "        return x ^ y;\n"])
def test_an_output_without_its_last_newline_runs_into_no_other_line(cut: str) -> None:
    assert patched(place_of(BUGGY, FIXED)[0], cut, "OR2") == FIXED


def test_the_place_of_a_change() -> None:
    for buggy, fixed, start, end, lines in (
        ("a\nb\nc\n", "a\nX\nc\n", 1, 2, "X\n"),
        ("a\nb\n", "a\nb\nc\n", 2, 2, "c\n"),
        ("a\nb\n", "X\na\nb\n", 0, 0, "X\n"),
        ("a\na\n", "a\n", 1, 2, ""),
        ("a\nb", "a\nb\n", 1, 2, "b\n"),
        ("", "a\n", 0, 0, "a\n"),
        ("a\n", "a\n", 1, 1, ""),
    ):
        place, found = place_of(buggy, fixed)
        assert (place.start, place.end, found) == (start, end, lines) and place.text == buggy


def test_an_insertion_has_the_indent_of_the_next_line_or_of_the_one_before() -> None:
    lines = ("a\n", "  b\n", "\n", "    c\n", "\n")
    assert [Place(lines, i, i).indent for i in range(6)] == ["", "  ", "    ", "    ", "    ", "    "]
    assert Place(("\n",), 0, 0).indent == "" and Place(lines[:3], 2, 3).indent == "  "


def test_the_parts_of_an_input_are_what_may_be_cut() -> None:
    place = Place(("a\n", "  b\n", "c"), 1, 2)
    for form, core in (
        ("IR1", "  b\n"),
        ("IR2", "# buggy lines start:\n  b\n# buggy lines end:\n"),
        ("IR3", "  <FILL_ME>\n"),
    ):
        parts = input_parts(place, form, "python")
        assert (parts.before, parts.core, parts.behind) == ("a\n", core, "c")
    last = Place(("a\n", "  b\r"), 1, 2)
    assert input_parts(last, "IR2", "c").core == "// buggy lines start:\n  b\r\n// buggy lines end:\n"
    assert input_parts(Place(("a  \r\n",), 0, 1), "IR4", "c").core == "// buggy code\n// a  \n<FILL_ME>\n"
    assert input_parts(last, "IR4", "c").core == "// buggy code\n//   b\n  <FILL_ME>\n"
    assert (
        input_parts(Place(("a\n",), 1, 1), "IR2", "c").core == "// buggy lines start:\n// buggy lines end:\n"
    )
    assert [ending(form, "python") for form in ("IR1", "IR2", "IR4")] == [
        "# fixed code:\n", "# fixed lines:\n", "# fixed code:\n",
    ]  # fmt: skip
    assert ending("IR3", "java") == "// fixed code:\n"


def test_diffs_are_those_of_diff() -> None:
    old = [f"{i}\n" for i in range(12)]

    def diff(new: list[str], form: str = "OR4") -> str:
        return output_text(*place_of("".join(old), "".join(new)), form)

    assert diff([*old[:3], *old[4:]]) == "@@ -3,3 +3,2 @@\n 2\n-3\n 4\n"
    assert diff(["X\n", *old]) == "@@ -1,1 +1,2 @@\n+X\n 0\n" and diff([]).startswith(
        "@@ -1,12 +0,0 @@\n-0\n"
    )
    assert diff(["X\n", *old[1:11], "Y"]) == (
        "@@ -1,2 +1,2 @@\n-0\n+X\n 1\n@@ -11,2 +11,2 @@\n 10\n-11\n+Y\n\\ No newline at end of file\n"
    )
    assert diff([*old[:5], "X\n", *old[6:]], "OR3").startswith("@@ -3,7 +3,7 @@\n 2\n")
    assert output_text(*place_of("", "a\n"), "OR4") == "@@ -0,0 +1,1 @@\n+a\n"


def test_hunks_end_by_their_numbers() -> None:
    lines = [
        "x\n",
        "@@ -3 +4,2 @@ def f\n",
        "-a\n",
        "+@@ b\n",
        "\\ No newline at end of file\n",
        "+c\n",
        "rest\n",
    ]
    assert hunks(lines, 1) == ([Hunk(2, ["a\n"], ["@@ b", "c\n"])], 6)
    assert hunks(lines) == ([], 0)
    assert hunks(["@@ -0,0 +1 @@\n", "+x\n", "\\ No newline\n", "\\ again\n"]) == ([Hunk(0, [], ["x"])], 3)
    assert hunks(["@@ -5,0 +6 @@\n", "+x\n"]) == ([Hunk(5, [], ["x\n"])], 2)
    for behind in ("-- \n", "+x\n", " \n"):
        assert hunks(["@@ -1 +1 @@\n", "-a\n", "+b\n", behind]) == ([Hunk(0, ["a\n"], ["b\n"])], 3)
    # An editor took the space of an empty line of context, with either line end; both sides lose their newline together.
    taken = ["@@ -1,3 +1,3 @@\n", "\n", "\r\n", " a\r\n", "\\ No newline\n"]
    assert hunks(taken) == ([Hunk(0, ["\n", "\r\n", "a"], ["\n", "\r\n", "a"])], 5)
    cut = ["@@ -1,2 +1,2 @@\n", " a\n", "@@ -9 +9 @@\n", "-b\n", "+c\n"]
    assert hunks(cut) == ([Hunk(0, ["a\n"], ["a\n"]), Hunk(8, ["b\n"], ["c\n"])], 5)


def test_several_hunks_move_each_other() -> None:
    place = Place(("a\n", "b\n", "c\n", "d\n"), 0, 0)
    diff = "@@ -1 +1,3 @@\n-a\n+X\n+Y\n+Z\n@@ -4 +6 @@\n-d\n+D\n"
    assert patched(place, diff, "OR3") == "X\nY\nZ\nb\nc\nD\n"
    alike = Place(("a\n", "b\n") * 3, 0, 0)
    diff = "".join(f"@@ -{n} +{n} @@\n-a\n+a\n+X\n" for n in (1, 3, 5)).replace("+1 ", "+1,2 ")
    assert patched(alike, diff.replace("+3 ", "+4,2 ").replace("+5 ", "+7,2 "), "OR3") == "a\nX\nb\n" * 3
    assert patched(place, "@@ -1,2 +0,0 @@\n-a\n-b\n@@ -3,0 +2 @@\n+N\n", "OR3") == "c\nN\nd\n"
    assert patched(place, "@@ -4,0 +5 @@\n+end\n\n", "OR3") == "a\nb\nc\nd\nend\n"
    assert patched(place, "@@ -5,0 +6 @@\n+end\n", "OR3") is None
    assert patched(place, "@@ -9,2 +1,1 @@\n-c\n-d\n+C\n", "OR3") == "a\nb\nC\n", (
        "where they stand, at the end"
    )


def test_an_output_ends_as_its_place_does() -> None:
    inside, last = Place(("a\n", "b\n"), 0, 1), Place(("a\n", "b\n"), 1, 2)
    assert patched(inside, "X", "OR2") == "X\nb\n" and patched(inside, "", "OR2") == "b\n"
    assert patched(last, "X", "OR2") == "a\nX" and patched(last, "X", "OR1") == "X"
