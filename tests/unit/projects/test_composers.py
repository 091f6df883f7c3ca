"""Each composer on a project of six files; the expected orders are worked out by hand. The last piece is the nearest."""

import random
from itertools import accumulate

import pytest
from tests.fixtures.small_project import FILES, PATH, TEXT, project

from luthier.projects.composers import COMPOSERS, Target, fit
from luthier.projects.project import File, Project, path_distance, words

BY_DISTANCE = [
    "tools/report.py",
    "setup.py",
    "shop/web/pages.py",
    "shop/__init__.py",
    "shop/cart.py",
    "shop/money.py",
]


def pieces(name: str, prefix: str = TEXT):
    return COMPOSERS[name](project(), Target(PATH, prefix, TEXT, "python"), random.Random(0))


def paths(name: str, prefix: str = TEXT) -> list[str]:
    return [piece.path for piece in pieces(name, prefix)]


def test_path_distance_counts_folders_that_only_one_of_the_two_is_in() -> None:
    assert path_distance("a/b/x.py", "a/b/y.py") == 0
    assert path_distance("a/b/x.py", "a/y.py") == 1
    assert path_distance("a/b/x.py", "c/d/e/y.py") == 5
    assert path_distance("x.py", "y.py") == 0


def test_none_is_nothing() -> None:
    assert pieces("none") == []


def test_alphabetical_is_by_path() -> None:
    assert paths("alphabetical") == sorted(FILES)


def test_path_distance_puts_the_nearest_last() -> None:
    assert paths("path-distance") == BY_DISTANCE  # 2, 1, 1, 0, 0, 0 folders away


def test_path_distance_does_not_depend_on_which_file_is_completed_first() -> None:
    files = [File(f"a/{name}.py", f"{name} = 1\n", "python") for name in "xyz"]
    one, other = Project("p", files), Project("p", files)
    other.by_distance("a/x.py", "x = 1\n")
    for each in (one, other):
        assert [file.path for file in each.by_distance("a/y.py", "y = 1\n")] == ["a/x.py", "a/z.py"]


def test_imports_first_puts_what_is_imported_before_the_target_last() -> None:
    # `from shop import cart` and `from .money import` stand in the prefix, `.vouchers` is not in the project yet.
    assert paths("imports-first") == [*BY_DISTANCE[:-2], "shop/cart.py", "shop/money.py"]
    prefix = TEXT[: TEXT.index("from .money")]
    assert paths("imports-first", prefix) == [p for p in BY_DISTANCE if p != "shop/cart.py"] + [
        "shop/cart.py"
    ]


def test_same_folder_has_no_others() -> None:
    assert paths("same-folder") == ["shop/__init__.py", "shop/cart.py", "shop/money.py"]


def test_file_length_puts_the_shortest_last() -> None:
    assert paths("file-length") == sorted(FILES, key=lambda path: -len(FILES[path]))


def test_retrieval_puts_what_shares_words_with_the_prefix_last() -> None:
    found = pieces("retrieval", "def f(reports):\n    for row in rows:\n        print(row)\n")
    assert found[-1].path == "tools/report.py" and found[-1].kind == "chunk"
    assert {piece.path for piece in found} == set(FILES)
    assert words("HttpError_2 addItem") == ["http", "error", "add", "item"]


def test_skeletons_stand_for_files_that_are_neither_imported_nor_beside() -> None:
    kinds = {piece.path: piece.kind for piece in pieces("skeletons")}
    assert kinds["shop/cart.py"] == kinds["shop/money.py"] == "file"
    assert kinds["shop/web/pages.py"] == kinds["tools/report.py"] == "skeleton"
    assert "setup.py" not in kinds  # declares nothing
    [report] = [piece for piece in pieces("skeletons") if piece.path == "tools/report.py"]
    assert report.text == "import sys\ndef print_report(rows): ...\n"


def test_half_memory_keeps_about_half_of_the_lines_in_order() -> None:
    whole, half = (
        "".join(piece.text for piece in pieces(name)).splitlines()
        for name in ("path-distance", "half-memory")
    )
    left = iter(whole)
    assert all(line in left for line in half)  # a subsequence
    assert 0.25 < len(half) / len(whole) < 0.75
    assert paths("half-memory") == BY_DISTANCE


def test_shuffled_is_all_files_in_an_order_that_the_seed_decides() -> None:
    assert sorted(paths("shuffled")) == sorted(FILES)
    orders = {
        tuple(
            p.path
            for p in COMPOSERS["shuffled"](project(), Target(PATH, "", TEXT, "python"), random.Random(seed))
        )
        for seed in range(5)
    }
    assert len(orders) > 1 and paths("shuffled") == paths("shuffled")


@pytest.mark.parametrize("name", [name for name in COMPOSERS if name != "none"])
def test_neither_the_file_itself_nor_a_copy_of_it_is_shown(name: str) -> None:
    files = [File(path, text, "python") for path, text in FILES.items()]
    files += [File(PATH, TEXT, "python"), File("shop/copy.py", TEXT + "\n", "python")]
    found = COMPOSERS[name](Project("shop", files), Target(PATH, TEXT, TEXT, "python"), random.Random(0))
    assert found and not {PATH, "shop/copy.py"} & {piece.path for piece in found}


def test_what_does_not_fit_gives_way_to_its_skeleton_and_far_pieces_go_first() -> None:
    def title(path: str) -> str:
        return f"# {path}\n"

    def count(text: str) -> list[int]:  # a token a character
        return list(accumulate(len(line) for line in text.splitlines(keepends=True)))

    found = pieces("path-distance")
    everything = fit(found, 10_000, count, title)
    assert [kept.path for kept in everything] == BY_DISTANCE
    assert all(kept.kind == "file" and kept.num_tokens == len(kept.text) for kept in everything)
    nearest = everything[-1]
    [only] = fit(found, nearest.num_tokens, count, title)
    assert (only.path, only.kind) == ("shop/money.py", "file")
    less = fit(found, nearest.num_tokens - 1, count, title)
    assert (less[-1].path, less[-1].kind) == ("shop/money.py", "skeleton")
    assert less[-1].text == "# shop/money.py\nclass Price:\n    def plus(self, other): ...\n\n"
    [part] = fit(pieces("path-distance")[4:5], 130, count, title)  # the skeleton alone has 155 characters
    assert part.kind == "outline" and part.num_tokens <= 65
    assert part.text == '# shop/cart.py\n"""Carts."""\nfrom .money import Price\n\n'
    for room in range(0, 400, 7):
        assert sum(kept.num_tokens for kept in fit(found, room, count, title)) <= room
