import pytest

from luthier.ontology.hearst import NUM_PATTERNS, hypernyms


def test_there_are_28_patterns() -> None:
    assert NUM_PATTERNS == 28


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
