import re

import pytest

from luthier.ontology import hearst
from luthier.ontology.hearst import hypernyms


@pytest.mark.parametrize("pattern", hearst._PATTERNS)
def test_each_pattern_finds_what_it_spells(pattern: str) -> None:
    """The shortest text of the pattern: without what is optional, by the first of what may be chosen."""
    text = re.sub(r"\((?:[^()]|\([^()]*\))*\)\? ?| ,\?", "", pattern)
    text = re.sub(r"\((\w+)[^)]*\)", r"\1", text)
    text = re.sub(r"\bG\b", "fruits", re.sub(r"\bS\b", "apples", text))
    assert ("fruits", "apples") in hypernyms(text), text


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("Musical instruments, such as the flute, the oboe and a violin.", {("musical instruments", "violin"), ("musical instruments", "flute"), ("musical instruments", "oboe")}),
        ("Such tools as hammers or saws are sold here.", {("tools", "hammers"), ("tools", "saws")}),
        ("Temples, treasuries and other civic buildings were burnt.", {("civic buildings", "temples"), ("civic buildings", "treasuries")}),
        ("It can use formats, e.g. PNG and JPEG.", {("formats", "png"), ("formats", "jpeg")}),
        ("A bassoon is a kind of woodwind instrument.", {("woodwind instrument", "bassoon")}),
        ("Unlike most birds, penguins swim.", {("birds", "penguins swim")}),
        ("Mammals including whales, but no fish.", {("mammals", "whales")}),
        ("Nothing of this kind stands here.", set()),
    ],
)  # fmt: skip
def test_pairs(text: str, pairs: set[tuple[str, str]]) -> None:
    assert set(hypernyms(text)) == pairs
