"""The categories of every line of a small file, worked out by hand."""

from pathlib import Path

import pytest
from tests.fixtures.small_project import FILES, PATH, TEXT, project

from luthier.projects.categories import LineCategories, by_jedi

BY_NAME = {
    0: "non_informative",
    1: "random",  # a module is neither a function nor a class
    2: "inproject",  # Price
    3: "committed",  # Voucher
    6: "infile",  # place_order
    7: "inproject",  # Cart
    8: "inproject",  # add_item, Price
    9: "random",
    10: "common",  # get, which Cart declares, and every mapping has
    11: "committed",
    12: "infile",
    13: "non_informative",
    14: "random",
}


def test_categories_by_name_each_without_the_ones_before() -> None:
    labels = LineCategories(project(), PATH, TEXT, "python")
    assert {line: labels.by_name(line) for line in BY_NAME} == {**BY_NAME, 1: "non_informative"}


def test_categories_by_import_follow_the_first_name_of_a_chain() -> None:
    labels = LineCategories(project(), PATH, TEXT, "python")
    found = {line for line in range(len(TEXT.splitlines())) if labels.by_import(line) == "inproject"}
    # carts.Cart() and Price(3); basket.add_item alone would be missed, json is not the project's, vouchers not there yet.
    assert found == {7, 8}


def test_a_file_of_the_project_itself_does_not_count_as_the_project() -> None:
    labels = LineCategories(project(), "shop/cart.py", FILES["shop/cart.py"], "python")
    lines = FILES["shop/cart.py"].split("\n")
    assert labels.by_name(lines.index("class Cart:")) == "infile"
    assert labels.by_name(lines.index("        self.total = self.total.plus(price)")) == "inproject"


def test_categories_by_jedi_follow_definitions(tmp_path: Path) -> None:
    pytest.importorskip("jedi")
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    found = by_jedi(tmp_path, PATH, TEXT, [7, 8, 9, 14])
    assert found == {7: "inproject", 8: "inproject", 9: "other", 14: "other"}
