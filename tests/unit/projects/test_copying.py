from luthier.projects.copying import copied_line


def test_the_line_behind_the_longest_equal_lines_is_copied() -> None:
    prompt = "a = 1\nb = 2\nc = 3\n\nz = 1\nb = 2\nd = 4\n\na = 1\n  b = 2\n"
    assert copied_line(prompt) == "c = 3"  # two lines equal, against one at the later place


def test_of_equally_good_places_the_last_counts() -> None:
    assert copied_line("b\nc\nb\nd\nb\n") == "d"


def test_what_never_stood_before_gives_nothing() -> None:
    assert copied_line("a\nb\nc") == "" == copied_line("a") == copied_line("")
