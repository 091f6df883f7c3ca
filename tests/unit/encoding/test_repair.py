"""Representations of fixes: as they look, and there and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.encoding.repair import input_parts, output_text, patched, place_of, single_chunks

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
