import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ontology.paths import PathFormat

FORMAT = PathFormat("Top")
TITLES = st.text(st.sampled_from("ab ->é/"), min_size=1, max_size=8)


def test_pieces_join_to_what_is_read_back():
    paths = [["Top", "Science", "Plant science"], ["Top", "Arts"]]
    pieces = FORMAT.pieces(paths)
    assert (
        "".join(p.text for p in pieces)
        == FORMAT.write(paths)
        == "Top -> Science -> Plant science\nTop -> Arts\n"
    )
    assert [(p.text, p.path, p.position) for p in pieces][:4] == [
        ("Top", 0, 0),
        (" ->", 0, -1),
        (" Science", 0, 1),
        (" ->", 0, -1),
    ]
    lines = FORMAT.parse(FORMAT.write(paths)).lines
    assert [list(line.titles) for line in lines] == paths
    text = FORMAT.write(paths)
    assert [text[a:b] for a, b in lines[0].places] == ["Top", " Science", " Plant science"]
    assert [text[a:b] for a, b in lines[1].places] == ["Top", " Arts"]


def test_invalid_lines_are_counted_by_reason():
    text = (
        "Top -> a\n\nOther -> a\nTop\nTop ->  -> b\nTop -> a  b\nTop -> c \nTop -> a\nTop -> d -> x\nTop -> e"
    )
    parsed = FORMAT.parse(text, ended=False, known=lambda title: title != "x")
    assert [line.titles for line in parsed.lines] == [("Top", "a")]
    assert parsed.num_repeated == 1
    assert parsed.invalid == {
        "blank": 1, "other-root": 1, "root-only": 1, "empty-node": 1, "white-space": 2, "unknown-node": 1, "unfinished": 1,
    }  # fmt: skip
    assert FORMAT.parse("Top -> e").lines[0].titles == ("Top", "e")
    assert FORMAT.parse("").invalid == {}


@given(st.lists(TITLES, min_size=1, max_size=4), st.sampled_from([" -> ", "/", "->", " > "]))
def test_a_title_without_a_problem_survives(titles, separator):
    paths = PathFormat("Top", separator)
    good = ["Top", *(title for title in titles if not paths.problem(title))]
    if len(good) > 1:
        assert [line.titles for line in paths.parse(paths.write([good])).lines] == [tuple(good)]


@given(TITLES, st.sampled_from([" -> ", "/", "->"]))
def test_an_escaped_title_has_no_problem(title, separator):
    paths = PathFormat("Top", separator)
    try:
        assert paths.problem(paths.escaped(title)) is None
    except ValueError:
        assert paths.problem(title)


@pytest.mark.parametrize("title", ["", " ", "a -> b", "a\nb", "a  b", " a", "a ", "a\tb", "a -"])
def test_titles_that_break_the_format(title):
    assert (FORMAT.problem(title) is None) == (title == "a -")


def test_escaping():
    assert FORMAT.escaped("a ->  b\n(c)") == "a->b (c)" and FORMAT.escaped(" a -> b ") == "a->b"
