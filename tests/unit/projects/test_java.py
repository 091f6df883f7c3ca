"""A small Java project: what its files are called, import and use, with answers worked out by hand."""

import random

from luthier.projects.categories import LineCategories
from luthier.projects.composers import COMPOSERS, Target
from luthier.projects.project import File, Project

MAIN = "src/main/java/shop"
FILES = {
    f"{MAIN}/Cart.java": (
        "package shop;\n\nimport shop.money.Price;\n\npublic class Cart {\n    private Price total;\n\n"
        "    public void addItem(Price price) {\n        total = total.plus(price);\n    }\n}\n"
    ),
    f"{MAIN}/Rules.java": "package shop;\n\nclass Rules {\n    static int limit() { return 9; }\n}\n",
    f"{MAIN}/money/Price.java": (
        "package shop.money;\n\npublic class Price {\n    public Price plus(Price other) { return other; }\n"
        "    public static Price of(int cents) { return null; }\n}\n"
    ),
    f"{MAIN}/web/Page.java": "package shop.web;\n\nclass Page {\n    static String render(Object o) { return null; }\n}\n",
    "src/test/java/shop/CartTest.java": "package shop;\n\nclass CartTest {\n}\n",
}
PATH = f"{MAIN}/Order.java"
TEXT = (
    "package shop;\n"  # 0
    "\n"  # 1
    "import java.util.List;\n"  # 2
    "import shop.money.Price;\n"  # 3
    "import static shop.web.Page.render;\n"  # 4
    "\n"  # 5
    "public class Order {\n"  # 6
    "    private Cart cart = new Cart();\n"  # 7
    "\n"  # 8
    "    public void place(List<Price> prices) {\n"  # 9
    "        cart.addItem(Price.of(3));\n"  # 10
    "        int most = Rules.limit();\n"  # 11
    "        String page = render(cart);\n"  # 12
    "        int size = prices.size() + 12345;\n"  # 13
    "        Voucher voucher = null;\n"  # 14
    "    }\n"  # 15
    "}\n"  # 16
)
BY_NAME = {
    0: "non_informative",
    2: "non_informative",
    3: "inproject",  # Price
    4: "inproject",  # Page, render
    6: "infile",  # Order
    7: "inproject",  # Cart
    9: "inproject",  # Price
    10: "inproject",  # addItem, Price, of
    11: "inproject",  # Rules, limit
    12: "inproject",  # render
    13: "random",  # size is every collection's, and nothing here declares it
    14: "committed",  # Voucher
    15: "non_informative",
    16: "non_informative",
}


def project() -> Project:
    files = [File(path, text, "java") for path, text in FILES.items()]
    changed = {f"{MAIN}/Voucher.java": "package shop;\nclass Voucher {}\n", PATH: TEXT}
    return Project("shop", files, [File(path, text, "java") for path, text in changed.items()])


def imported(text: str, path: str = PATH) -> dict[str, set[str]]:
    found = project().imported(path, text, "java")
    return {name: {place.rpartition("/")[2] for place in places} for name, places in found.items()}


def test_names_come_from_imports_and_from_the_own_package() -> None:
    assert imported(TEXT) == {
        "Price": {"Price.java"}, "render": {"Page.java"}, "Cart": {"Cart.java"}, "Rules": {"Rules.java"},
    }  # fmt: skip
    # A test of the package stands in another folder; another package's classes need their import.
    assert imported("package shop;\nclass A { CartTest t; Price p; }\n") == {"CartTest": {"CartTest.java"}}
    assert imported("class A { Cart c; }\n") == {}
    assert imported("import shop.*;\nimport shop.money.Price.Unit;\n") == {
        "Cart": {"Cart.java"}, "Rules": {"Rules.java"}, "CartTest": {"CartTest.java"}, "Unit": {"Price.java"},
    }  # fmt: skip
    own = FILES[f"{MAIN}/Cart.java"]
    assert imported(own, f"{MAIN}/Cart.java") == {"Price": {"Price.java"}}  # not itself


def test_imports_first_takes_the_used_classes_of_the_package() -> None:
    def paths(prefix: str) -> list[str]:
        found = COMPOSERS["imports-first"](project(), Target(PATH, prefix, TEXT, "java"), random.Random(0))
        return [piece.path.rpartition("/")[2] for piece in found]

    before = TEXT[: TEXT.index("        int most")]  # Rules is not named yet
    # By distance: 6 folders away, 1, 1, 0, 0; of these Price, Page and Cart are imported or used.
    assert paths(before) == ["CartTest.java", "Rules.java", "Price.java", "Page.java", "Cart.java"]
    assert paths("package shop;\n") == ["CartTest.java", "Price.java", "Page.java", "Cart.java", "Rules.java"]


def test_categories_of_every_line() -> None:
    labels = LineCategories(project(), PATH, TEXT, "java")
    assert {line: labels.by_name(line) for line in BY_NAME} == BY_NAME
    found = {line for line in range(len(TEXT.splitlines())) if labels.by_import(line) == "inproject"}
    assert found == {7, 9, 10, 11, 12}  # Cart; Price; Price; Rules; render
